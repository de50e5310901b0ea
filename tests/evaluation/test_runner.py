"""The runner on a tiny model: order, resuming after kills, refusals, and what scores.json says."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from polyptych.errors import PolyptychError
from polyptych.evaluation import local_model
from polyptych.evaluation.local_model import LocalModel, answer, model_hash
from polyptych.evaluation.runner import data_hash, evaluate, generate
from polyptych.evaluation.scorers import Estimate, item_scorer
from polyptych.evaluation.task import GenerationSettings, Task, prompt_text
from polyptych.files import line_writer
from polyptych.schema import Example, TextBlock
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

SETTINGS = GenerationSettings(max_new_tokens=6, batch_size=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny_processor()


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return tiny_examples(8)


def run(model: Any, processor: Any, examples: list[Example], out: Path, **settings: Any) -> Any:
    settings = dataclasses.replace(SETTINGS, **settings)
    return generate(LocalModel(model, processor), examples, out, settings=settings, progress=False)


def test_predictions_come_back_in_order_and_stand_in_the_file(
    model: Any, processor: Any, examples: list[Example], tmp_path: Path
) -> None:
    out = tmp_path / "predictions.jsonl"
    predictions = run(model, processor, examples, out)
    assert [p.id for p in predictions] == [e.id for e in examples]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [e.id for e in examples]
    assert [line["prediction"] for line in lines] == [p.text for p in predictions]
    assert lines[0]["references"] == list(examples[0].references)
    assert lines[0]["prompt"] == prompt_text(examples[0].prompt)
    assert lines[0]["seconds"] > 0
    assert not list(tmp_path.glob("*.running"))


def test_batches_by_length_change_no_answer(
    model: Any, processor: Any, examples: list[Example], tmp_path: Path
) -> None:
    together = run(model, processor, examples, tmp_path / "together.jsonl")
    alone = [answer(model, processor, [example], SETTINGS)[0] for example in examples]
    assert [p.text for p in together] == alone
    assert any(alone)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_killed_run_goes_on_where_it_stopped(
    model: Any,
    processor: Any,
    examples: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    do_sample: bool,
) -> None:
    whole = run(model, processor, examples, tmp_path / "whole.jsonl", do_sample=do_sample)
    asked: list[str] = []

    def dying(model: Any, processor: Any, batch: Any, settings: Any) -> list[str]:
        if len(asked) >= 3:
            raise KeyboardInterrupt
        asked.extend(example.id for example in batch)
        return answer(model, processor, batch, settings)

    out = tmp_path / "killed.jsonl"
    monkeypatch.setattr(local_model, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        run(model, processor, examples, out, do_sample=do_sample)
    running = tmp_path / "killed.jsonl.running"
    assert not out.exists()
    kept = running.read_bytes()
    assert kept.count(b"\n") == 3

    running.write_bytes(kept + b'{"id": "tiny-')  # the kill came in the middle of a line
    asked_again: list[str] = []

    def counting(model: Any, processor: Any, batch: Any, settings: Any) -> list[str]:
        asked_again.extend(example.id for example in batch)
        return answer(model, processor, batch, settings)

    monkeypatch.setattr(local_model, "answer", counting)
    resumed = run(model, processor, examples, out, do_sample=do_sample)
    assert sorted(asked + asked_again) == sorted(e.id for e in examples)
    assert [p.text for p in resumed] == [p.text for p in whole]
    assert len(out.read_text().splitlines()) == len(examples)
    assert not running.exists()

    asked_again.clear()
    assert [p.text for p in run(model, processor, examples, out, do_sample=do_sample)] == [
        p.text for p in whole
    ]
    assert asked_again == []


def test_answers_of_another_run_are_refused(
    model: Any, processor: Any, examples: list[Example], tmp_path: Path
) -> None:
    out = tmp_path / "predictions.jsonl"
    run(model, processor, examples, out)
    with pytest.raises(PolyptychError, match=r"line 1: made with other settings or another model"):
        run(model, processor, examples, out, num_beams=2)
    with pytest.raises(PolyptychError, match="made with other settings or another model"):
        run(tiny_model(seed=1), processor, examples, out)
    with pytest.raises(PolyptychError, match=r"id 'tiny-7' is none of 7 examples"):
        run(model, processor, examples[:7], out)
    with pytest.raises(PolyptychError, match="finished run of 8 examples, not 9"):
        run(model, processor, tiny_examples(9), out)
    other = dataclasses.replace(
        examples[0],
        messages=(
            dataclasses.replace(
                examples[0].messages[0],
                content=(*examples[0].messages[0].content, TextBlock(" Why?")),
            ),
            examples[0].messages[1],
        ),
    )
    with pytest.raises(PolyptychError, match="id 'tiny-0' was asked another question"):
        run(model, processor, [other, *examples[1:]], out)
    with pytest.raises(PolyptychError, match="2 examples have only 1 different ids"):
        run(model, processor, [examples[0], examples[0]], tmp_path / "twice.jsonl")
    out.write_text('{"id": "tiny-0"}\n')
    with pytest.raises(
        PolyptychError, match=r"line 1: not a prediction; missing images, prediction"
    ):
        run(model, processor, examples, out)


def test_evaluate_writes_scores_with_their_context(
    model: Any, processor: Any, examples: list[Example], tmp_path: Path
) -> None:
    def judge(text: str, metadata: Any) -> float:
        return float(len(text) % 2)

    task = Task("tiny", lambda: examples, (item_scorer("odd[test]", judge),), SETTINGS)
    (score,) = evaluate(LocalModel(model, processor), task, tmp_path, progress=False)
    assert isinstance(score, Estimate)
    assert score.per_item is not None
    assert score.value == pytest.approx(sum(score.per_item.values()) / 8)
    assert score.interval.low <= score.value <= score.interval.high
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["task"] == "tiny"
    assert record["scores"] == [
        {"name": "odd[test]", "value": score.value, "count": 8, "interval": list(score.interval)}
    ]
    assert record["settings"]["max_new_tokens"] == 6
    assert record["prompt_template"] == "qa"
    assert record["data_hash"] == data_hash(examples)
    assert record["versions"]["torch"] == torch.__version__
    assert record["bootstrap"]["confidence"] == 0.95


def test_hashes_see_what_matters(model: Any, examples: list[Example]) -> None:
    assert model_hash(model) == model_hash(tiny_model())
    assert model_hash(model) != model_hash(tiny_model(seed=1))
    assert data_hash(examples) == data_hash(tiny_examples(8))
    assert data_hash(examples) != data_hash(examples[::-1])
    swapped = dataclasses.replace(examples[0], images=examples[0].images[::-1])
    assert data_hash([swapped]) != data_hash([examples[0]])
    assert GenerationSettings().hash != GenerationSettings(num_beams=2).hash


def test_a_refusing_disk_is_one_clear_line_and_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl.running"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with line_writer(path) as write:
        write("{}\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, limits[1]))
        try:
            with pytest.raises(PolyptychError, match=rf"cannot write {path}: File too large"):
                write("{}\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "{}\n"
