"""`check_data` lists every bad record of a set at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from polyptych.data.checking import check_data
from polyptych.errors import PolyptychError


def record(identity: str, *images: object, places: int | None = None) -> str:
    count = len(images) if places is None else places
    content = [{"type": "image"}] * count + [{"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"id": identity, "messages": messages, "images": list(images)})


def picture(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((32, 32), 50).save(path)
    return str(path)


def test_all_problems_are_listed_in_order_each_on_one_line(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    whole = Path(picture(tmp_path / "half.png")).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    path = tmp_path / "train.jsonl"
    lines = [
        record("1", "good.png", "good.png"),
        record("2", "no.png"),
        record("3", "good.png", places=3),
        '{"id": "4", ',
        record("1", "good.png"),
        record("6", "good.png", "half.png"),
        record("7", {"path": "good.png", "sha256": "0" * 64}),
        record("8", "no.png"),
    ]
    path.write_text("\n".join(lines) + "\n")
    report = check_data(path)
    expected = [
        ("line 2 (id '2')", "no.png does not exist"),
        ("line 3 (id '3')", "3 image placeholder(s) in the messages but 1 image(s)"),
        ("line 4", "not valid JSON"),
        ("line 5 (id '1')", "the same id as line 1"),
        ("line 6 (id '6')", "half.png cannot be decoded"),
        ("line 7 (id '7')", "good.png has changed"),
        ("line 8 (id '8')", "no.png does not exist"),
    ]
    assert len(report.problems) == len(expected)
    for problem, (where, what) in zip(report.problems, expected, strict=True):
        assert problem.startswith(f"{path} {where}: ")
        assert what in problem
        assert "\n" not in problem
    assert not report.ok
    assert (report.records, report.images) == (8, 4)
    assert report.summary == f"{path}: native, 8 record(s), 4 image file(s): 7 problem(s)"


def test_each_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str | None] = []
    monkeypatch.setattr("polyptych.data.checking.load_image", lambda ref: decoded.append(ref.path))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(record(str(n), "a.png", "b.png") for n in range(5)))
    assert check_data(path).ok
    assert decoded == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert check_data(path, decode=False).images == 0
    assert len(decoded) == 2


def test_every_file_of_a_native_folder_is_checked(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(record("1") + "\n" + record("2", places=1))
    report = check_data(tmp_path)
    assert report.records == 4
    assert [Path(p.split(" line")[0]).name for p in report.problems] == [
        "test.jsonl",
        "train.jsonl",
    ]
    assert check_data(tmp_path, split="test").records == 2


def test_other_formats(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image> What?"}]
    items = [{"id": n, "image": "a.png", "conversations": turns[:n]} for n in (1, 0, 1)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items))
    report = check_data(path)
    assert report.source_format == "llava"
    assert [p.removeprefix(f"{path} ").split(":")[0] for p in report.problems] == [
        "example 1 (id '1')",
        "record 2 (id '0')",
        "example 3 (id '1')",
        "example 3 (id '1')",
    ]
    path.write_text("[{]")
    (problem,) = check_data(path).problems
    assert "a.json: not valid JSON" in problem


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match="no data found"):
        check_data(tmp_path)
