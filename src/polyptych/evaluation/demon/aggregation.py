"""From tasks to categories and to the whole benchmark: unweighted means, as published.

A category is the mean of its tasks, whatever their sizes. The paper's two averages are means of
categories: ROUGE-L over the first three, accuracy over the other four. Intervals come from
drawing, in every task, as many items as it has, with replacement (a bootstrap stratified by task).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.catalog import CATEGORIES, DATASETS
from polyptych.evaluation.demon.released import category_mean
from polyptych.evaluation.statistics import CONFIDENCE, RESAMPLES, Array, Interval
from polyptych.files import write_aside

Flavour = Literal["released", "fixed"]
FLAVOURS: tuple[Flavour, ...] = ("released", "fixed")

ROUGE_CATEGORIES, ACCURACY_CATEGORIES = CATEGORIES[:3], CATEGORIES[3:]
AVERAGES = {"ROUGE-L": ROUGE_CATEGORIES, "Accuracy": ACCURACY_CATEGORIES}
"""The paper's two averages (its study of data sizes: 41.49 / 29.53), and what they are over."""


@dataclass(frozen=True, slots=True)
class Value:
    """A score in percent."""

    value: float
    interval: Interval
    datasets: int
    """How many tasks it is a mean of."""
    count: int
    """How many answers stand behind it."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A model's results; every mapping has flavours first: ``summary.categories["fixed"]``."""

    model: str
    split: str
    datasets: dict[str, dict[str, Value]]
    categories: dict[str, dict[str, Value]]
    """Also the averages ``ROUGE-L``, ``Accuracy`` and, over all tasks, ``Overall``."""
    missing: list[str] = field(default_factory=list)
    """Tasks of the split that the folder does not have."""
    notes: list[str] = field(default_factory=list)
    """Lines about data that is odd, and about where the published scorer stops."""

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        with write_aside(path) as file:
            json.dump(asdict(self), file, indent=1, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | Path) -> Summary:
        """Read what :meth:`save` wrote.

        Raises:
            PolyptychError: If the file is something else.
        """
        content = read_json(path)
        try:
            datasets, categories = (_values(content[k]) for k in ("datasets", "categories"))
            content = {**content, "datasets": datasets, "categories": categories}
            return cls(**content)
        except (TypeError, KeyError, AttributeError) as error:
            raise PolyptychError(f"{path}: not a summary of DEMON ({error})") from error


def _values(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Value]]:
    return {
        flavour: {
            name: Value(**{**value, "interval": Interval(*value["interval"])})
            for name, value in table.items()
        }
        for flavour, table in tables.items()
    }


def summarize(
    items: Mapping[Flavour, Mapping[str, Sequence[float]]],
    *,
    model: str,
    split: str,
    missing: Iterable[str] = (),
    notes: Iterable[str] = (),
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Summary:
    """Aggregate the values of single answers.

    Args:
        items: Flavour, then task, to one value between 0 and 1 per answer.
        model: Name of the model, for the report.
        split: ``core`` or ``full``.
        missing: Tasks without data.
        notes: What a reader of the numbers must know.
        resamples: Draws of the bootstrap.
        confidence: Share of draws inside an interval.
        seed: Of the draws.
    """
    datasets: dict[str, dict[str, Value]] = {}
    categories: dict[str, dict[str, Value]] = {}
    for flavour in FLAVOURS:
        values = {
            name: np.asarray(v, dtype=np.float64) for name, v in items.get(flavour, {}).items()
        }
        drawn = {
            name: _bootstrap_means(v, resamples, [seed, list(DATASETS).index(name)])
            for name, v in values.items()
        }
        datasets[flavour] = {
            name: _value([values[name]], drawn[name], confidence) for name in values
        }
        categories[flavour] = _categories(values, drawn, confidence)
    return Summary(model, split, datasets, categories, list(missing), list(notes))


def _bootstrap_means(values: Array, resamples: int, seed: Sequence[int]) -> Array:
    """``(resamples,)`` means of as many values, drawn with replacement."""
    generator = np.random.default_rng(seed)
    return np.array(
        [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    )


def _categories(
    values: Mapping[str, Array], drawn: Mapping[str, Array], confidence: float
) -> dict[str, Value]:
    """Categories, the averages of categories, and the mean of all tasks."""
    members = {
        category: [name for name in values if DATASETS[name].category == category]
        for category in CATEGORIES
    }
    members = {category: names for category, names in members.items() if names}
    of_category = {
        category: np.mean([drawn[name] for name in names], axis=0)
        for category, names in members.items()
    }
    table = {
        category: _value([values[n] for n in names], of_category[category], confidence)
        for category, names in members.items()
    }
    for average, parts in AVERAGES.items():
        there = [category for category in parts if category in members]
        if there:
            table[average] = Value(
                value=sum(table[category].value for category in there) / len(there),
                interval=_interval(np.mean([of_category[c] for c in there], axis=0), confidence),
                datasets=sum(table[category].datasets for category in there),
                count=sum(table[category].count for category in there),
            )
    if values:
        everything = np.mean(list(drawn.values()), axis=0)
        table["Overall"] = _value(list(values.values()), everything, confidence)
    return table


def _value(parts: Sequence[Array], drawn: Array, confidence: float) -> Value:
    means = [float(part.mean()) for part in parts]
    return Value(
        value=category_mean(means),
        interval=_interval(drawn, confidence),
        datasets=len(parts),
        count=sum(map(len, parts)),
    )


def _interval(drawn: Array, confidence: float) -> Interval:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(100 * drawn, [tail, 100 - tail])
    return Interval(float(low), float(high))
