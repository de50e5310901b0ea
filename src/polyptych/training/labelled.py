"""Logits where a token is labelled, and nowhere else.

Of a row of images with a question most positions predict nothing that counts, while a vocabulary is
many times as wide as a state: 4,000 positions of a vocabulary of 150,000 are 2.4 GB in float32, and
the loss holds them three times. Nothing here knows of a model's family.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from polyptych.schema import IGNORE_INDEX


@contextmanager
def chosen_states(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside, the head multiplies only the states (K, D) at these places of (B, T, D)."""

    def choose(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns],)

    hook = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def predicting(labels: Int[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
    """Rows and columns of the positions whose next token is labelled."""
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    return rows, columns


def labelled_loss(
    outputs: Any, labels: Int[Tensor, "B T"], num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Next-token cross-entropy in float32, as ``compute_loss_func`` of transformers' Trainer.

    Args:
        outputs: With logits (K, V) of the :func:`predicting` positions.
        labels: Of all positions; the first token is never predicted.
        num_items_in_batch: Labels of the whole optimizer step; None: the mean of these.
    """
    targets = labels[:, 1:][predicting(labels)]
    total = cross_entropy(outputs.logits.float(), targets, reduction="sum")
    count = max(1, len(targets)) if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device)


def adds_to_the_loss(model: Any) -> bool:
    """Whether a model's own loss is more than that of its words: experts kept equally busy."""
    configs = (model.config, model.config.get_text_config())
    return any(getattr(config, "output_router_logits", False) for config in configs)
