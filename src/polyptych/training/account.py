"""What a run learns from, counted before it starts: the first lines of every run.

The most repeated question about multimodal training is whether the images were used at all. The
first answer is to count them; the second is in :mod:`polyptych.training.validation`: the loss with
the images of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polyptych.data.dataset import Examples
from polyptych.data.shards import ShardedExamples
from polyptych.errors import PolyptychError
from polyptych.schema import IGNORE_INDEX

COUNTED = 2000
"""Examples that are counted, shared by the sets (evenly spread, or the first of a sharded set); of
more the counts are estimates."""


@dataclass
class DataAccount:
    """Counts over the training sets; also written to ``data.json``."""

    examples: int = 0
    images: int = 0
    without_images: int = 0
    """Examples that have none."""
    visual_tokens: int = 0
    supervised_tokens: int = 0
    """Positions with a label: what the loss is over."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> records that are left out."""
    estimated: bool = False
    """Whether the counts (but for the examples) are of a sample, scaled up."""

    def lines(self) -> list[str]:
        """What is printed."""
        about = "about " if self.estimated else ""
        said = [
            f"  learns from {self.examples:,} examples with {about}{self.images:,} images "
            f"({about}{self.without_images:,} without any), {about}{self.visual_tokens:,} visual "
            f"tokens, {about}{self.supervised_tokens:,} supervised tokens"
        ]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        said.append(
            f"  dropped {sum(self.dropped.values()):,} records{': ' * bool(reasons)}{reasons}"
        )
        return said


def count_data(sets: Sequence[Examples], processor: Any, dropped: Counter[str]) -> DataAccount:
    """Count what the sets hold, as this processor makes rows of it.

    Args:
        sets: The training sets.
        processor: The model's.
        dropped: Reason -> records that were left out of them.

    Raises:
        PolyptychError: If no example of any set has an image.
    """
    account = DataAccount(dropped=dict(dropped))
    counted = max(1, COUNTED // max(len(sets), 1))
    for examples in sets:
        account.examples += len(examples)
        step = max(1, -(-len(examples) // counted))
        sample = range(0, len(examples), step)
        if isinstance(examples, ShardedExamples):  # from few shards: the others may be far away
            sample = range(min(len(examples), counted))
        account.estimated |= len(sample) < len(examples)
        scale = len(examples) / max(len(sample), 1)
        images = without = visual = supervised = 0
        for index in sample:
            row = processor.encode(examples.example(index), with_target=True)
            images += row.image_count
            without += row.image_count == 0
            visual += sum(token == processor.image_token_id for token in row.input_ids)
            supervised += sum(label != IGNORE_INDEX for label in row.labels)
        account.images += round(scale * images)
        account.without_images += round(scale * without)
        account.visual_tokens += round(scale * visual)
        account.supervised_tokens += round(scale * supervised)
    if account.images == 0 and not any(map(_has_images, sets)):
        raise PolyptychError(
            f"0 images in all {account.examples} records to learn from: an image model would learn "
            "to ignore images; look at the records with: polyptych data show FILE"
        )
    return account


def _has_images(examples: Examples) -> bool:
    return any(examples.example(index).images for index in range(len(examples)))
