"""Files for servers: exactly their layout, every id once, and clear words for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.submission import (
    SUBMISSIONS,
    check_submission,
    submission_of,
    write_submission,
)
from polyptych.evaluation.tasks.catalog import BENCHMARKS, load_task
from polyptych.evaluation.workbook import read_workbook, write_workbook
from polyptych.schema import Prediction

DRAWN = [name for name in SUBMISSIONS if name in BENCHMARKS and BENCHMARKS[name].sample]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submissions")
    for name in DRAWN:
        sample = BENCHMARKS[name].sample
        assert sample is not None
        sample(BENCHMARKS[name].root(folder))
    return folder


def answered(name: str, data: Path, text: str = "The B.") -> list[Prediction]:
    return [Prediction(example.id, text) for example in load_task(name, data).load()]


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_written_passes_the_check(name: str, data: Path, tmp_path: Path) -> None:
    for suffix in submission_of(name).suffixes:
        out = write_submission(name, data, answered(name, data), tmp_path / f"{name}{suffix}")
        assert check_submission(name, data, out) >= len(answered(name, data))


def test_vqav2_asks_for_all_of_test(data: Path, tmp_path: Path) -> None:
    out = write_submission("vqav2", data, answered("vqav2", data), tmp_path / "a.json")
    rows = json.loads(out.read_text())
    assert rows[0] == {"question_id": 1000, "answer": "b"}
    assert [row["answer"] for row in rows] == ["b"] * 12 + [""] * 4
    assert all(type(row["question_id"]) is int for row in rows)


def test_each_server_gets_its_own_keys(data: Path, tmp_path: Path) -> None:
    def first(name: str, suffix: str) -> object:
        out = write_submission(name, data, answered(name, data), tmp_path / f"{name}{suffix}")
        text = out.read_text()
        return json.loads(text.splitlines()[0]) if suffix == ".jsonl" else json.loads(text)[0]

    assert first("vizwiz", ".json") == {"image": "VizWiz_test_00000000.jpg", "answer": "b"}
    assert first("gqa", ".json") == {"questionId": "00000000", "prediction": "the b"}
    assert first("coco_caption", ".json") == {"image_id": 1, "caption": "The B."}
    assert first("seed", ".jsonl") == {"question_id": "0", "prediction": "The B."}
    out = write_submission(
        "blink_test", data, answered("blink_test", data, "(B)"), tmp_path / "b.json"
    )
    assert json.loads(out.read_text())["test_Counting_1"] == "(B)"


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv"])
def test_mmbench_keeps_its_columns(data: Path, tmp_path: Path, suffix: str) -> None:
    strange = 'a "b"\t<c> & d\n图'
    predictions = answered("mmbench", data, strange)
    out = write_submission("mmbench", data, predictions, tmp_path / f"a{suffix}")
    if suffix == ".xlsx":
        rows = read_workbook(out)
        head = ["index", "question", "A", "B", "C", "D", "prediction", "answer"]
        assert rows[0] == head
        assert rows[2][0] == 1
        assert rows[2][6] == strange
    assert check_submission("mmbench", data, out) == len(predictions)


def test_a_workbook_holds_any_text(tmp_path: Path) -> None:
    rows = [["index", "a"], [7, " x\x00y\n<&> é"], [8, ""]]
    write_workbook(tmp_path / "a.xlsx", rows)
    assert read_workbook(tmp_path / "a.xlsx") == [["index", "a"], [7, " xy\n<&> é"], [8, ""]]
    with pytest.raises(PolyptychError, match="40000 characters, at most 32767 fit"):
        write_workbook(tmp_path / "b.xlsx", [["x" * 40_000]])
    assert not (tmp_path / "b.xlsx").exists()


def test_a_long_table_has_columns_beyond_z(tmp_path: Path) -> None:
    write_workbook(tmp_path / "a.xlsx", [[f"c{n}" for n in range(60)]])
    assert read_workbook(tmp_path / "a.xlsx")[0][-1] == "c59"


@pytest.mark.parametrize(
    ("name", "suffix", "spoil", "message"),
    [
        ("vqav2", ".json", lambda t: t.replace("1000,", "2000,", 1), "1 id.* twice, first 2000"),
        ("vqav2", ".json", lambda t: t.replace("1000,", "7,", 1), "1 of 16 ids are missing.* 1000"),
        ("vqav2", ".json", lambda t: t.replace("1000,", '"1000",', 1), "1 of 16 ids are missing"),
        ("vqav2", ".json", lambda t: t[:-1] + ', {"question_id": 5, "answer": ""}]', "1 unknown"),
        ("vqav2", ".json", lambda t: t.replace('"b"', "null", 1), "answer to 1000 must be a text"),
        ("vqav2", ".json", lambda t: t.replace('"answer"', '"a"', 1), "exactly the keys answer"),
        ("vqav2", ".json", lambda t: t[:-9], "not valid JSON"),
        ("seed", ".jsonl", lambda t: t.split("\n", 1)[1], "1 of 12 ids are missing, first '0'"),
        ("blink_test", ".json", lambda t: t[:-1] + ', "test_Counting_1": "(A)"}', "occur twice"),
        ("blink_test", ".json", lambda t: f"[{t}]", "must be an object"),
        ("mmbench", ".tsv", lambda t: t.replace("prediction", "p", 1), "no columns index and p"),
        ("mmbench", ".tsv", lambda t: t.rsplit("\n", 2)[0] + "\n", "1 of 12 ids are missing.*'11'"),
    ],
)
def test_what_a_server_would_refuse_is_named(
    data: Path, tmp_path: Path, name: str, suffix: str, spoil: Callable[[str], str], message: str
) -> None:
    out = write_submission(name, data, answered(name, data), tmp_path / f"a{suffix}")
    text = out.read_text("utf-8")
    assert spoil(text) != text
    out.write_text(spoil(text), "utf-8")
    with pytest.raises(PolyptychError, match=message) as caught:
        check_submission(name, data, out)
    assert "a." in str(caught.value)


def test_predictions_must_be_complete(data: Path, tmp_path: Path) -> None:
    predictions = answered("vizwiz", data)
    out = tmp_path / "a.json"
    with pytest.raises(PolyptychError, match="1 of 12 examples have no prediction, first '11'"):
        write_submission("vizwiz", data, predictions[:-1], out)
    with pytest.raises(PolyptychError, match="two predictions have the id '0'"):
        write_submission("vizwiz", data, [predictions[0], *predictions], out)
    with pytest.raises(PolyptychError, match=r"vizwiz is submitted as \.json"):
        write_submission("vizwiz", data, predictions, tmp_path / "a.xlsx")
    with pytest.raises(PolyptychError, match="pope: no file to submit; known: vqav2"):
        write_submission("pope", data, predictions, out)
    assert not out.exists()
