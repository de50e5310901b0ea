"""What papers print for these benchmarks, in their own units; shown beside our numbers.

Copied from CaMML's repository, SIMA's and Cheetah's papers. SIMA's first row repeats LLaVA-1.5-7B,
with other numbers than its model zoo for MME and MM-Vet; both are kept, each with its source. SAM's
table could not be had, so there is no row of it. DEMON's rows are in
:mod:`polyptych.evaluation.demon.published`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """What one source prints for one model."""

    model: str
    source: str
    values: Mapping[str, Mapping[str, float]]
    """Task to metric (without flavor) to its value: percent, or MME's points."""


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All rows, in the order of their sources."""
    resource = files("polyptych.evaluation").joinpath("published.json")
    return tuple(PublishedRow(**row) for row in json.loads(resource.read_text(encoding="utf-8")))


def published_for(task: str, metric: str) -> list[tuple[PublishedRow, float]]:
    """Rows that have a number for one metric of one task.

    Args:
        task: A benchmark's name.
        metric: Without flavor: ``mean_f1``.
    """
    return [
        (row, row.values[task][metric])
        for row in published_rows()
        if metric in row.values.get(task, {})
    ]
