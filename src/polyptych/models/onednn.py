"""Linear layers multiplied by oneDNN on a CPU: twice as fast where MKL runs below its best.

PyTorch gives float32 products to MKL, which leaves the wide vector units of processors of other
makers than its own unused; oneDNN, which is in every PyTorch build for x86, uses them. Measured on
an AMD EPYC with AVX-512: 200 instead of 95 GFLOP/s on one thread. The sums run in another order, so
results differ by float32 rounding (relative error of about 1e-7), as they do between machines. On
one machine every run makes the same choice, so that runs repeat exactly.

Where a GELU follows a linear layer, it is computed before the product leaves the processor's cache.
oneDNN multiplies with weights in blocks; while nothing is learned, small models keep them so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import GELUActivation

from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.models.kept_weights import Fingerprint
from polyptych.models.onednn_attention import use_onednn_attention, wants_gradient
from polyptych.vision.encoder import CPU_PIXELS, VisionEncoder

MIN_ROWS = 8
"""Below this many rows (a decoding step), setting up the product costs more than it gains."""

MAX_PACKED = 100_000_000
"""Parameters of a model whose weights are kept in blocks, too; of a larger one the second copy
would be felt, and putting them in order is a smaller part of its products."""

_PACKED_FOR = 256
"""Rows that blocks are chosen for; they serve any number as well, also a single one."""


def is_available() -> bool:
    """Whether this build of PyTorch has the product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def is_faster(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether it gains here: on an AMD processor with AVX-512, where it was measured.

    Args:
        cpuinfo: Linux's description of the processor; without it the answer is no.
    """
    file = Path(cpuinfo)
    described = file.read_text() if file.exists() else ""
    return is_available() and "AuthenticAMD" in described and "avx512f" in described


def use_onednn(model: nn.Module) -> int:
    """Let the linear layers of ``model`` multiply by oneDNN, and its vision encoder attend.

    Weights, names and checkpoints stay as they are. Inputs that are not float32 on a CPU, and
    those of very few rows, take the usual way.

    Returns:
        The number of layers changed; 0 where oneDNN is not available.
    """
    layers = [module for module in model.modules() if type(module) in (nn.Linear, ZeroLinear)]
    if not is_available():
        return 0
    small = sum(parameter.numel() for parameter in model.parameters()) <= MAX_PACKED
    for layer in layers:
        layer.__class__ = OneDnnLinear
        cast(OneDnnLinear, layer).packs = small
    for module in model.modules():
        for linear, activation in _BEFORE_GELU:
            if _is_gelu(getattr(module, activation, None)):
                getattr(module, linear).__class__ = OneDnnLinearGelu
                setattr(module, activation, nn.Identity())
        if isinstance(module, VisionEncoder):
            use_onednn_attention(module.model)
            module.cpu_pixels = 2 * CPU_PIXELS  # its products keep less waiting; 2 % faster
    return len(layers)


def packed_product(
    weight: Float[Tensor, "D_out D_in"], bias: Float[Tensor, " D_out"] | None
) -> Callable[[Tensor], Tensor]:
    """``x W^T + b`` for many inputs: the weights are laid out for it once."""
    packed = _pack(weight)
    return lambda x: _product(x, packed, bias)


def _pack(weight: Float[Tensor, "D_out D_in"]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR)


class OneDnnLinear(nn.Linear):
    """``nn.Linear`` by another library."""

    packs = False
    """Whether the weight is kept in blocks, too, while no gradient is wanted."""
    _packed: tuple[Fingerprint, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the blocks, which can be neither copied nor saved."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def forward(self, input: Float[Tensor, "*X D_in"]) -> Float[Tensor, "*X D_out"]:  # noqa: A002
        """``x W^T + b``."""
        if not self._multiplies(input):
            return functional.linear(input, self.weight, self.bias)
        if not wants_gradient(input, self.weight, self.bias):
            return _product(input, self._laid_out(), self.bias)
        return _Linear.apply(input, self.weight, self.bias)

    def _laid_out(self) -> Tensor:
        """The weight as oneDNN likes it best."""
        if not self.packs:
            return self.weight
        if self._packed is None or not self._packed[0].still_of(self.weight):
            self._packed = Fingerprint(self.weight), _pack(self.weight)
        return self._packed[1]

    def _multiplies(self, x: Tensor) -> bool:
        return not (
            x.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or x.device.type != "cpu"
            or x.numel() < MIN_ROWS * self.in_features
            or torch.is_autocast_enabled("cpu")
        )


class OneDnnLinearGelu(OneDnnLinear):
    """A linear layer and the GELU behind it."""

    def forward(self, input: Float[Tensor, "*X D_in"]) -> Float[Tensor, "*X D_out"]:  # noqa: A002
        """``GELU(x W^T + b)``; in one go where no gradient asks for what lies between."""
        wanted = wants_gradient(input, self.weight, self.bias)
        if wanted or not self._multiplies(input):
            return functional.gelu(super().forward(input))
        return _product(input, self._laid_out(), self.bias, "gelu")


_BEFORE_GELU = (("fc1", "activation_fn"), ("up", "activation"))
"""How feed-forward modules name a linear layer and what follows it: transformers' vision encoders,
and the Q-Former."""


def _is_gelu(activation: nn.Module | None) -> bool:
    """Whether it is the exact one, by the error function."""
    if isinstance(activation, GELUActivation):
        return activation.act is functional.gelu
    return isinstance(activation, nn.GELU) and activation.approximate == "none"


def _product(
    left: Tensor, right_transposed: Tensor, bias: Tensor | None = None, then: str = "none"
) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return multiply(left, right_transposed, bias, then, [], "none")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (
            None if weight is None else _product(grad, weight.t()),
            None if x is None else _product(rows.t(), x.flatten(0, -2).t()),
            rows.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )
