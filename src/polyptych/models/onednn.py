"""Linear layers multiplied by oneDNN on a CPU: twice as fast where MKL runs below its best.

PyTorch gives float32 products to MKL, which leaves the wide vector units of processors of other
makers than its own unused; oneDNN, which is in every PyTorch build for x86, uses them. Measured on
an AMD EPYC with AVX-512: 200 instead of 95 GFLOP/s on one thread. The sums run in another order, so
results differ by float32 rounding (relative error of about 1e-7), as they do between machines. On
one machine every run makes the same choice, so that runs repeat exactly.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

MIN_ROWS = 8
"""Below this many rows (a decoding step), setting up the product costs more than it gains."""


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
    """Let the linear layers of ``model`` multiply by oneDNN, forward and backward.

    Weights, names and checkpoints stay as they are. Inputs that are not float32 on a CPU, and
    those of very few rows, take the usual way.

    Returns:
        The number of layers changed; 0 where oneDNN is not available.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    if not is_available():
        return 0
    for layer in layers:
        layer.__class__ = OneDnnLinear
    return len(layers)


class OneDnnLinear(nn.Linear):
    """``nn.Linear`` by another library."""

    def forward(self, input: Float[Tensor, "*X D_in"]) -> Float[Tensor, "*X D_out"]:  # noqa: A002
        """``x W^T + b``."""
        if (
            input.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or input.device.type != "cpu"
            or input.numel() < MIN_ROWS * self.in_features
            or torch.is_autocast_enabled("cpu")
        ):
            return functional.linear(input, self.weight, self.bias)
        return _Linear.apply(input, self.weight, self.bias)


def _product(left: Tensor, right_transposed: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right_transposed, bias, "none", [], "")


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
