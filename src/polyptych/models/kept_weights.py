"""Noticing that weights have changed, so that what was made of them can be kept until then."""

from __future__ import annotations

import torch
from torch import Tensor

_COMPARED = 61
"""Numbers of each weight that are compared."""


class Fingerprint:
    """What some weights were when something was made of them.

    PyTorch counts changes, but not those that are made through ``.data``, as when an adapter is
    merged. Such a change is dense, so that a few numbers give it away. A look takes microseconds.

    Args:
        weights: None stands for a bias that is not there.
    """

    def __init__(self, *weights: Tensor | None) -> None:
        self._seen = [None if weight is None else _look(weight) for weight in weights]

    def still_of(self, *weights: Tensor | None) -> bool:
        """Whether these are the same weights as then, unchanged."""
        return len(weights) == len(self._seen) and all(
            seen is weight is None
            if seen is None or weight is None
            else seen[:2] == (weight.data_ptr(), _changes(weight))
            and torch.equal(seen[2], _some_of(weight))
            for seen, weight in zip(self._seen, weights, strict=True)
        )


def _look(weight: Tensor) -> tuple[int, int, Tensor]:
    return weight.data_ptr(), _changes(weight), _some_of(weight).clone()


def _changes(weight: Tensor) -> int:
    """How often it was changed; inference tensors do not count."""
    return -1 if weight.is_inference() else weight._version


def _some_of(weight: Tensor) -> Tensor:
    return weight.detach().flatten()[:: max(1, weight.numel() // _COMPARED)]
