"""How sure a number is: bootstrap over items, for one system and for two on the same items.

A metric is written as a function of *summed item statistics*: a mean is (sum of values) / (number
of values), BLEU a function of summed n-gram counts, F1 of summed true and false positives. Drawing
items with replacement then means adding up rows, and one code serves every metric:

- mean of item values (accuracy, ROUGE-L): rows ``(value, 1)``;
- corpus CIDEr: its document frequencies come from the references alone, so the corpus value is the
  mean of the items' values and rows are ``(value, 1)``, too (frequencies stay those of the full
  set in every resample);
- BLEU: matches and totals per n-gram order and both lengths.

Percentile intervals (Efron and Tibshirani 1993); paired resampling (Koehn 2004). Where several
items belong together (questions about one image), whole clusters are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Aggregate = Callable[[Array], Array]
"""Summed statistics (..., S) to the metric's value (...)."""

RESAMPLES = 2000
CONFIDENCE = 0.95

_ROWS_AT_ONCE = 1 << 22
"""Item rows gathered in one step; bounds memory, changes no number."""

_MANY = 10_000
"""Rows from which on equal ones are drawn together; accuracies have two different ones."""

_MOST_DISTINCT = 0.05
"""Share of different rows up to which that is worth it."""


class Interval(NamedTuple):
    """A confidence interval, in the metric's own unit."""

    low: float
    high: float


class Difference(NamedTuple):
    """How much better the first of two systems is, measured on the same items.

    Attributes:
        value: First minus second.
        interval: Percentile interval of the difference.
        p_value: Two-sided: twice the smaller share of resamples on either side of zero, where ties
            count on both sides; never below 1 / (resamples + 1). NaN where one of the two has no
            value.
    """

    value: float
    interval: Interval
    p_value: float


def ratio(sums: Array) -> Array:
    """(..., 2) sums of values and of weights to their quotient; NaN without any weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def bootstrap_interval(
    statistics: Array,
    aggregate: Aggregate = ratio,
    *,
    clusters: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of ``aggregate(statistics.sum(0))``.

    Args:
        statistics: (n, S), one row per item.
        aggregate: The metric as a function of summed rows.
        clusters: For each item, what it belongs to; items of one cluster are drawn together.
        resamples: Number of draws.
        confidence: Share of resamples inside the interval.
        seed: Equal seeds draw equal items.

    Returns:
        Bounds; NaN for no items.
    """
    values = aggregate(_resampled_sums(_cluster(statistics, clusters), resamples, seed))
    return _percentiles(values, confidence)


def paired_bootstrap(
    first: Array,
    second: Array,
    aggregate: Aggregate = ratio,
    *,
    clusters: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """Compare two systems on the same items: both are resampled with the same draws.

    Args:
        first: (n, S) statistics of the first system.
        second: (n, S) statistics of the second, in the same order of items.
        aggregate: The metric as a function of summed rows.
        clusters: As for :func:`bootstrap_interval`.
        resamples: Number of draws.
        confidence: Share of resamples inside the interval.
        seed: Equal seeds draw equal items.

    Raises:
        ValueError: If the two do not have the same shape.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired systems differ in shape: {first.shape} and {second.shape}")
    both = _cluster(np.concatenate([first, second], axis=1), clusters)
    sums = _resampled_sums(both, resamples, seed)
    width = first.shape[1]
    differences = aggregate(sums[:, :width]) - aggregate(sums[:, width:])
    value = float(aggregate(first.sum(0)) - aggregate(second.sum(0)))
    return Difference(value, _percentiles(differences, confidence), _p_value(value, differences))


def _p_value(value: float, differences: Array) -> float:
    """As :attr:`Difference.p_value`, over the resamples that have a difference at all."""
    found = differences[np.isfinite(differences)]
    if np.isnan(value) or not len(found):
        return float("nan")
    tail = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return min(1.0, max(2 * tail, 1) / (len(found) + 1))


def _cluster(statistics: Array, clusters: Sequence[object] | None) -> Array:
    """(n, S) items to (m, S) sums per cluster, in order of first appearance."""
    if clusters is None:
        return statistics
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(numbers), statistics.shape[1]))
    np.add.at(sums, [numbers[cluster] for cluster in clusters], statistics)
    return sums


def _resampled_sums(rows: Array, resamples: int, seed: int) -> Array:
    """(resamples, S): each the sum of as many rows as there are, drawn with replacement."""
    generator = np.random.default_rng(seed)
    count = len(rows)
    if count >= _MANY:
        distinct, times = _distinct(rows)
        if len(distinct) <= count * _MOST_DISTINCT:
            # How often each of the equal rows is drawn is multinomial: the same distribution.
            return generator.multinomial(count, times / count, size=resamples) @ distinct
    sums = np.zeros((resamples, rows.shape[1]))
    step = max(1, _ROWS_AT_ONCE // max(1, count))
    for start in range(0, resamples if count else 0, step):
        stop = min(start + step, resamples)
        drawn = generator.integers(count, size=(stop - start, count))
        for column in range(rows.shape[1]):
            sums[start:stop, column] = rows[:, column][drawn].sum(axis=1)
    return sums


def _distinct(rows: Array) -> tuple[Array, Array]:
    """The different rows, and how often each occurs."""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1])))
    _, first, times = np.unique(whole.ravel(), return_index=True, return_counts=True)
    return rows[first], times.astype(np.float64)


def _percentiles(values: Array, confidence: float) -> Interval:
    if not np.isfinite(values).any():
        return Interval(float("nan"), float("nan"))
    tail = 100 * (1 - confidence) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
