"""DEMON (arXiv 2308.04152): 31 tasks over several images, from folder to published table.

The parts are in :mod:`polyptych.evaluation.demon`: ``catalog`` (what exists), ``loading`` (files to
examples), ``released`` and ``fixed`` (the two scorers), ``aggregation``, ``published`` and
``report``. This is how they are used:

    benchmark = read_benchmark("DEMON", "core")
    summary = evaluate_demon(LocalModel(model, processor), benchmark, "runs/demon")
    print(to_markdown(summary))
"""

from __future__ import annotations

from polyptych.evaluation.demon.aggregation import Summary, summarize
from polyptych.evaluation.demon.benchmark import (
    SETTINGS,
    Benchmark,
    demon_task,
    evaluate_demon,
    read_benchmark,
)
from polyptych.evaluation.demon.catalog import CATEGORIES, DATASETS, Dataset, datasets_of
from polyptych.evaluation.demon.loading import read_dataset
from polyptych.evaluation.demon.report import to_markdown, to_table
from polyptych.evaluation.demon.sample import make_sample

__all__ = [
    "CATEGORIES",
    "DATASETS",
    "SETTINGS",
    "Benchmark",
    "Dataset",
    "Summary",
    "datasets_of",
    "demon_task",
    "evaluate_demon",
    "make_sample",
    "read_benchmark",
    "read_dataset",
    "summarize",
    "to_markdown",
    "to_table",
]
