"""The training benchmark compares equals and reads its own numbers right. Nothing is timed here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The benchmark files stand in no package and import each other by name."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("training")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


def test_methods_start_as_their_base(bench: ModuleType) -> None:
    """Equal weights otherwise: a zero-initialized method has the loss of the model without it."""
    batch = bench.batch_of(3)
    for name in bench.OVERHEADS:
        with torch.no_grad():
            losses = [
                model(**batch, use_cache=False).loss for model in bench.pair(name, 16).values()
            ]
        torch.testing.assert_close(losses[0], losses[1], msg=name)


def test_the_exponent_is_that_of_the_largest_numbers(bench: ModuleType) -> None:
    times = {2: 100.0, 16: 50.0, 32: 200.0}
    rows = [{"variant": "v", "images": n, "cpu_ms": ms} for n, ms in times.items()]
    assert bench.exponent(rows, "v") == pytest.approx(2.0)


def test_the_table_says_efficiency_exponent_and_overhead(bench: ModuleType) -> None:
    times = {"wall_s": 12.0, "cpu_s": 10.0, "waiting_for_data": 0.02, "steps": 4}
    half = {"wall_s": 8.0, "cpu_s": 5.5, "waiting_for_data": 0.03, "steps": 4}
    rows = [{"variant": "base", "images": n, "cpu_ms": 10.0 * n} for n in (2, 4)]
    report = {
        "command": "python benchmarks/training.py",
        "machine": bench.machine("cpu", [0.5, 1.25]),
        "processes": [{"processes": 1, **times}, {"processes": 2, **half}],
        "images": rows,
        "overheads": [{"method": "SAM", "images": 4, "without": 100.0, "with": 104.0}],
    }
    text = bench.table(report)
    assert "| efficiency | 75% | 91% | |" in text
    assert "| base | 20 | 40 | 1.00 |" in text
    assert "| SAM | 100 ms | 104 ms | +4.0% |" in text
