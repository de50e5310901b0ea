"""The layer through which a method joins a trained model without changing it at first."""

from __future__ import annotations

from torch import nn


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, also after transformers' own initialization."""

    def reset_parameters(self) -> None:
        """Zero, so that training starts from the base model."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
