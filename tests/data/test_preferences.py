"""Pairs on disk: written and read back, and bad lines said with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyptych.data.preferences import answered, read_pairs, write_pairs
from polyptych.errors import PolyptychError
from polyptych.schema import ImageRef, PreferencePair
from polyptych.testing import tiny_examples, tiny_shot_examples


def pairs_of(examples) -> list[PreferencePair]:
    return [
        PreferencePair(e.id, e.prompt, "a dog.", "a cat.", e.images, e.shots, {"margin": 0.5})
        for e in examples
    ]


def test_pairs_come_back_as_they_were(tmp_path: Path) -> None:
    pairs = pairs_of([*tiny_examples(4), *tiny_shot_examples(0)])
    assert write_pairs(tmp_path / "pairs.jsonl", pairs) == 4
    read = read_pairs(tmp_path / "pairs.jsonl")
    assert [(p.id, p.prompt, p.chosen, p.rejected, p.metadata) for p in read] == [
        (p.id, p.prompt, p.chosen, p.rejected, p.metadata) for p in pairs
    ]
    assert [Path(i.path).read_bytes() for p in read for i in p.images] == [
        i.data for p in pairs for i in p.images
    ]
    write_pairs(tmp_path / "again.jsonl", read)  # paths this time
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "pairs.jsonl").read_text()


def test_shots_stay_with_their_pair(tmp_path: Path) -> None:
    pairs = pairs_of(tiny_shot_examples(2))
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    read = read_pairs(tmp_path / "pairs.jsonl")
    assert [len(pair.shots) for pair in read] == [1, 3]
    assert read[0].shots[0].messages == pairs[0].shots[0].messages


def test_a_pair_is_an_example_with_an_answer() -> None:
    pair = pairs_of(tiny_examples(1))[0]
    assert answered(pair).target is None
    assert answered(pair, pair.chosen).target == "a dog."
    assert answered(pair, pair.rejected).prompt == pair.prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "  "}, r"line 2 \(id 'tiny-1'\): the chosen answer is empty"),
        ({"rejected": None}, r"line 2 \(id 'tiny-1'\): the rejected answer is empty"),
        ({"rejected": "a dog. "}, r"line 2 \(id 'tiny-1'\): chosen and rejected are equal"),
        ({"answer": "x"}, r"line 2: a pair has the keys .*'shots'\], got .*'answer'"),
        ({"images": []}, r"line 2 \(id 'tiny-1'\): 3 image placeholder\(s\) .* but 0 image"),
        ({"id": "tiny-0"}, "line 2: id 'tiny-0' for the second time"),
    ],
)
def test_a_bad_line_is_said(tmp_path: Path, change: dict, message: str) -> None:
    file = tmp_path / "pairs.jsonl"
    write_pairs(file, pairs_of(tiny_examples(2)))
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n{json.dumps({**json.loads(second), **change})}\n")
    with pytest.raises(PolyptychError, match=message):
        read_pairs(file)


def test_no_pairs_and_no_file_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(PolyptychError, match=r"empty.jsonl: 0 pairs"):
        read_pairs(tmp_path / "empty.jsonl")
    with pytest.raises(PolyptychError, match=r"cannot read .*none.jsonl"):
        read_pairs(tmp_path / "none.jsonl")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    good, other = pairs_of(tiny_examples(2))
    bad = PreferencePair("bad", other.prompt, "a", "b", (ImageRef(path="x.png"),))  # needs three
    with pytest.raises(PolyptychError, match="3 image placeholder"):
        write_pairs(tmp_path / "pairs.jsonl", [good, bad])
    assert not list(tmp_path.iterdir())
