"""Attention of vision encoders by oneDNN's graphs on a CPU: half the time of PyTorch's own kernel.

PyTorch multiplies inside its attention by MKL, see :mod:`polyptych.models.onednn`. Its TorchScript
can hand a whole attention (product, softmax, product) to oneDNN instead, as one fused group that is
compiled for a shape. Encoders meet few shapes; what has none, or needs gradients, masks or dropout,
takes the usual way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "polyptych_onednn"
"""The attention implementation's name among transformers' own."""

MIN_TOKENS = 64
"""For shorter sequences products are no longer what attention costs."""

SHAPES = 32
"""Compiled shapes that are kept."""

_WARM_UP = 3
"""Runs until TorchScript has seen the shapes, and compiled."""


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a product of these will be asked for a gradient; not so in frozen encoders."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


class _Attention(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``softmax(q k^T s) v``."""
        weights = torch.softmax(torch.matmul(query, key.transpose(-1, -2)) * self.scale, dim=-1)
        return torch.matmul(weights, value)


@lru_cache(maxsize=SHAPES)
def _compiled(
    shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], scale: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention for inputs that lie in memory like this."""
    inputs = [torch.empty_strided(shape, stride).zero_() for stride in strides]
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript will not be developed further
            traced = torch.jit.freeze(torch.jit.trace(_Attention(scale).eval(), inputs))
            for _ in range(_WARM_UP):
                traced(*inputs)
    finally:
        torch.jit.enable_onednn_fusion(before)
    return traced


def attention_forward(
    module: nn.Module,
    query: Float[Tensor, "B H L D"],
    key: Float[Tensor, "B H L D"],
    value: Float[Tensor, "B H L D"],
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B L H D"], None]:
    """An attention implementation as transformers calls it; no weights are returned."""
    tensors = (query, key, value)
    if (
        attention_mask is not None
        or dropout
        or kwargs.get("is_causal")
        or wants_gradient(*tensors)
        or torch.is_autocast_enabled("cpu")
        or query.shape[2] < MIN_TOKENS
        or any(
            x.dtype != torch.float32 or x.device.type != "cpu" or x.shape != query.shape
            for x in tensors
        )
    ):
        return sdpa_attention_forward(
            module, *tensors, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _compiled(tuple(query.shape), tuple(x.stride() for x in tensors), scale)
    return attend(*tensors).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)


def use_onednn_attention(encoder: Any) -> None:
    """Let a transformers vision encoder attend by oneDNN where it would by PyTorch's kernel."""
    can = hasattr(torch.jit, "enable_onednn_fusion")
    if can and getattr(encoder.config, "_attn_implementation", None) == "sdpa":
        encoder.config._attn_implementation = NAME
