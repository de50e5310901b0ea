"""The doctor names what is wrong, and survives it."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from polyptych import doctor
from polyptych.doctor import Finding, compare_parts, diagnose, render
from polyptych.testing import tiny_model, tiny_processor


def problems(findings: Any) -> dict[str, str]:
    return {finding.name: finding.value for finding in findings if finding.is_problem}


def test_parts_that_belong_together_agree() -> None:
    assert not problems(compare_parts(tiny_model().config, tiny_processor()))


def test_each_disagreement_names_both_numbers() -> None:
    config = tiny_model().config
    processor = tiny_processor(tokens_per_image=7, image_token_id=9)
    processor.image_processor.size = {"height": 56, "width": 56}
    config.text_config.vocab_size = 10
    assert problems(compare_parts(config, processor)) == {
        "image token id": f"model {config.image_token_id}, processor 9",
        "tokens per image": "model 3, processor 7",
        "image size": "model 28, processor 56",
        "vocabulary": f"{len(processor.tokenizer)} words, 10 embeddings",
    }


def test_a_failing_check_becomes_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall() -> Any:
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setattr(doctor, "_compute", fall)
    found = problems(diagnose("./no_model"))
    assert found["compute"] == "operator torchvision::nms does not exist"
    assert "./no_model" in found["model"]


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "0.20.0")
    broken = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no operator nms\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    (finding,) = doctor._torchvision()
    assert finding.is_problem
    assert "RuntimeError: no operator nms" in finding.value
    assert "pip uninstall torchvision" in finding.value


def test_versions_outside_the_range_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_required_ranges", lambda: {"torch": ">=99", "numpy": ">=1"})
    monkeypatch.setattr(doctor, "_version", lambda p: None if p == "pillow" else "2.0+cpu")
    assert problems(doctor._packages()) == {
        "torch": "2.0+cpu; needed >=99",
        "pillow": "not installed; needed",
    }


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_WANTED", 1 << 62)
    assert "free" in problems(doctor._disk())["disk"]


def test_the_last_line_is_the_verdict() -> None:
    good, bad = Finding("a", "1"), Finding("b", "2", is_problem=True)
    assert render([good]).splitlines()[-1] == "polyptych is usable here"
    assert render([good, bad]).splitlines()[-1] == "1 problem(s)"
