"""The two flavours over a task's answers: ``demon[released]`` and ``demon[fixed]``, always both."""

from __future__ import annotations

from collections.abc import Sequence

from polyptych.evaluation.demon import fixed, released
from polyptych.evaluation.demon.catalog import Dataset
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.schema import Example, Prediction

RELEASED, FIXED = "demon[released]", "demon[fixed]"


def demon_scorer(dataset: Dataset) -> Scorer:
    """A scorer of one task.

    Where the published script stops at some answer, it writes no score for the whole task. Then
    ``demon[released]`` is left out, too, and :func:`released_crash` tells why.
    """

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        mended = [
            fixed.score_item(dataset.rule, prediction.text, example.references[0], example.choices)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        measurements = [mean_of(FIXED, ids, mended)]
        values = _released_values(dataset, examples, predictions)
        if not isinstance(values, str):
            measurements.insert(0, mean_of(RELEASED, ids, values))
        return measurements

    return score


def released_crash(
    dataset: Dataset, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> str | None:
    """Where and how the published script stops at these answers; None if it does not."""
    values = _released_values(dataset, examples, predictions)
    return values if isinstance(values, str) else None


def _released_values(
    dataset: Dataset, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[float] | str:
    """Values of all items, or what stops the published script."""
    values = []
    for example, prediction in zip(examples, predictions, strict=True):
        try:
            value = released.score_item(
                dataset.released_rule, prediction.text, example.references[0], example.choices
            )
        except released.ReleasedCrash as crash:
            return f"{example.id}: {crash}"
        values.append(value)
    return values
