"""From answers to numbers: item statistics first, so that every number gets an interval.

A *scorer* is a pure function of examples and predictions. It returns *measurements*: a metric and
one row of statistics per item. A measurement becomes an :class:`Estimate` (the score of the whole
set with its bootstrap interval), and two of them, on the same items, a paired comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyptych.errors import PolyptychError
from polyptych.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Aggregate,
    Array,
    Difference,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
    ratio,
)
from polyptych.schema import Example, Prediction, Score


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its flavour, and how it follows from the items."""

    name: str
    """With flavour: ``cider[coco]``."""
    aggregate: Aggregate = ratio
    """Summed item statistics to the value."""
    per_item: bool = True
    """Whether one item alone has a meaningful value (not so for BLEU)."""
    higher_is_better: bool = True
    """False for error rates."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric's statistics over a set of predictions."""

    metric: Metric
    ids: tuple[str, ...]
    statistics: Array
    """(n, S), one row per id."""


@dataclass(frozen=True, slots=True)
class Estimate(Score):
    """A score with its bootstrap interval."""

    interval: Interval = Interval(float("nan"), float("nan"))


Scorer = Callable[[Sequence[Example], Sequence[Prediction]], list[Measurement]]
"""Examples and their predictions, in the same order, to measurements."""

ItemJudge = Callable[[str, Mapping[str, Any]], float | bool | None]
"""An answer and the example's metadata to a value; None where the item does not count."""


def match(examples: Sequence[Example], predictions: Iterable[Prediction]) -> list[Prediction]:
    """Predictions in the order of the examples.

    Raises:
        PolyptychError: For missing, unknown or repeated ids: a score is never a silent average over
            fewer items.
    """
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.id in found:
            raise PolyptychError(f"two predictions have the id {prediction.id!r}")
        found[prediction.id] = prediction
    wanted = {example.id for example in examples}
    missing = [example.id for example in examples if example.id not in found]
    unknown = [identity for identity in found if identity not in wanted]
    if missing:
        raise PolyptychError(
            f"{len(missing)} of {len(examples)} examples have no prediction, first {missing[0]!r}"
        )
    if unknown:
        raise PolyptychError(
            f"{len(unknown)} of {len(found)} predictions are for unknown examples, "
            f"first {unknown[0]!r}"
        )
    return [found[example.id] for example in examples]


def measure(
    scorers: Iterable[Scorer], examples: Sequence[Example], predictions: Iterable[Prediction]
) -> list[Measurement]:
    """Run all scorers.

    Raises:
        PolyptychError: If the ids of predictions and examples differ.
    """
    matched = match(examples, predictions)
    return [item for scorer in scorers for item in scorer(examples, matched)]


def estimate(
    measurement: Measurement,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """The value over the whole set, its interval, and each item's own value where it has one."""
    metric, statistics = measurement.metric, measurement.statistics
    per_item = None
    if metric.per_item:
        values = metric.aggregate(statistics)
        pairs = zip(measurement.ids, values.tolist(), strict=True)
        per_item = {identity: value for identity, value in pairs if not np.isnan(value)}
    return Estimate(
        name=metric.name,
        value=float(metric.aggregate(statistics.sum(0))),
        count=len(measurement.ids) if per_item is None else len(per_item),
        per_item=per_item,
        interval=bootstrap_interval(
            statistics, metric.aggregate, resamples=resamples, confidence=confidence, seed=seed
        ),
    )


def compare(
    first: Measurement,
    second: Measurement,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """First minus second, on the same items.

    Raises:
        PolyptychError: If the two measure different things or different items.
    """
    if first.metric.name != second.metric.name:
        raise PolyptychError(f"cannot compare {first.metric.name} with {second.metric.name}")
    if first.ids != second.ids:
        raise PolyptychError(
            f"{first.metric.name}: the two systems answered different items "
            f"({len(first.ids)} and {len(second.ids)})"
        )
    return paired_bootstrap(
        first.statistics,
        second.statistics,
        first.metric.aggregate,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def item_scorer(name: str, judge: ItemJudge) -> Scorer:
    """A scorer that takes the mean of one value per item."""

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        values = [
            judge(prediction.text, example.metadata)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        return [mean_of(Metric(name), [e.id for e in examples], values)]

    return score


def mean_of(
    metric: Metric, ids: Iterable[str], values: Iterable[float | bool | None]
) -> Measurement:
    """A measurement whose value is the mean over the items that have one."""
    rows = [(0.0, 0.0) if value is None else (float(value), 1.0) for value in values]
    return Measurement(metric, tuple(ids), np.asarray(rows, dtype=np.float64).reshape(-1, 2))
