"""The published results: 11 models on 7 categories and 29 tasks, and the ablation, in percent.

Printed numbers, unchanged. Where a category is not the mean of its tasks (BLIP-2 on Visual
Storytelling: 21.31 and 22.97) the paper contradicts itself; all others agree within 0.03. The
repository's own table has another BLIP-2 row (11.96, 20.10, 3.67, 18.25, 39.73, 30.53, 39.53).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """What is printed for one model."""

    name: str
    categories: Mapping[str, float]
    """Category to its score."""
    datasets: Mapping[str, float] = field(default_factory=dict)
    """Task to its score; empty for the ablation, which is printed by category only."""


def published_models() -> tuple[PublishedRow, ...]:
    """The 11 models, in the paper's order."""
    return _rows("models")


def published_ablation() -> tuple[PublishedRow, ...]:
    """The 7 rows of the ablation, in the paper's order; the fourth is VPG-C Vicuna-7B."""
    return _rows("ablation")


@cache
def _rows(table: str) -> tuple[PublishedRow, ...]:
    content = _content()
    return tuple(
        PublishedRow(
            row["name"],
            dict(zip(content["categories"], row["categories"], strict=True)),
            dict(zip(content["datasets"], row["datasets"], strict=True))
            if "datasets" in row
            else {},
        )
        for row in content[table]
    )


@cache
def _content() -> dict[str, Any]:
    resource = files("polyptych.evaluation.demon").joinpath("published.json")
    content: dict[str, Any] = json.loads(resource.read_text(encoding="utf-8"))
    return content
