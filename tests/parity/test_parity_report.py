"""How golden values are compared and reported, whatever the method."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from polyptych.parity import Comparison, ParityReport, compare, dump


def test_values_are_compared_where_they_mean_something() -> None:
    theirs = {
        "states": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "ids": torch.tensor([1, 2]),
        "shape": torch.zeros(3),
        "input": torch.zeros(1),
        "nan": torch.tensor([math.nan]),
        "missing": torch.zeros(1),
    }
    ours = {
        "states": torch.tensor([[1.0, 2.5], [3.0, 4.0]]),
        "ids": torch.tensor([1, 3]),
        "shape": torch.zeros(1, 3),
        "nan": torch.tensor([0.0]),
        "more": torch.zeros(1),
    }
    report = compare(theirs, ours, tolerance=1.0, not_compared={"input": "why"})
    assert str(report).splitlines() == [
        "states  5.00e-01  1e+00  ok",
        "ids  1.00e+00  0e+00  FAIL",
        "shape  inf  1e+00  FAIL (1, 3), not (3,)",
        "input  n/a: why",
        "nan  inf  1e+00  FAIL",
        "missing  inf  1e+00  FAIL not computed",
        "COMPARED 5 of 6, max diff inf",
    ]
    there = {"states": torch.tensor([[True, False], [True, True]])}
    (states, *_) = compare(theirs, ours, tolerance=0.0, where=there).comparisons
    assert states.ok and states.difference == 0.0
    assert not compare(theirs, ours, tolerance=0.4).comparisons[0].ok


def test_our_values_are_written_under_the_golden_names(tmp_path: Path) -> None:
    states = torch.arange(6.0, requires_grad=True).view(2, 3)
    dump({"a.b": states.T, "same": states}, tmp_path / "ours.safetensors")
    written = load_file(tmp_path / "ours.safetensors")
    assert written["a.b"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert written["same"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_report_says_what_failed() -> None:
    report = ParityReport(
        (
            Comparison("x", 3e-6, 1e-4),
            Comparison("ids", 0.0, 0.0),
            Comparison("in", 0.0, 0.0, "input", applies=False),
            Comparison("y", math.inf, 1e-4, "not computed"),
        )
    )
    assert not report.passed
    assert str(report).splitlines() == [
        "x  3.00e-06  1e-04  ok",
        "ids  0.00e+00  0e+00  ok",
        "in  n/a: input",
        "y  inf  1e-04  FAIL not computed",
        "COMPARED 3 of 4, max diff inf",
    ]
    assert ParityReport(report.comparisons[:3]).passed
    assert not ParityReport(report.comparisons[2:3]).passed, "comparing nothing is no success"
