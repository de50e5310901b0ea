"""Which of two texts a model thinks likelier: an answer that needs no writing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polyptych.data.collation import SupportsFeatures
from polyptych.errors import PolyptychError
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import Example, Prediction, PreferencePair
from polyptych.training.branching import scored_logits
from polyptych.training.dpo import answer_log_probs
from polyptych.training.preference_data import PreferenceCollator

BATCH = 32


@torch.inference_mode()
def prefer(
    model: Any,
    processor: PolyptychProcessor,
    examples: Sequence[Example],
    features: SupportsFeatures | None,
) -> list[Prediction]:
    """The likelier of each example's two choices: the sum over its tokens, as tuning compares them.

    Raises:
        PolyptychError: For an example with another number of choices, or whose prompt leaves no
            room.
    """
    pairs = [_pair(example) for example in examples]
    collate = PreferenceCollator(processor, pairs, features=features)
    model.eval()
    predictions = []
    for start in range(0, len(pairs), BATCH):
        part = range(start, min(start + BATCH, len(pairs)))
        batch = collate([{"index": index} for index in part])
        first, second = answer_log_probs(
            scored_logits(model, batch),
            batch["scored_targets"],
            batch["scored_answers"],
            len(part),
        )
        for index, place in zip(part, (second > first).long().tolist(), strict=True):
            example = examples[index]
            predictions.append(Prediction(example.id, example.choices[place], example.references))
    return predictions


def _pair(example: Example) -> PreferencePair:
    if len(example.choices) != 2:
        raise PolyptychError(
            f"example {example.id!r} has {len(example.choices)} choices, expected 2"
        )
    first, second = example.choices
    return PreferencePair(example.id, example.prompt, first, second, images=example.images)
