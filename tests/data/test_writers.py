"""LLaVA json: what is read is written back, and nothing that it cannot hold gets lost silently."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.data.readers.llava import parse_llava, read_llava
from polyptych.data.writers import WRITERS, llava_record, write_llava
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

words = st.text(min_size=1, max_size=12).filter(lambda s: s.strip() and "<image>" not in s)
names = st.from_regex(r"[a-z]{1,6}", fullmatch=True)


@st.composite
def llava_records(draw: st.DrawFn) -> dict[str, object]:
    turns = []
    count = 0
    for _ in range(draw(st.integers(1, 3))):
        parts = [*draw(st.lists(words | st.sampled_from(["<image>", "<image>\n"]), max_size=5))]
        parts.insert(draw(st.integers(0, len(parts))), draw(words))
        value = "".join(parts)
        count += value.count("<image>")
        turns.append({"from": "human", "value": value})
        turns.append({"from": "gpt", "value": draw(words)})
    record: dict[str, object] = {"id": draw(words)}
    images = draw(st.lists(names, min_size=count, max_size=count))
    if images:
        record["image"] = images[0] if count == 1 else images
    record["conversations"] = turns
    extra = draw(st.dictionaries(names.map("x_{}".format), st.integers(), max_size=2))
    return record | extra


@settings(max_examples=150, deadline=None)
@given(llava_records())
def test_llava_to_native_and_back(record: dict[str, object]) -> None:
    assert llava_record(parse_llava(record, "test", "folder"), "folder") == record


def example() -> Example:
    return Example(
        id="1",
        messages=(
            Message("system", (TextBlock("Be brief."),)),
            Message("user", (ImageBlock(), TextBlock("\nWhat is it?"))),
            Message("assistant", (TextBlock("A ball."),)),
        ),
        images=(ImageRef(path="a.png"),),
        references=("A ball.", "Ball."),
        choices=("A ball.", "A box."),
        metadata={"source": "made here"},
    )


def test_native_to_llava_and_back_keeps_references_choices_and_metadata(tmp_path: Path) -> None:
    before = replace(example(), images=(ImageRef(path=str(tmp_path / "a.png")),))
    for examples in ([], [before], [before, replace(before, id="2")]):
        assert write_llava(tmp_path / "a.json", examples) == len(examples)
        assert list(read_llava(tmp_path / "a.json")) == examples


def test_bytes_are_stored_beside_the_json(tmp_path: Path) -> None:
    data = b"\xff\xd8\xff as if a JPEG"
    write_llava(tmp_path / "a.json", [replace(example(), images=(ImageRef(data=data),))])
    (record,) = json.loads((tmp_path / "a.json").read_text())
    assert record["image"].startswith("images/")
    assert record["image"].endswith(".jpg")
    assert (tmp_path / record["image"]).read_bytes() == data


def test_what_llava_cannot_hold_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with_shot = replace(example(), shots=(example(),))
    with pytest.raises(PolyptychError, match="example '1': LLaVA json has no place for shots"):
        write_llava(tmp_path / "a.json", [example(), with_shot])
    clash = replace(example(), metadata={"image": "x"})
    with pytest.raises(PolyptychError, match=r"metadata keys \['image'\] belong to LLaVA json"):
        write_llava(tmp_path / "a.json", [clash])
    assert list(tmp_path.iterdir()) == []


def test_every_writer_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> object:
        yield replace(example(), images=(ImageRef(data=b"image"),))
        raise KeyboardInterrupt

    for name, write in WRITERS.items():
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / name, interrupted())  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []
