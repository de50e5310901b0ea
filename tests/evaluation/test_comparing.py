"""Two runs on the same items, what cannot be seen from not looking, and items of one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.evaluation.baselines import baselines, chance, majority
from polyptych.evaluation.comparing import compare_results, is_clear
from polyptych.evaluation.report import Comparison
from polyptych.evaluation.results import Result, read_run, settings_text
from polyptych.evaluation.runner import evaluate
from polyptych.evaluation.scorers import compare, estimate, image_clusters, item_scorer, mean_of
from polyptych.evaluation.scoring.choice import choice_scorer
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks.finding import find_again, find_task, is_task_name
from polyptych.schema import Example, ImageRef, Message, TextBlock
from polyptych.testing import tiny_examples


class Sayer:
    """Answers by a table, and else with its default."""

    tokens_per_image = 1
    ignores: frozenset[str] = frozenset({"batch_size"})

    def __init__(self, name: str, default: str, **known: str) -> None:
        self.name = self.hash = name
        self.default, self.known = default, known

    def answer(self, examples: Any, settings: GenerationSettings) -> list[str]:
        return [self.known.get(example.id.replace("-", "_"), self.default) for example in examples]

    def context(self) -> dict[str, Any]:
        return {"model": {"name": self.name}}


# Two runs


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Result, Result]:
    """The second answers one of eight captions like its reference, the first none."""
    data = tmp_path / "records.jsonl"
    write_records(data, tiny_examples(8))
    task = find_task(str(data))
    right = tiny_examples(8)[3]
    systems = [
        Sayer("first", "nothing"),
        Sayer("second", "nothing", tiny_3=right.references[0]),
    ]
    for system in systems:
        evaluate(system, task, tmp_path / system.name, progress=False)
    first, second = (read_run(tmp_path / system.name)["records.jsonl"] for system in systems)
    return first, second


def test_the_same_items_are_compared_by_the_task_s_own_scorers(
    runs: tuple[Result, Result],
) -> None:
    compared = compare_results(*runs)
    assert compared.systems == ("first", "second")
    assert len(compared.examples) == 8
    assert compared.problems == []
    rows = {row.first.name: row for row in compared.rows}
    row = rows["rouge_l[coco]"]
    assert (row.first.value, row.second.value) == (0, pytest.approx(1 / 8))
    assert row.difference.value == pytest.approx(1 / 8)
    assert row.difference.interval.low == 0
    assert not is_clear(row), "one item of eight: the interval holds zero"
    stored = {s["name"]: s["value"] for s in runs[1].record["scores"]}
    assert stored["rouge_l[coco]"] == row.second.value


def test_missing_and_changed_questions_are_named_and_left_out(
    runs: tuple[Result, Result], tmp_path: Path
) -> None:
    path = runs[1].folder / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["prompt"] = "another question"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    compared = compare_results(*runs)
    assert [e.id for e in compared.examples] == [f"tiny-{n}" for n in range(1, 7)]
    assert any("'tiny-0'" in p and "another question" in p for p in compared.problems)
    assert any("no answer for id 'tiny-7'" in p for p in compared.problems)


def test_the_same_id_with_other_questions_in_two_data_sets(
    runs: tuple[Result, Result], tmp_path: Path
) -> None:
    data = tmp_path / "other" / "records.jsonl"
    changed = [
        Example(e.id, (Message("user", (TextBlock("What else?"),)),), (), e.references)
        for e in tiny_examples(8)
    ]
    write_records(data, changed)
    evaluate(Sayer("third", "x"), find_task(str(data)), tmp_path / "third", progress=False)
    with pytest.raises(PolyptychError, match="share no question"):
        compare_results(runs[0], read_run(tmp_path / "third")["records.jsonl"])


def test_items_and_origin_stand_in_the_run(runs: tuple[Result, Result]) -> None:
    folder, record = runs[1].folder, runs[1].record
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert items[3]["id"] == "tiny-3"
    assert items[3]["scores"]["rouge_l[coco]"] == 1
    assert [e.id for e in find_again(record["origin"]).load()] == [f"tiny-{n}" for n in range(8)]
    assert record["settings_ignored"] == ["batch_size"]
    assert settings_text(record) == "greedy, at most 64 tokens"
    with pytest.raises(PolyptychError, match="where its task came from"):
        find_again({})


def test_a_run_with_one_task_twice_is_refused(runs: tuple[Result, Result], tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match=r"two results of records.jsonl"):
        read_run(tmp_path)
    with pytest.raises(PolyptychError, match="no run here"):
        read_run(tmp_path / "nothing")


def test_words_that_name_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_task_name("pope") and is_task_name("storybook/existence") and is_task_name("demon")
    assert not is_task_name("storybook-sam")
    with pytest.raises(PolyptychError, match="pope needs --data DIR"):
        find_task("pope")
    with pytest.raises(PolyptychError, match="no task, file or folder 'pape'; tasks: vqav2, "):
        find_task("pape")
    with pytest.raises(PolyptychError, match=r"no folder .*pope; it should hold coco/"):
        find_task("pope", data=tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pope").mkdir()
    assert not is_task_name("pope"), "a file or folder of that name comes first"


# Not looking


def letters(count: int) -> list[Example]:
    return [Example(str(n), (), (), ("ABCD"[n % 3],), ("w", "x", "y", "z")) for n in range(count)]


def test_majority_and_chance_of_letters_by_hand() -> None:
    examples = letters(400)
    task = Task("t", lambda: examples, (choice_scorer("fixed"),))
    always = majority(task, examples)
    assert always is not None
    assert always.answer == "A"
    assert always.values["accuracy[fixed]"] == pytest.approx(134 / 400)
    guessed = chance(task, examples)
    assert guessed is not None
    assert guessed.values["accuracy[fixed]"] == pytest.approx(0.25, abs=0.02)
    assert chance(task, examples) == guessed


def test_captions_have_no_baseline_and_judges_are_not_asked() -> None:
    captions = [Example(str(n), (), (), (f"a long caption of picture {n}",)) for n in range(9)]

    def never(text: str, metadata: Any) -> float:
        raise AssertionError("asked")

    task = Task("t", lambda: captions, (item_scorer("a[t]", never),))
    assert baselines(task, captions) == {}
    judged = Task("t", lambda: letters(9), task.scorers, judging=object())  # type: ignore[arg-type]
    assert baselines(judged, letters(9)) == {}


# Items of one picture


def test_questions_about_one_picture_are_drawn_together() -> None:
    """Ten equal answers per picture: the interval is that of ten times fewer items."""
    examples = [
        Example(f"{p}-{q}", (), (ImageRef(path=f"{p}.png"),)) for p in range(30) for q in range(10)
    ]
    clusters = image_clusters(examples)
    assert len(set(clusters.values())) == 30
    values = [float(int(e.id.split("-")[0]) % 2) for e in examples]
    measured = mean_of("a[t]", [e.id for e in examples], values)
    alone = estimate(measured).interval
    together = estimate(measured, clusters=clusters).interval
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)
    texts = [Example("a", ()), Example("b", ())]
    assert len(set(image_clusters(texts).values())) == 2, "no picture is no common picture"
    same = [Example(i, (), (ImageRef(data=b"x"),)) for i in "ab"]
    assert len(set(image_clusters(same).values())) == 1


def test_no_value_is_no_difference_and_no_small_p() -> None:
    nothing = mean_of("a[t]", ["1", "2"], [None, None])
    something = mean_of("a[t]", ["1", "2"], [1.0, 0.0])
    difference = compare(nothing, something)
    assert np.isnan(difference.value)
    assert np.isnan(difference.p_value)
    assert not is_clear(Comparison(estimate(something), estimate(nothing), difference))
