"""From answers to numbers: item statistics first, so that every number gets an interval.

A *scorer* is a pure function of examples and predictions. It returns *measurements*: a metric's
name and one row of statistics per item. A measurement becomes an :class:`Estimate` (the score of
the whole set with its bootstrap interval), and two of them, on the same items, a comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyptych.errors import PolyptychError
from polyptych.evaluation.metrics import METRICS, prepare, resolve
from polyptych.evaluation.metrics.bleu import (
    bleu_of_counts,
    candidate_ngrams,
    clipped_matches,
    closest_reference_lengths,
)
from polyptych.evaluation.metrics.ngrams import MAX_ORDER, Corpus
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
class Measurement:
    """One metric over a set of predictions, as sums of item statistics."""

    name: str
    """With flavour: ``cider[coco]``."""
    ids: tuple[str, ...]
    statistics: Array
    """(n, S), one row per id."""
    aggregate: Aggregate = ratio
    """Summed rows to the metric's value."""
    per_item: bool = True
    """Whether one item alone has a meaningful value (not so for BLEU)."""


@dataclass(frozen=True, slots=True)
class Estimate(Score):
    """A score with its bootstrap interval."""

    interval: Interval = field(kw_only=True)


Scorer = Callable[[Sequence[Example], Sequence[Prediction]], list[Measurement]]
"""Examples and their predictions, in the same order, to measurements."""

ItemJudge = Callable[[str, Mapping[str, Any]], float | bool | None]
"""An answer and the example's metadata to a value; None where the item does not count."""


def accepted_answers(example: Example) -> tuple[str, ...]:
    """The references; where a format knows none (LLaVA's), the answer that stands in the record."""
    if example.references or example.target is None:
        return example.references
    return (example.target,)


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


def image_clusters(examples: Iterable[Example]) -> dict[str, Hashable]:
    """What each example's id is drawn with: all examples of the same images are one cluster.

    Examples without an image stand for themselves.
    """
    return {
        example.id: tuple(
            image.path or hashlib.sha256(image.data or b"").hexdigest() for image in example.images
        )
        or (example.id, "no image")
        for example in examples
    }


def _clusters_for(
    measurement: Measurement, clusters: Mapping[str, Hashable] | None
) -> list[Hashable] | None:
    """Clusters of a measurement's rows; None where a row is no example (both questions of one)."""
    if clusters is None or not all(identity in clusters for identity in measurement.ids):
        return None
    return [clusters[identity] for identity in measurement.ids]


def estimate(
    measurement: Measurement,
    *,
    clusters: Mapping[str, Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """The value over the whole set, its interval, and each item's own value where it has one.

    Args:
        measurement: Item statistics.
        clusters: What the items' ids are drawn with; see :func:`image_clusters`.
        resamples: Draws of the bootstrap.
        confidence: Share of draws inside the interval.
        seed: Equal seeds draw equal items.
    """
    statistics, aggregate = measurement.statistics, measurement.aggregate
    per_item = None
    if measurement.per_item:
        values = aggregate(statistics)
        pairs = zip(measurement.ids, values.tolist(), strict=True)
        per_item = {identity: value for identity, value in pairs if not np.isnan(value)}
    return Estimate(
        name=measurement.name,
        value=float(aggregate(statistics.sum(0))),
        count=len(measurement.ids) if per_item is None else len(per_item),
        per_item=per_item,
        interval=bootstrap_interval(
            statistics,
            aggregate,
            clusters=_clusters_for(measurement, clusters),
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        ),
    )


def compare(
    first: Measurement,
    second: Measurement,
    *,
    clusters: Mapping[str, Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """First minus second, on the same items; arguments as for :func:`estimate`.

    Raises:
        PolyptychError: If the two measure different things or different items.
    """
    if first.name != second.name:
        raise PolyptychError(f"cannot compare {first.name} with {second.name}")
    if first.ids != second.ids:
        raise PolyptychError(
            f"{first.name}: the two systems answered different items "
            f"({len(first.ids)} and {len(second.ids)})"
        )
    return paired_bootstrap(
        first.statistics,
        second.statistics,
        first.aggregate,
        clusters=_clusters_for(first, clusters),
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
        return [mean_of(name, [e.id for e in examples], values)]

    return score


def caption_scorer(*names: str) -> Scorer:
    """A scorer of captions against references.

    Args:
        *names: As :func:`polyptych.evaluation.metrics.resolve` understands them: ``cider``,
            ``rouge_l[sam]``, ``bleu_4``.
    """
    full_names = [full for name in names for full in resolve(name)]

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        answers = [prediction.text for prediction in predictions]
        references = [accepted_answers(example) for example in examples]
        counted: dict[int, Array] = {}  # BLEU-1 to BLEU-4 of a flavor are made of the same counts
        measured = []
        for name, corpus in prepare(full_names, answers, references, ids).items():
            if not name.startswith("bleu_"):
                values = METRICS[name].score(corpus)[1].tolist()
                measured.append(mean_of(name, ids, values))
                continue
            if id(corpus) not in counted:
                counted[id(corpus)] = _bleu_counts(corpus)
            measured.append(_measure_bleu(name, ids, counted[id(corpus)]))
        return measured

    return score


def _bleu_counts(corpus: Corpus) -> Array:
    """(n, 10) counts of each item: matches (4), n-grams (4), two lengths."""
    lengths = [corpus.candidate_lengths, closest_reference_lengths(corpus)]
    columns = [*clipped_matches(corpus), *candidate_ngrams(corpus), *lengths]
    return np.stack(columns, axis=1).astype(np.float64)


def _measure_bleu(name: str, ids: Sequence[str], counts_of_items: Array) -> Measurement:
    """BLEU-n as a function of summed counts."""
    order = int(name.split("_")[1][0])

    def aggregate(sums: Array) -> Array:
        counts = np.moveaxis(sums, -1, 0).astype(np.int64)
        matches, ngrams, (length, reference_length) = np.split(counts, [MAX_ORDER, 2 * MAX_ORDER])
        return bleu_of_counts(matches[:order], ngrams[:order], length, reference_length)

    return Measurement(name, tuple(ids), counts_of_items, aggregate, per_item=False)


def mean_of(name: str, ids: Iterable[str], values: Iterable[float | bool | None]) -> Measurement:
    """A measurement whose value is the mean over the items that have one."""
    rows = [(0.0, 0.0) if value is None else (float(value), 1.0) for value in values]
    return Measurement(name, tuple(ids), np.asarray(rows, dtype=np.float64).reshape(-1, 2))
