"""Bad items of tasks' files: alone the first stops, in a run they are named and the rest counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyptych import cli
from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.demon import benchmark as demon
from polyptych.evaluation.demon.sample import make_sample as make_demon
from polyptych.evaluation.faults import collected, item, note, on_error
from polyptych.evaluation.results import read_run
from polyptych.evaluation.task import load_examples, read_once
from polyptych.evaluation.tasks.catalog import BENCHMARKS, load_task

Change = Callable[[str], str]


def drawn(name: str, folder: Path) -> Path:
    benchmark = BENCHMARKS[name]
    assert benchmark.sample is not None
    benchmark.sample(benchmark.root(folder))
    return benchmark.root(folder)


def once(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return change


def edit(change: Callable[[Any], None]) -> Change:
    """A change of what a JSON file says."""

    def rewrite(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return rewrite


def spoil(path: Path, change: Change) -> None:
    path.write_text(change(path.read_text("utf-8")), "utf-8")


def nine_answers(content: Any) -> None:
    content["annotations"][3]["answers"].pop()


def nan_box(content: Any) -> None:
    content["annotations"][0]["bbox"][2] = float("nan")


def far_box(content: Any) -> None:
    content["annotations"][1]["bbox"] = [900, 0, 20, 20]


def no_caption(content: Any) -> None:
    content["annotations"][0]["caption"] = " "


CASES: list[tuple[str, str, Change, int, str]] = [
    (
        "okvqa",
        "mscoco_val2014_annotations.json",
        edit(nine_answers),
        1,
        r"annotations.json question '40': 9 human answers, 10 are needed",
    ),
    (
        "textvqa",
        "TextVQA_0.5.1_val.json",
        edit(lambda content: content["data"][0].update(answers="mo")),
        1,
        "no list 'answers'",
    ),
    ("refcoco", "instances.json", edit(nan_box), 1, "annotation '100': expected a number, got nan"),
    ("refcoco", "instances.json", edit(far_box), 1, r"'101'\): box .* is not inside an image of"),
    (
        "refcoco_plus",
        "refcoco+_val.jsonl",
        once('"width": 176', '"width": null'),
        1,
        "line 1: expected a number, got None",
    ),
    ("gqa", "data/testdev_balanced_questions.json", once('"answer"', '"a"'), 1, "'00000000': 'ans"),
    (
        "pope",
        "coco/coco_pope_random.json",
        once('"label": "yes"', '"label": ""'),
        1,
        "line 1 .*yes",
    ),
    (  # the other question of that image is left out with it
        "mme",
        "llava_mme.jsonl",
        once("Is there a yellow tree", "Is there a yellow tram"),
        2,
        "existence/0001.jpg#2': its image has 1 question",
    ),
    (
        "seed",
        "SEED-Bench.json",
        once('"answer": "C"', '"answer": "E"'),
        1,
        "question '0': 'answer'",
    ),
    (
        "aokvqa",
        "aokvqa_v1p0_val.json",
        once('"correct_choice_idx": 0', '"correct_choice_idx": 4'),
        1,
        "'drawn0000': 'correct_choice_idx' is 4 for 4 choices",
    ),
    ("scienceqa", "problems.json", once('"answer": 1', '"answer": 9'), 1, "'1': 'answer' is 9 for"),
    (
        "mmbench",
        "mmbench_dev_20230712.tsv",
        once("\tB\tcolor\t/9j/", "\tB\tcolor\t?"),
        1,
        "row 1 .*64",
    ),
    (  # with all rotations of that row
        "mmbench_circular",
        "mmbench_dev_20230712.tsv",
        once("\tB\tcolor\t/9j/", "\tZ\tcolor\t/9j/"),
        2,
        r"row 1 \(index '0'\): the answer 'Z' is no letter",
    ),
    (
        "coco_caption",
        "coco_karpathy_test_gt.json",
        edit(no_caption),
        1,
        "image '1': a caption must",
    ),
    ("flickr30k_caption", "dataset_flickr30k.json", once('"raw"', '"row"'), 1, "got None"),
    ("sam_vist", "annotations.json", once('"output"', '"out"'), 1, "record 1: missing or wrong"),
    ("nlvr2", "data/test1.json", once('"True"', '"Maybe"'), 1, "line 1 .* got 'Maybe'"),
    (
        "mirb",
        "count.json",
        once('"questions"', '"question"'),
        1,
        "count.json record 0: 'questions'",
    ),
    ("mm_vet", "mm-vet.json", once('"capability"', '"abilities"'), 1, r"mm-vet.json \('v1_0'\)"),
    (
        "mmhal",
        "response_template.json",
        once('"gt_answer"', '"answer"'),
        1,
        "record 0: 'gt_answer'",
    ),
    (
        "llava_bench",
        "questions.jsonl",
        once('"conv"', '"chat"'),
        1,
        "line 1 .*no instruction for 'ch",
    ),
    ("mementos", "dl_description.csv", once("dl_0.png,", ","), 1, "line 2: no name of an image"),
    (
        "amber",
        "data/annotations.json",
        once('"yes"', '"si"'),
        1,
        "'truth' must be yes or no, got 's",
    ),
    (
        "vqav2",
        "llava_vqav2_mscoco_test-dev2015.jsonl",
        once('{"q', "{q"),
        1,
        "line 1: not valid JSON",
    ),
]


@pytest.mark.parametrize(("name", "file", "change", "lost", "message"), CASES)
def test_the_bad_item_is_named_and_the_others_stay(
    tmp_path: Path, name: str, file: str, change: Change, lost: int, message: str
) -> None:
    root = drawn(name, tmp_path)
    whole = load_examples(load_task(name, tmp_path))
    assert whole.faults == []
    spoil(root / file, change)
    examples, faults = load_examples(load_task(name, tmp_path))
    assert len(examples) == len(whole.examples) - lost
    kept = {example.id: example for example in whole.examples}
    assert all(kept[example.id].messages == example.messages for example in examples)
    assert 1 <= len(faults) <= 2
    assert all(str(root) in fault or name == "mme" for fault in faults)
    assert re.search(message, "\n".join(faults)), faults
    with pytest.raises(PolyptychError):
        list(load_task(name, tmp_path).load())


@pytest.mark.parametrize(
    ("name", "part", "column", "value", "message"),
    [
        ("blink", "Counting/val", "answer", "(E)", "'E' is no letter of 4"),
        ("muirbench", "data/test", "image_list", [], "but 0 image"),
        ("mantis_eval", "mantis_eval/test", "id", "drawn_1", "id 'drawn_1' occurs twice"),
    ],
)
def test_a_bad_row_is_named_and_the_others_stay(
    tmp_path: Path, name: str, part: str, column: str, value: object, message: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = drawn(name, tmp_path) / f"{part}-00000-of-00001.parquet"
    total = len(load_examples(load_task(name, tmp_path)).examples)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    examples, faults = load_examples(load_task(name, tmp_path))
    assert len(examples) == total - 1
    (fault,) = faults
    assert message in fault
    assert f"{path} row 3" in fault


def test_where_nothing_is_left_it_is_said(tmp_path: Path) -> None:
    root = drawn("gqa", tmp_path)
    spoil(
        root / "data" / "testdev_balanced_questions.json", lambda text: text.replace("types", "x")
    )
    with pytest.raises(PolyptychError, match=r"gqa: all 12 items are bad, first: .*'00000000'"):
        load_examples(load_task("gqa", tmp_path))
    root = drawn("nlvr2", tmp_path)
    spoil(root / "data" / "test1.json", lambda text: text.replace('"label"', '"x"'))
    with pytest.raises(
        PolyptychError, match=r"no sentences in it; \d+ bad items, first: .* line 1 "
    ):
        load_examples(load_task("nlvr2", tmp_path))


def test_faults_are_collected_inside_only() -> None:
    with pytest.raises(PolyptychError, match="first"), item():
        raise PolyptychError("first")
    assert on_error() is None
    with collected() as faults:
        with item():
            raise PolyptychError("second")
        with pytest.raises(ValueError, match="ours"), item():
            raise ValueError("ours")
        with collected() as others, item():
            raise PolyptychError("third")
        tell = on_error()
        assert tell is not None
        tell(PolyptychError("fourth"))
        note(["fifth"])
    note(["sixth"])
    assert (faults, others) == (["second", "fourth", "fifth"], ["third"])


def test_what_is_read_once_tells_its_faults_again(tmp_path: Path) -> None:
    root = drawn("okvqa", tmp_path)
    spoil(root / "mscoco_val2014_annotations.json", edit(nine_answers))
    task = read_once(load_task("okvqa", tmp_path))
    (root / "mscoco_val2014_annotations.json").unlink()
    examples, faults = load_examples(task)
    assert len(faults) == 1
    assert list(task.load()) == examples


def test_demon_names_a_bad_sample_among_its_notes(tmp_path: Path) -> None:
    make_demon(tmp_path)
    path = tmp_path / "VIST" / "core" / "core.json"
    total = len(read_json(path)["data"])
    spoil(path, edit(lambda content: content["data"][0].pop("task_instance")))
    found = demon.read_benchmark(tmp_path)
    assert len(found.datasets["VIST"]) == total - 1
    assert any(line.startswith(f"left out: {path} sample") for line in found.notes)


# From the shell.


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data with one question that has nine human answers, and an answerer that says "blue"."""
    root = drawn("okvqa", tmp_path / "data")
    spoil(root / "mscoco_val2014_annotations.json", edit(nine_answers))
    (tmp_path / "blue.py").write_text("def says(prompt, images):\n    return 'blue'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "200"})


def test_a_run_scores_the_rest_and_says_so(spoiled: Path) -> None:
    result = run("evaluate", "blue:says", "okvqa", "--data", "data", "--out", "run")
    assert result.exit_code == 1, result.output
    assert "question '40': 9 human answers, 10 are needed" in result.output
    assert "1 bad item(s) of the tasks' files were left out" in result.output
    record = read_json(spoiled / "run" / "scores.json")
    assert len(record["faults"]) == 1
    assert record["count"] == record["scores"][0]["count"] == 11
    page = (spoiled / "run" / "report.html").read_text("utf-8")
    assert "Left out: 1 bad item of the task's files." in page
    (again,) = read_run(spoiled / "run")["okvqa"].answers.problems
    assert again.endswith(record["faults"][0])

    scored = run("score", "run/predictions.jsonl", "okvqa", "--data", "data")
    assert scored.exit_code == 1
    assert "9 human answers" in scored.output
    assert "scored 11 of 11 examples; 1 problem(s)" in scored.output
    assert f"{record['scores'][0]['value']:8.4f}" in scored.output


def test_an_example_without_its_picture_is_left_out(spoiled: Path) -> None:
    picture = Path(load_examples(load_task("okvqa", "data")).examples[0].images[0].path or "")
    picture.unlink()
    result = run("evaluate", "blue:says", "okvqa", "--data", "data", "--out", "run")
    assert result.exit_code == 1, result.output
    record = read_json(spoiled / "run" / "scores.json")
    lost = [fault for fault in record["faults"] if f"{picture.name} does not exist" in fault]
    assert lost and len(record["faults"]) == 1 + len(lost)
    assert record["count"] == record["scores"][0]["count"] == 11 - len(lost)
    assert all(fault in result.output.replace("\n", "") for fault in lost)

    for path in (spoiled / "data").rglob("*.jpg"):
        path.unlink()
    result = run("evaluate", "blue:says", "okvqa", "--data", "data", "--out", "other")
    assert result.exit_code and "no example has its pictures, first: example" in result.output


def test_an_answer_to_the_bad_item_is_named_too(spoiled: Path) -> None:
    run("evaluate", "blue:says", "okvqa", "--data", "data", "--out", "run")
    with open("run/predictions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": "40", "prediction": "blue"}\n')
    scored = run("score", "run/predictions.jsonl", "okvqa", "--data", "data")
    assert scored.exit_code == 1
    assert "(id '40'): the task has no such example, or cannot use it" in scored.output
    assert "scored 11 of 11 examples; 2 problem(s)" in scored.output


def test_a_bad_record_of_ones_own_file_stops_the_run(spoiled: Path) -> None:
    lines = [
        {"id": str(n), "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}
        | {"images": [], "references": ["blue", "red"]}
        for n in range(4)
    ]
    lines[2]["id"] = ""
    Path("mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    result = run("evaluate", "blue:says", "mine.jsonl", "--out", "mine")
    assert result.exit_code == 2, result.output
    assert "mine.jsonl line 3: 'id' must be a non-empty string" in result.output
    assert not Path(spoiled, "mine").exists()
