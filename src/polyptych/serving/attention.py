"""Where a model looked while it read an example's pictures: attention of queries over patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyptych.evaluation.local_model import model_inputs
from polyptych.schema import Example

Grid = NDArray[np.float32]
"""(rows, columns) of patches, each the share of attention it received."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Attention over the patches of an example's pictures, one grid per picture, in order."""

    own: tuple[Grid, ...]
    """While the picture itself was read (last layer that looks at pixels); each sums to 1."""
    from_others: tuple[Grid, ...] = ()
    """What the guidance looked at in this picture while the *other* pictures were read (mean over
    them; all pictures together sum to 1). Empty without guidance, or for a lone picture."""


@torch.inference_mode()
def looks(
    model: Any, processor: Any, examples: Sequence[Example], batch_size: int = 16
) -> list[Looks]:
    """Read the examples once more, this time keeping the attention.

    The class token, where the vision encoder has one, is left out of the grids.
    """
    found: list[Looks] = []
    for start in range(0, len(examples), batch_size):
        batch = model_inputs(model, processor, examples[start : start + batch_size])
        record = model(**batch, return_intermediates=True, logits_to_keep=1).intermediates
        found += _split(record, batch["image_counts"].tolist())
    return found


def _split(record: dict[str, torch.Tensor], image_counts: list[int]) -> list[Looks]:
    """The flat attention of a batch, example by example."""
    own = _last_layer(record, "attention.layer.")
    context = _last_layer(record, "context.attention.layer.")
    received = None
    if context is not None:
        # Slot j of guided image g is image places[g, j]; the guided image itself got no attention.
        received = torch.zeros_like(context[0, 0]).repeat(sum(image_counts), 1)
        places = record["context.images"].flatten()
        received = received.index_add(0, places, context.flatten(0, 1))
    result: list[Looks] = []
    first = 0
    for count in image_counts:
        images = range(first, first + count)
        first += count
        grids = tuple(_grid(own[i]) for i in images) if own is not None else ()
        others: tuple[Grid, ...] = ()
        if received is not None and count > 1:
            others = tuple(_grid(received[i] / count) for i in images)
        result.append(Looks(grids, others))
    return result


def _last_layer(record: dict[str, torch.Tensor], prefix: str) -> torch.Tensor | None:
    layers = [name for name in record if name.startswith(prefix)]
    if not layers:
        return None
    return record[max(layers, key=lambda name: int(name.removeprefix(prefix)))]


def _grid(attention: torch.Tensor) -> Grid:
    side = isqrt(len(attention))
    patches = attention[len(attention) - side * side :]
    return patches.reshape(side, side).float().cpu().numpy()
