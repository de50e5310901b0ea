"""The native format: round trips, every rule with its error, and writing that leaves no halves."""

from __future__ import annotations

import io
import json
import os
import string
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polyptych.data.records import (
    IMAGE_TOKEN,
    parse_record,
    read_records,
    record_of,
    write_records,
)
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock


def example(identity: str = "g1", images: int = 2) -> Example:
    return Example(
        id=identity,
        messages=(
            Message("user", (*(ImageBlock() for _ in range(images)), TextBlock("What is it?"))),
            Message("assistant", (TextBlock("A ball."),)),
        ),
        images=tuple(ImageRef(path=f"images/{number}.png") for number in range(images)),
        references=("A ball.", "It is a ball."),
        metadata={"task": "group_captioning"},
    )


def record(**changes: object) -> dict[str, object]:
    result = record_of(example(), "") | changes
    return {key: value for key, value in result.items() if value is not ...}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def user(*content: object) -> dict[str, object]:
    return {"role": "user", "content": list(content)}


TEXT = {"type": "text", "text": "What is it?"}
PLACE = {"type": "image"}

# ---------------------------------------------------------------- round trips

words = st.text(min_size=1, max_size=20).filter(lambda s: s.strip() and IMAGE_TOKEN not in s)
names = st.text(string.ascii_letters + string.digits + "_äé ", min_size=1, max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, ...]:
    turns: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        blocks = draw(st.lists(st.just(ImageBlock()) | st.builds(TextBlock, words), max_size=4))
        blocks.insert(draw(st.integers(0, len(blocks))), TextBlock(draw(words)))
        turns.append(Message("user", tuple(blocks)))
        turns.append(Message("assistant", (TextBlock(draw(words)),)))
    return tuple(turns)


@st.composite
def examples(draw: st.DrawFn, shots: bool = True) -> Example:
    turns = draw(messages())
    count = sum(turn.image_count for turn in turns)
    refs = st.builds(
        lambda name, digest: ImageRef(path=f"data/images/{name}.png", sha256=digest),
        names,
        st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    )
    return Example(
        id=draw(names),
        messages=turns,
        images=tuple(draw(st.lists(refs, min_size=count, max_size=count))),
        references=tuple(draw(st.lists(st.text(max_size=9), max_size=3))),
        choices=tuple(draw(st.lists(words, max_size=3))),
        shots=tuple(draw(st.lists(examples(shots=False), max_size=2))) if shots else (),
        metadata=draw(st.dictionaries(names, json_values, max_size=3)),
    )


@settings(max_examples=150, deadline=None)
@given(examples())
def test_example_to_record_and_back(before: Example) -> None:
    line = json.dumps(record_of(before, "data"))
    assert parse_record(json.loads(line), "test", "data") == before


@settings(max_examples=50, deadline=None)
@given(examples())
def test_record_to_example_and_back(before: Example) -> None:
    written = record_of(before, "data")
    assert record_of(parse_record(written, "test", "elsewhere"), "elsewhere") == written


@pytest.mark.parametrize("images", [0, 1, 40])
def test_any_number_of_images_survives_a_file(tmp_path: Path, images: int) -> None:
    before = example(images=images)
    before = replace(
        before, images=tuple(ImageRef(path=str(tmp_path / ref.path)) for ref in before.images)
    )
    assert write_records(tmp_path / "a.jsonl", [before]) == 1
    assert list(read_records(tmp_path / "a.jsonl")) == [before]


def test_image_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    ref = ImageRef(path=str(tmp_path / "elsewhere" / "a.png"))
    write_records(tmp_path / "inner" / "a.jsonl", [replace(example(images=1), images=(ref,))])
    written = json.loads((tmp_path / "inner" / "a.jsonl").read_text())
    assert written["images"] == ["../elsewhere/a.png"]
    (read,) = read_records(tmp_path / "inner" / "a.jsonl")
    assert os.path.normpath(read.images[0].path or "") == ref.path


# ---------------------------------------------------------------- broken input

BAD_RECORDS = {
    "no object": ([1], r"must be an object, got a list"),
    "unknown key": (record(imgs=[]), r"unknown key\(s\) \['imgs'\]"),
    "missing key": (record(images=...), r"missing key\(s\) \['images'\]"),
    "number as id": (record(id=7), r"'id' must be a non-empty string, got 7"),
    "path instead of list": (record(images="a.png"), r"'images' must be a list, got a string"),
    "more images than places": (record(images=["a"] * 5), r"2 image placeholder.* but 5 image"),
    "more places than images": (record(images=[]), r"2 image placeholder.* but 0 image"),
    "text as content": (
        record(messages=[{"role": "user", "content": "Hi"}]),
        r"'content' must be a list of blocks, got a string",
    ),
    "literal token": (
        record(messages=[user({"type": "text", "text": "<image> What?"})], images=[]),
        r"literal <image> in a text",
    ),
    "text on an image block": (
        record(messages=[user(TEXT, {"type": "image", "text": None})]),
        r"a block must be",
    ),
    "path on an image block": (
        record(messages=[user(TEXT, {"type": "image", "path": "a.png"})]),
        r"a block must be",
    ),
    "role": (record(messages=[{"role": "human", "content": [TEXT]}]), r"role must be one of"),
    "no messages": (record(messages=[], images=[]), r"empty instruction"),
    "no instruction": (record(messages=[user(PLACE, PLACE)]), r"empty instruction"),
    "blank instruction": (
        record(messages=[user(PLACE, PLACE, {"type": "text", "text": " \n"})]),
        r"empty instruction",
    ),
    "empty answer": (
        record(messages=[user(PLACE, PLACE, TEXT), {"role": "assistant", "content": []}]),
        r"empty assistant message",
    ),
    "number as reference": (record(references=[1]), r"'references' must be a list of strings"),
    "image without path": (record(images=["", "b"]), r"an image must have a path"),
    "image by url": (record(images=[{"url": "http://x"}, "b"]), r"an image must be a path or"),
    "short hash": (record(images=[{"path": "a", "sha256": "12"}, "b"]), r"64 hexadecimal"),
    "list as metadata": (record(metadata=[]), r"'metadata' must be an object"),
    "bad shot": (record(shots=[record(images=[])]), r"shot 1 .*2 image placeholder.* 0 image"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_names_file_line_and_fault(tmp_path: Path, bad: object, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in [record(), bad]))
    reader = read_records(path)
    assert next(reader).id == "g1"
    with pytest.raises(PolyptychError, match=message) as caught:
        next(reader)
    assert str(caught.value).startswith(f"{path} line 2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", "messages": [', "not valid JSON"),
        (b"", "empty, expected a JSON object"),
        (b'{"id": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_line_7(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(record()).encode()
    path.write_bytes(b"\n".join([good] * 6 + [line] + [good] * 2))
    read = []
    with pytest.raises(PolyptychError, match=f"a.jsonl line 7: {message}"):
        read.extend(read_records(path))
    problems: list[PolyptychError] = []
    assert len(list(read_records(path, on_error=problems.append))) == 8
    assert len(problems) == 1


def test_missing_file() -> None:
    with pytest.raises(PolyptychError, match=r"cannot read nowhere.jsonl: No such file"):
        list(read_records("nowhere.jsonl"))


def test_what_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    bad = replace(example("g2"), images=())
    with pytest.raises(PolyptychError, match=r"'g2': 2 image placeholder.* 0 image"):
        write_records(tmp_path / "a.jsonl", [example(), bad])
    odd = replace(example("g3"), metadata={"when": object()})
    with pytest.raises(PolyptychError, match="'g3': cannot be written as JSON"):
        write_records(tmp_path / "a.jsonl", [odd])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- writing


def with_bytes(identity: str = "b") -> Example:
    return replace(example(identity), images=(ImageRef(data=png()), ImageRef(data=png())))


def test_images_given_as_bytes_become_files_named_by_content(tmp_path: Path) -> None:
    assert write_records(tmp_path / "a.jsonl", [with_bytes("1"), with_bytes("2")]) == 2
    (stored,) = (tmp_path / "images").iterdir()
    assert stored.read_bytes() == png()
    assert stored.suffix == ".png"
    for read in read_records(tmp_path / "a.jsonl"):
        assert {ref.path for ref in read.images} == {str(stored)}


class DiskFull:
    """A file that takes a few characters, then reports the system's error 28."""

    def __init__(self, file: IO[Any], room: int) -> None:
        self.file, self.room = file, room

    def write(self, text: str | bytes) -> int:
        self.room -= len(text)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(text)

    def __enter__(self) -> DiskFull:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize(("full", "room"), [("a.jsonl", 1000), (".png", 20)])
def test_full_disk_leaves_the_old_file_and_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str, room: int
) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, [example("old")])
    before = path.read_bytes()

    def open_until_full(name: Path, *args: Any, **options: Any) -> Any:
        file = open(name, *args, **options)  # noqa: SIM115
        return DiskFull(file, room) if name.name.endswith(f"{full}.partial") else file

    monkeypatch.setattr("polyptych.files.open", open_until_full, raising=False)
    message = rf"cannot write .*{full}: No space left on device"
    with pytest.raises(PolyptychError, match=message):
        write_records(path, (with_bytes(str(number)) for number in range(100)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_bytes() == before


def test_interrupt_leaves_nothing_half_written(tmp_path: Path) -> None:
    def interrupted() -> object:
        yield with_bytes("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "a.jsonl", interrupted())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_keeps_images_it_did_not_make(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [with_bytes()])

    def interrupted() -> object:
        yield with_bytes()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "b.jsonl", interrupted())  # type: ignore[arg-type]
    assert len(list((tmp_path / "images").iterdir())) == 1
