"""Every benchmark end to end on the sample that it draws of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from polyptych.data.images import load_image
from polyptych.evaluation.local_model import LocalModel
from polyptych.evaluation.runner import evaluate
from polyptych.evaluation.scorers import accepted_answers, measure
from polyptych.evaluation.scoring.boxes import Box, in_square
from polyptych.evaluation.task import GenerationSettings, Task, prompt_text
from polyptych.evaluation.tasks.catalog import BENCHMARKS, load_task
from polyptych.schema import Example, Prediction
from polyptych.testing import tiny_model, tiny_processor

DRAWN = [name for name, benchmark in BENCHMARKS.items() if benchmark.sample is not None]
HIGHEST = {"perception": 1000.0, "cider": 9.0, "chair_s": 0.0, "chair": 0.0}
"""What right answers reach at least, where it is not 1."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for name in DRAWN:
        draw(name, folder)
    return folder


def draw(name: str, folder: Path) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.sample is not None
    benchmark.sample(benchmark.root(folder))


def right_answer(example: Example) -> str:
    if "box" in example.metadata:
        data = example.metadata
        box = in_square(Box(*data["box"]), data["width"], data["height"])
        return "[{:.3f}, {:.3f}, {:.3f}, {:.3f}]".format(*box)
    if "likely" in example.metadata:
        return f"A {' and a '.join(example.metadata['objects'])}."
    if example.metadata["task"] == "scienceqa":
        return f"ANSWER: {example.references[0]}."
    return accepted_answers(example)[0] if accepted_answers(example) else "unanswerable"


class Knows:
    """An answerer that always has the right answer."""

    name, hash, tokens_per_image = "knows", "0", 1
    ignores: frozenset[str] = frozenset()

    def answer(self, examples: Sequence[Example], _: GenerationSettings) -> list[str]:
        return [right_answer(example) for example in examples]

    def context(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("name", DRAWN)
def test_a_sample_is_read_answered_and_scored(samples: Path, tmp_path: Path, name: str) -> None:
    benchmark = BENCHMARKS[name]
    task = load_task(name, samples)
    if task.judging is not None:
        pytest.skip("a judge is needed")
    scores = {score.name: score for score in evaluate(Knows(), task, tmp_path, progress=False)}
    if benchmark.scoring == "server" and not task.scorers:
        assert scores == {}
        return
    for flavor in benchmark.flavors:
        value = scores[f"{benchmark.metric}[{flavor}]"].value
        assert value >= HIGHEST.get(benchmark.metric, 1.0), (flavor, value)


@pytest.mark.parametrize("name", DRAWN)
def test_a_sample_has_readable_pictures_and_no_constant_answer(samples: Path, name: str) -> None:
    task = load_task(name, samples)
    examples = list(task.load())
    assert task.name == name
    assert 5 <= len(examples) <= 60
    for example in examples:
        assert example.metadata["task"] == name
        assert len(example.images) == prompt_text(example.messages).count("<image>")
        for image in example.images:
            load_image(image)
    if task.scorers and task.judging is None:
        assert len({right_answer(example) for example in examples}) > 1
        assert best_constant(task, examples) < 0.9 * len(examples)


def best_constant(task: Task, examples: Sequence[Example]) -> int:
    """For how many examples the most frequent right answer is right."""
    answers = [right_answer(example) for example in examples]
    return max(answers.count(answer) for answer in answers)


@pytest.mark.parametrize("name", ["pope", "mmbench_cn", "refcoco", "blink", "sam_vist"])
def test_the_same_sample_is_drawn_again(samples: Path, tmp_path: Path, name: str) -> None:
    draw(name, tmp_path)
    for path in sorted(tmp_path.rglob("*.*")):
        again = samples / path.relative_to(tmp_path)
        assert digest(path) == digest(again), path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_lie_where_the_table_says(samples: Path) -> None:
    for name in DRAWN:
        benchmark = BENCHMARKS[name]
        present = [
            any(benchmark.root(samples).glob(file.split(" or ")[0].rstrip("/")))
            or any(benchmark.root(samples).glob(file.split(" or ")[-1].rstrip("/")))
            for file in benchmark.files
        ]
        assert any(present), (name, benchmark.files)


@pytest.mark.parametrize("name", ["nlvr2", "mirb", "gqa"])
def test_a_model_answers_a_sample(samples: Path, tmp_path: Path, name: str) -> None:
    answerer = LocalModel(tiny_model(), tiny_processor())
    settings = GenerationSettings(max_new_tokens=3, batch_size=8)
    task = load_task(name, samples)
    scores = evaluate(answerer, task, tmp_path, settings=settings, progress=False)
    assert scores[0].count == len(list(task.load()))
    assert (tmp_path / "predictions.jsonl").is_file()


def test_empty_answers_are_wrong(samples: Path) -> None:
    for name in DRAWN:
        task = load_task(name, samples)
        if not task.scorers or task.judging is not None:
            continue
        examples = list(task.load())
        metric, flavor = BENCHMARKS[name].metric, BENCHMARKS[name].flavors[-1]
        blank = [Prediction(example.id, "") for example in examples]
        found = {
            m.name: m.aggregate(m.statistics.sum(0)) for m in measure(task.scorers, examples, blank)
        }
        best = HIGHEST.get(metric, 1.0)
        if best:  # where 0 is best, as for CHAIR, who says nothing invents nothing
            assert found[f"{metric}[{flavor}]"] < 0.5 * best, name
