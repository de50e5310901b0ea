"""Numbers by group: the accuracy of each, and the mean over groups that counts all groups alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from polyptych.evaluation.scorers import Measurement, mean_of
from polyptych.evaluation.statistics import Array, ratio


def numbered(names: Iterable[str]) -> list[int]:
    """Each name's number in the order of first appearance."""
    seen: dict[str, int] = {}
    return [seen.setdefault(name, len(seen)) for name in names]


def by_group(
    stem: str, flavor: str, ids: Sequence[str], values: Sequence[float], groups: Sequence[str]
) -> list[Measurement]:
    """``STEM.GROUP[FLAVOR]``, the mean over the items of each group."""
    return [
        mean_of(
            f"{stem}.{group}[{flavor}]",
            ids,
            [v if own == group else None for v, own in zip(values, groups, strict=True)],
        )
        for group in dict.fromkeys(groups)
    ]


def mean_over_groups(
    name: str,
    ids: Sequence[str],
    values: Sequence[float],
    groups: Sequence[str],
    weights: Mapping[str, float] | None = None,
) -> Measurement:
    """The weighted mean of the groups' means, whatever their sizes.

    Args:
        name: Of the measurement, with flavor.
        ids: The items' ids.
        values: One value per item.
        groups: Each item's group.
        weights: Of the groups; default: all alike. They need not add up to one. A group that a
            resample does not draw from leaves its weight to the others.
    """
    places = numbered(groups)
    names = list(dict.fromkeys(groups))
    own_weights = np.asarray([1.0 if weights is None else weights[group] for group in names])
    columns = np.zeros((len(ids), len(names), 2))
    columns[np.arange(len(ids)), places] = [(float(value), 1.0) for value in values]

    def aggregate(sums: Array) -> Array:
        means = ratio(sums.reshape(*sums.shape[:-1], len(names), 2))
        drawn = ~np.isnan(means)
        total = np.where(drawn, means, 0) @ own_weights
        return ratio(np.stack([total, drawn @ own_weights], axis=-1))

    return Measurement(name, tuple(ids), columns.reshape(len(ids), -1), aggregate, per_item=False)
