"""The benchmark of evaluation times what it says: every scorer gets items that it can score."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from polyptych.evaluation.scorers import measure
from polyptych.schema import Prediction

FILE = Path(__file__).parents[2] / "benchmarks" / "evaluation.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluation_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluation_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_every_case_is_scored_and_none_is_trivial(bench: ModuleType) -> None:
    for name, (draw, scorer) in bench.CASES.items():
        drawn = list(draw(bench.Words(0), 200))
        examples = [example for example, _ in drawn]
        predictions = [Prediction(example.id, text) for example, text in drawn]
        first, *_ = measure([scorer], examples, predictions)
        value = first.aggregate(first.statistics.sum(0))
        assert np.isfinite(value), name
        assert len({prediction.text for prediction in predictions}) > 3, name


def test_mixed_examples_mix_numbers_of_pictures(bench: ModuleType, tmp_path: Path) -> None:
    assert len({len(example.images) for example in bench.mixed_examples(8)}) > 2
    examples = bench.benchmark_examples(tmp_path)
    assert len(examples) == 16
    assert len({example.metadata["task"] for example in examples}) == 8
