"""Where a model computes when a harness does not say."""

from __future__ import annotations


def best_device() -> str:
    """A GPU if there is one: the process's own, for harnesses that start one process for each."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
