"""DEMON from a drawn folder to a report, with a tiny model; aggregation and published rows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from polyptych import cli
from polyptych.errors import PolyptychError
from polyptych.evaluation import local_model
from polyptych.evaluation.demon.aggregation import AVERAGES, Summary, summarize
from polyptych.evaluation.demon.benchmark import SETTINGS, demon_task
from polyptych.evaluation.demon.catalog import CATEGORIES, DATASETS, datasets_of
from polyptych.evaluation.demon.published import published_ablation, published_models
from polyptych.evaluation.demon.sample_tasks import SAMPLE_TASKS
from polyptych.evaluation.demon.scorer import FIXED, RELEASED, demon_scorer, released_crash
from polyptych.evaluation.local_model import LocalModel
from polyptych.evaluation.scorers import measure
from polyptych.evaluation.tasks.demon import (
    evaluate_demon,
    make_sample,
    read_benchmark,
    read_dataset,
    to_markdown,
    to_table,
)
from polyptych.schema import Prediction
from polyptych.testing import tiny_model, tiny_processor

FAST = dataclasses.replace(SETTINGS, max_new_tokens=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("demon"), per_task=2, seed=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny_processor(max_length=4096)


# The drawn sample.


def test_the_sample_has_every_category_rule_and_shape(root: Path) -> None:
    benchmark = read_benchmark(root)
    assert list(benchmark.datasets) == [name for name in DATASETS if name in SAMPLE_TASKS]
    assert {DATASETS[name].category for name in benchmark.datasets} == set(CATEGORIES)
    rules = {DATASETS[name].rule for name in benchmark.datasets}
    assert rules == {"rouge_l", "text_choice", "image_choice"}
    shapes, responses = set(), set()
    for name, examples in benchmark.datasets.items():
        content = json.loads((root / name / "core" / "core.json").read_text())
        assert len(content["metadata"]["task_instruction"]) == 10
        assert len(examples) == 2
        responses |= {type(sample["response"]) for sample in content["data"]}
        shapes |= {
            "choice_list" in s["task_instance"] for s in content["data"] if examples[0].choices
        }
    assert shapes == {True, False}
    assert responses == {str, int}


def test_the_sample_is_drawn_anew_alike(root: Path, tmp_path: Path) -> None:
    again = make_sample(tmp_path, per_task=2, seed=3, tasks=["NLVR2", "vist"])
    for name in ("NLVR2", "VIST"):
        files = sorted((again / name).rglob("*.*"))
        assert len(files) > 2
        for file in files:
            assert file.read_bytes() == (root / file.relative_to(again)).read_bytes(), file
    other = make_sample(tmp_path / "other", per_task=1, seed=4, tasks=["NLVR2"])
    file = Path("NLVR2/core/core.json")
    assert (other / file).read_bytes() != (root / file).read_bytes()
    with pytest.raises(PolyptychError, match="no drawn samples of DEMON task 'AESOP'"):
        make_sample(tmp_path, tasks=["AESOP"])
    with pytest.raises(PolyptychError, match="per_task must be at least 1, got 0"):
        make_sample(tmp_path, per_task=0)


def test_right_answers_to_the_sample_get_full_marks(tmp_path: Path) -> None:
    root = make_sample(tmp_path, per_task=3, seed=0)
    for name in SAMPLE_TASKS:
        examples = read_dataset(root, name)
        right = [Prediction(e.id, e.references[0]) for e in examples]
        nothing = [Prediction(e.id, "") for e in examples]
        scorer = (demon_scorer(DATASETS[name]),)
        for measured in measure(scorer, examples, right):
            if name == "RecipeQA_VisualCloze" and measured.name == RELEASED:
                continue  # "Image B: {image#5}" and its like have one and the same token
            assert measured.statistics[:, 0] == pytest.approx(1), (name, measured.name)
        (fixed,) = [m for m in measure(scorer, examples, nothing) if m.name == FIXED]
        assert not fixed.statistics[:, 0].any(), name


# Runs.


def test_from_folder_to_report(root: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    benchmark = read_benchmark(root)
    options: dict[str, Any] = {"settings": FAST, "progress": False}
    summary = evaluate_demon(
        LocalModel(model, processor), benchmark, tmp_path, name="ours", **options
    )
    assert set(summary.datasets["fixed"]) == set(benchmark.datasets)
    assert set(summary.categories["fixed"]) == {*CATEGORIES, *AVERAGES, "Overall"}
    assert len(summary.missing) == 29 - len(SAMPLE_TASKS)
    assert Summary.load(tmp_path / "demon.json") == summary
    report = (tmp_path / "demon.md").read_text()
    assert report == to_markdown(summary)
    for row in published_models():
        assert report.count(f"\n| {row.name} |") == 1 + len(CATEGORIES), row.name
    assert "| ours [released] |" in report
    assert "| ours [fixed] |" in report
    assert f"{len(summary.missing)} of 29 tasks missing: ALFRED, " in report
    assert "not the sizes of DEMON-Core" in report
    for name, examples in benchmark.datasets.items():
        record = json.loads((tmp_path / name / "scores.json").read_text())
        assert {score["name"] for score in record["scores"]} <= {RELEASED, FIXED}
        assert record["count"] == len(examples)


def test_a_killed_benchmark_goes_on(
    root: Path, model: Any, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = read_benchmark(root)
    options: dict[str, Any] = {"settings": FAST, "progress": False}
    whole = evaluate_demon(LocalModel(model, processor), benchmark, tmp_path / "whole", **options)
    asked: list[str] = []
    answer = local_model.answer

    def dying(model: Any, processor: Any, batch: Any, settings: Any) -> list[str]:
        if len(asked) >= 5:
            raise KeyboardInterrupt
        asked.extend(example.id for example in batch)
        return answer(model, processor, batch, settings)

    monkeypatch.setattr(local_model, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate_demon(LocalModel(model, processor), benchmark, tmp_path / "killed", **options)
    assert not (tmp_path / "killed" / "demon.json").exists()

    def going_on(model: Any, processor: Any, batch: Any, settings: Any) -> list[str]:
        asked.extend(example.id for example in batch)
        return answer(model, processor, batch, settings)

    monkeypatch.setattr(local_model, "answer", going_on)
    resumed = evaluate_demon(
        LocalModel(model, processor), benchmark, tmp_path / "killed", **options
    )
    assert resumed == whole
    assert sorted(asked) == sorted(e.id for es in benchmark.datasets.values() for e in es)


def test_a_crash_of_the_published_scorer_is_told_and_the_rest_scored(
    root: Path, model: Any, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dots(model: Any, processor: Any, batch: Any, settings: Any) -> list[str]:
        return ["." * 60 for _ in batch]

    monkeypatch.setattr(local_model, "answer", dots)
    benchmark = read_benchmark(root)
    summary = evaluate_demon(
        LocalModel(model, processor),
        benchmark,
        tmp_path,
        settings=FAST,
        name="dots",
        progress=False,
    )
    assert "VIST" not in summary.datasets["released"]
    assert summary.datasets["fixed"]["VIST"].value == 0
    assert "Visual Storytelling" not in summary.categories["released"]
    line = (
        "the published scorer gives no score for VIST; it stops at VIST-0: "
        "ValueError: Hypothesis is empty."
    )
    assert line in summary.notes
    examples = benchmark.datasets["VIST"]
    answers = [Prediction(e.id, "a dog") for e in examples]
    assert released_crash(DATASETS["VIST"], examples, answers) is None
    assert "–" in to_markdown(summary)


def test_a_task_is_judged_in_both_flavours(root: Path) -> None:
    examples = read_dataset(root, "NLVR2")
    task = demon_task("NLVR2", examples)
    assert list(task.load()) == examples
    answers = [Prediction(example.id, "") for example in examples]
    released, fixed = measure(task.scorers, examples, answers)
    assert (released.name, fixed.name) == (RELEASED, FIXED)
    first = [float(e.references[0] == e.choices[0]) for e in examples]
    assert released.statistics[:, 0].tolist() == first, "nothing said: the first choice"
    assert fixed.statistics[:, 0].tolist() == [0.0] * len(examples)


# Numbers.


def test_means_are_unweighted_over_tasks() -> None:
    items = {
        "fixed": {"WebQA": [1, 0, 0, 0], "TQA": [1], "VIST": [0.5, 0.25]},
        "released": {"WebQA": [1, 1, 1, 1]},
    }
    summary = summarize(items, model="m", split="core", missing=["AESOP"], seed=1)
    table = summary.categories["fixed"]
    assert table["Knowledge Grounded QA"].value == pytest.approx(62.5)
    assert table["Knowledge Grounded QA"].datasets == 2
    assert table["Knowledge Grounded QA"].count == 5
    assert table["Visual Storytelling"].value == pytest.approx(37.5)
    assert table["Accuracy"].value == pytest.approx(62.5)
    assert table["ROUGE-L"].value == pytest.approx(37.5)
    assert table["Overall"].value == pytest.approx((25 + 100 + 37.5) / 3, abs=1e-3)
    assert summary.categories["released"]["Overall"].value == 100
    assert summary.datasets["fixed"]["TQA"].interval == (100, 100)
    assert "Text-Rich Images QA" not in table


def test_intervals_of_a_category_are_those_of_independent_tasks() -> None:
    """The mean of two proportions: variance p (1 - p) / n of each, a quarter of their sum."""
    rng = np.random.default_rng(0)
    items = {name: (rng.random(400) < 0.3).astype(float) for name in ("WebQA", "TQA")}
    summary = summarize({"fixed": items}, model="m", split="core")
    variance = sum(v.mean() * (1 - v.mean()) / len(v) for v in items.values()) / 4
    low, high = summary.categories["fixed"]["Knowledge Grounded QA"].interval
    assert high - low == pytest.approx(100 * 2 * 1.96 * variance**0.5, rel=0.1)
    again = summarize({"fixed": items}, model="m", split="core")
    assert again == summary


def test_published_rows_agree_with_each_other() -> None:
    models = published_models()
    assert len(models) == 11
    core = [dataset.name for dataset in datasets_of("core")]
    for row in models:
        assert set(row.datasets) == set(core), row.name
        for category in CATEGORIES:
            values = [row.datasets[n] for n in core if DATASETS[n].category == category]
            mean = sum(values) / len(values)
            if (row.name, category) == ("BLIP-2", "Visual Storytelling"):
                assert (mean, row.categories[category]) == (pytest.approx(22.97), 21.31)
            else:
                assert mean == pytest.approx(row.categories[category], abs=0.03), row.name
    rows = published_ablation()
    assert len(rows) == 7
    by_name = {row.name: row for row in models}
    assert rows[3].categories == by_name["VPG-C Vicuna-7B"].categories
    vpgc = by_name["VPG-C Vicuna-7B"].categories
    averages = {n: sum(vpgc[c] for c in cs) / len(cs) for n, cs in AVERAGES.items()}
    assert averages == {
        "ROUGE-L": pytest.approx(29.53, abs=0.01),
        "Accuracy": pytest.approx(41.49, abs=0.01),
    }


def test_the_table_fits_a_terminal_and_shows_flavours() -> None:
    summary = summarize({"fixed": {"VIST": [0.5]}}, model="ours", split="core")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_table(summary))
    lines = console.export_text().splitlines()
    assert sum(row.name in line for row in published_models() for line in lines) >= 11
    assert any(line.startswith("ours [fixed]") and " 50.00 " in line for line in lines)
    assert any(line.startswith("ours [released]") for line in lines)


def test_a_summary_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "demon.json"
    path.write_text('{"model": "x"}')
    with pytest.raises(PolyptychError, match="not a summary of DEMON"):
        Summary.load(path)


# Command line.


def run(*words: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="polyptych")


def test_commands_end_to_end(model: Any, processor: Any, tmp_path: Path) -> None:
    made = run("demon", "make-sample", tmp_path / "data", "--per-task", 1)
    assert made.exit_code == 0, made.output
    shutil.rmtree(tmp_path / "data" / "VIST")
    model.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    result = run(
        *("evaluate", tmp_path / "tiny", "demon", "--root", tmp_path / "data", "--split", "core"),
        *("--out", tmp_path / "run", "--max-new-tokens", 2, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "tiny [released]" in result.stdout
    assert "tiny [fixed]" in result.stdout
    assert "VPG-C Vicuna-13B" in result.stdout
    assert "19 of 29 tasks missing: " in result.stderr
    shown = run("demon", "report", tmp_path / "run", "--out", tmp_path / "report.md")
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "report.md").read_text() == (tmp_path / "run" / "demon.md").read_text()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["evaluate", "demon"], "demon needs --data DIR"),
        (["evaluate", "a", "b", "c"], "2 tasks need --out DIR"),
        (["evaluate", "m", "demon", "--root", "nowhere"], "cannot read nowhere"),
        (["evaluate", "demon", "--root", ".", "--split", "tiny"], "unknown DEMON split 'tiny'"),
        (["demon", "report", "nowhere"], "cannot read nowhere/demon.json"),
        (["demon", "make-sample", "x", "--split", "tiny"], "unknown DEMON split 'tiny'"),
        (["demon", "lmms-eval", "x", "--root", "nowhere"], "cannot read nowhere"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert part in line
    assert not list(tmp_path.iterdir())
