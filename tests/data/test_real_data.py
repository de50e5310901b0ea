"""The readers on the real development data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from polyptych.data.checking import check_data
from polyptych.data.images import image_hash, load_image
from polyptych.data.readers import detect_format, read_examples
from polyptych.data.readers.emoji_tree import branch_of
from polyptych.data.readers.splitting import SPLITS
from polyptych.data.records import read_records, write_records
from polyptych.schema import Example

pytestmark = pytest.mark.shared_data

SETS = ("african_storybook", "trashnet", "noto_emoji")


def images_by_split(examples: list[Example]) -> dict[str, set[str]]:
    shown: dict[str, set[str]] = {split: set() for split in SPLITS}
    for example in examples:
        shown[example.metadata["split"]] |= {image_hash(ref) for ref in example.images}
    return shown


@pytest.mark.parametrize("name", SETS)
def test_no_picture_is_in_two_splits_even_under_two_names(shared_dir: Path, name: str) -> None:
    folder = shared_dir / "data" / name
    assert detect_format(folder) == name
    shown = images_by_split(list(read_examples(folder)))
    assert min(len(pictures) for pictures in shown.values()) > 100
    for split, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not shown[split] & shown[other]


def test_every_story_page_with_a_predecessor_is_asked_once(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "african_storybook"
    stories = [json.loads(line) for line in (folder / "stories.jsonl").read_text().splitlines()]
    examples = list(read_examples(folder))
    assert len(examples) == sum(len(story["pages"]) - 1 for story in stories)
    asked = Counter(example.metadata["story"] for example in examples)
    assert asked == {s["id"]: len(s["pages"]) - 1 for s in stories if len(s["pages"]) > 1}
    for example in examples:
        assert example.metadata["text_by"]
        assert example.metadata["license"] == "CC BY"
        assert 2 <= len(example.images) <= 5


def test_trashnet_groups_are_what_they_say(shared_dir: Path) -> None:
    for example in read_examples(shared_dir / "data" / "trashnet", split="test", count=300):
        found = [Path(ref.path or "").stem.rstrip("0123456789") for ref in example.images]
        odd = example.metadata["odd"]
        wanted = [example.metadata["shared"]] * len(found)
        if odd is not None:
            wanted[odd - 1] = example.metadata["odd_material"]
            assert wanted[odd - 1] != example.metadata["shared"]
        assert found == wanted


def test_emoji_answers_are_the_deepest_common_node(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "noto_emoji"
    lines = (folder / "emoji.jsonl").read_text().splitlines()
    subgroup = {item["file"]: item["subgroup"] for item in map(json.loads, lines)}
    levels = Counter()
    for example in read_examples(folder, count=300):
        paths = []
        for ref in example.images:
            branch = branch_of(subgroup[str(Path(ref.path or "").relative_to(folder))])
            assert branch is not None
            paths.append(branch)
        common = [level[0] for level in zip(*paths, strict=False) if len(set(level)) == 1]
        assert example.metadata["shared"] == common[-1]
        levels[example.metadata["level"]] += 1
    assert min(levels.values()) > 200


def test_emoji_stand_on_white(shared_dir: Path) -> None:
    example = next(read_examples(shared_dir / "data" / "noto_emoji"))
    for ref in example.images:
        corner = np.asarray(load_image(ref))[0, 0]
        np.testing.assert_array_equal(corner, (255, 255, 255))


@pytest.mark.parametrize("name", SETS)
def test_real_sets_become_sound_native_files(shared_dir: Path, tmp_path: Path, name: str) -> None:
    examples = list(read_examples(shared_dir / "data" / name, split="test"))[:40]
    write_records(tmp_path / "test.jsonl", examples)
    report = check_data(tmp_path)
    assert report.ok, report.problems
    assert report.records == 40
    assert [example.target for example in read_records(tmp_path / "test.jsonl")] == [
        example.target for example in examples
    ]
