"""From runs to claims: means over seeds, intervals, and paired comparisons with the baseline.

Two kinds of uncertainty, both given:

- over *seeds*: Student's t interval of the mean of the runs, and of the mean of the differences
  between two variants of equal seed (same data order, same start);
- over *test items*: paired bootstrap (Koehn 2004) of the difference, each item's value averaged
  over the seeds first. Corpus CIDEr is the mean of its items' values, so it can be resampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.evaluation.statistics import paired_bootstrap

_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""


def mean_interval(values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with its 95 % t interval (NaN bounds for a single seed)."""
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return {"mean": mean, "low": float("nan"), "high": float("nan"), "seeds": count}
    half = _T_95.get(count - 1, 1.96) * float(np.std(values, ddof=1)) / count**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}


def summarize(
    runs: Sequence[dict[str, Any]],
    headline: Mapping[str, Sequence[str]],
    baseline: str,
    root: Path,
    also: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """``{condition: {task: {metric: {variant: {...}}}}}`` over the finished, tested runs.

    Args:
        runs: Records of the results file.
        headline: The metrics wanted of each task.
        baseline: The variant that all others are compared with.
        root: The working folder; where runs have an ``items.json`` the bootstrap is added.
        also: Variant -> further variants that it is compared with, under ``over``.
    """
    also = also or {}
    tested = [run for run in runs if run["purpose"] not in ("first", "grid")]
    summary: dict[str, Any] = {}
    for condition in sorted({_condition(run) for run in tested}):
        group = [run for run in tested if _condition(run) == condition]
        summary[condition] = {
            task: {
                metric: {
                    variant: _row(
                        group, variant, (baseline, *also.get(variant, ())), task, metric, root
                    )
                    for variant in sorted({run["variant"] for run in group})
                }
                for metric in metrics
            }
            for task, metrics in headline.items()
        }
    return summary


def _condition(run: dict[str, Any]) -> str:
    """The name of a run's condition, with which the run's own name begins."""
    return run["name"].partition("-")[0]


def _row(
    group: Sequence[dict[str, Any]],
    variant: str,
    references: Sequence[str],
    task: str,
    metric: str,
    root: Path,
) -> dict[str, Any]:
    """Mean of a variant; its gain over the first reference, and over the others."""
    own = _by_seed(group, variant)
    row: dict[str, Any] = mean_interval([run["tasks"][task][metric] for run in own.values()])
    for place, reference in enumerate(references):
        gain = _gain(own, _by_seed(group, reference), task, metric, root)
        if reference == variant or gain is None:
            continue
        if place == 0:
            row |= gain
        else:
            row.setdefault("over", {})[reference] = gain
    return row


def _by_seed(group: Sequence[dict[str, Any]], variant: str) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in group if run["variant"] == variant}


def _gain(
    own: dict[int, Any], base: dict[int, Any], task: str, metric: str, root: Path
) -> dict[str, Any] | None:
    """What equal seeds differ in; None where they share no seed."""
    shared = sorted(own.keys() & base.keys())
    if not shared:
        return None
    values = {seed: own[seed]["tasks"][task][metric] for seed in shared}
    before = {seed: base[seed]["tasks"][task][metric] for seed in shared}
    found: dict[str, Any] = {
        "gain": mean_interval([values[seed] - before[seed] for seed in shared])
    }
    reference = float(np.mean(list(before.values())))
    if reference:
        found["relative_gain_percent"] = {
            key: 100 * found["gain"][key] / reference for key in ("mean", "low", "high")
        }
    bootstrap = _paired(own, base, shared, task, metric, root)
    if bootstrap:
        found["paired_bootstrap"] = bootstrap
    return found


def _paired(
    own: dict[int, Any], base: dict[int, Any], seeds: list[int], task: str, metric: str, root: Path
) -> dict[str, float] | None:
    first = _items(own, seeds, task, metric, root)
    second = _items(base, seeds, task, metric, root)
    if first is None or second is None:
        return None
    ones = np.ones(len(first))
    found = paired_bootstrap(np.stack([first, ones], 1), np.stack([second, ones], 1))
    return {
        "difference": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "p": found.p_value,
        "items": len(first),
    }


def _items(
    runs: dict[int, Any], seeds: list[int], task: str, metric: str, root: Path
) -> np.ndarray | None:
    """Item values averaged over seeds, or None where the metric has none or the files are gone."""
    rows = []
    for seed in seeds:
        path = root / "runs" / runs[seed]["name"] / "items.json"
        if not path.exists():
            return None
        items = json.loads(path.read_text())[task].get(metric)
        if items is None:
            return None
        rows.append([items[key] for key in sorted(items)])
    return np.mean(rows, axis=0)
