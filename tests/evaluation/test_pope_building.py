"""POPE's questions from a table of objects."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.tasks.pope import CATEGORIES, read_pope
from polyptych.evaluation.tasks.pope_building import build_questions, write_questions

TABLE = {
    "1.jpg": {"dog", "ball", "person"},
    "2.jpg": {"dog", "ball", "car"},
    "3.jpg": {"orange", "cup", "person"},
    "4.jpg": {"person"},
    "5.jpg": {"dog", "ball", "bird"},
}


def test_half_is_there_and_half_is_not() -> None:
    for category in CATEGORIES:
        rows = build_questions(TABLE, category)
        assert [row["question_id"] for row in rows] == list(range(1, 25))
        assert [row["label"] for row in rows] == ["yes", "no"] * 12
        assert len({(row["image"], row["text"]) for row in rows}) == 24
        for row in rows:
            name = row["text"].removesuffix(" in the image?").split(" ")[-1]
            assert (name in TABLE[row["image"]]) == (row["label"] == "yes")
    assert {row["text"] for row in rows} >= {"Is there an orange in the image?"}


def test_absent_objects_are_popular_or_seen_together() -> None:
    def absent(category: str, image: str) -> list[str]:
        rows = [row for row in build_questions(TABLE, category) if row["image"] == image]  # type: ignore[arg-type]
        return [row["text"].split()[3] for row in rows if row["label"] == "no"]

    assert absent("popular", "3.jpg") == ["ball", "dog", "bird"]
    asked = [r["text"].split()[3] for r in build_questions(TABLE, "adversarial")][12:18:2]
    seen = dict(zip(asked, absent("adversarial", "3.jpg"), strict=True))
    # Only "person" is seen with other things outside this image: with "ball" and "dog".
    assert seen["person"] in ("ball", "dog")
    assert set(seen.values()) == {"ball", "dog", "bird"}


def test_the_seed_decides_and_nothing_else() -> None:
    assert build_questions(TABLE, "random") == build_questions(TABLE, "random")
    assert build_questions(TABLE, "random") != build_questions(TABLE, "random", seed=1)


def test_written_files_are_read_as_pope(tmp_path: Path) -> None:
    assert write_questions(tmp_path, TABLE) == dict.fromkeys(CATEGORIES, 24)
    examples = read_pope(tmp_path)
    assert len(examples) == 72
    assert examples[1].references == ("no",)


def test_too_few_objects_are_said() -> None:
    with pytest.raises(PolyptychError, match="none of 5 images has 4 or more objects"):
        build_questions(TABLE, "random", per_image=4)
    with pytest.raises(PolyptychError, match=r"image '1' has 2 of all objects; no 1 others"):
        build_questions({"1": {"a", "b"}}, "popular", per_image=2)


@pytest.mark.shared_data
def test_popular_ones_are_those_of_the_published_file(shared_dir: Path) -> None:
    with gzip.open(shared_dir / "data" / "chair" / "coco2014_objects.jsonl.gz", "rt") as file:
        objects = {row["image_id"]: row["objects"] for row in map(json.loads, file)}
    lines = (shared_dir / "data" / "pope" / "coco_pope_popular.jsonl").read_text().splitlines()
    published: dict[str, set[str]] = {}
    for row in map(json.loads, lines):
        published.setdefault(row["image"], set())
        if row["label"] == "no":
            published[row["image"]].add(row["text"])
    table = {image: objects[int(image[-16:-4])] for image in published}
    built: dict[str, set[str]] = {image: set() for image in published}
    for row in build_questions(table, "popular"):
        if row["label"] == "no":
            built[row["image"]].add(row["text"])
    equal = sum(built[image] == published[image] for image in published)
    assert equal == len(published) == 500
