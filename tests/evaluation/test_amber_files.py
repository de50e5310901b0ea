"""AMBER on its own files: mentions, counts and questions by hand; its sample and its bad files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.samples.amber import sample_amber
from polyptych.evaluation.scorers import Scorer, estimate
from polyptych.evaluation.scoring.amber_files import (
    AmberWords,
    Told,
    description_scorer,
    mentions,
    question_scorer,
    told,
)
from polyptych.evaluation.tasks.amber import ANNOTATIONS, ASSOCIATED, QUERIES, amber_task
from polyptych.schema import Example, Message, Prediction, TextBlock

WORDS = AmberWords(
    {
        "forest": ["tree", "bush"],
        "grass": ["ground"],
        "ground": [],
        "person": ["man", "people"],
        "dog": [],
        "sun": [],
        "can": [],
        "light": [],
        "knife": [],
    },
    frozenset({"light"}),
)
ASKED = (Message("user", (TextBlock("?"),)),)


Item = tuple[dict[str, Any], str, str]
"""Metadata, truth or "", and answer."""


def values(scorer: Scorer, items: Mapping[str, Item]) -> dict[str, float]:
    """Metric to value."""
    examples = [
        Example(i, ASKED, references=(truth,) if truth else (), metadata=data)
        for i, (data, truth, _) in items.items()
    ]
    predictions = [Prediction(i, answer) for i, (_, _, answer) in items.items()]
    return {m.name: estimate(m, resamples=20).value for m in scorer(examples, predictions)}


def test_mentions_are_known_words_in_the_singular() -> None:
    text = "Two dogs and People can see the Sun; a man cuts a can with knives, not forks."
    assert list(mentions(text, WORDS.known)) == ["dog", "people", "sun", "man", "can", "knife"]
    assert list(mentions("", WORDS.known)) == []


@pytest.mark.parametrize(
    ("said", "objects", "likely", "counts"),
    [
        # Trees cover the forest, the man the person; the sun is invented, and was expected to be.
        (["tree", "man", "sun"], ["forest", "person"], ["sun", "dog"], (1, 3, 2, 2, 1, 2)),
        # What stands beside an object comes before the object of that name, as in the script.
        (["ground"], ["grass", "ground"], [], (0, 1, 1, 2, 0, 0)),
        # A safe word is a mention that neither covers nor invents.
        (["light", "light"], ["light", "dog"], ["sun"], (0, 2, 0, 2, 0, 1)),
        # Invented twice, imagined once; of two dogs one is covered.
        (["sun", "sun", "dog"], ["dog", "dog"], ["sun"], (2, 3, 1, 2, 1, 1)),
        ([], ["dog"], [], (0, 0, 0, 1, 0, 0)),
    ],
)
def test_counts_by_hand(
    said: list[str], objects: list[str], likely: list[str], counts: tuple[int, ...]
) -> None:
    assert told(said, objects, likely, WORDS) == Told(*counts)


def test_descriptions_add_up() -> None:
    items: dict[str, Item] = {
        "1": ({"objects": ["forest", "dog"], "likely": ["sun"]}, "", "Trees, a dog, the sun."),
        "2": ({"objects": ["person"], "likely": ["dog"]}, "", "A man."),
        "3": ({"kind": "state"}, "Yes", "Yes"),
    }
    assert values(description_scorer(WORDS), items) == {
        "chair[words]": 1 / 4,
        "cover[words]": 3 / 3,
        "hal[words]": 1 / 2,
        "cog[words]": 1 / 2,
    }


def test_questions_look_for_no() -> None:
    items: dict[str, Item] = {
        "1": ({"kind": "existence"}, "No", "No"),
        "2": ({"kind": "existence"}, "No", "no, there is none"),
        "3": ({"kind": "state"}, "Yes", "No"),
        "4": ({"kind": "state"}, "Yes", "yes."),
        "5": ({"objects": ["dog"], "likely": []}, "", "A dog."),
    }
    official = values(question_scorer("official"), items)
    assert official["accuracy[official]"] == 1 / 4
    assert official["precision[official]"] == official["recall[official]"] == 1 / 2
    assert official["f1[official]"] == 1 / 2
    fixed = values(question_scorer("fixed"), items)
    assert fixed["accuracy[fixed]"] == 3 / 4
    assert fixed["precision[fixed]"] == pytest.approx(2 / 3)
    assert fixed["recall[fixed]"] == fixed["accuracy.existence[fixed]"] == 1
    assert fixed["f1[fixed]"] == pytest.approx(0.8)
    assert fixed["accuracy.state[fixed]"] == 1 / 2
    assert fixed["f1.state[fixed]"] == 0


def test_parts_of_the_sample(tmp_path: Path) -> None:
    sample_amber(tmp_path)
    parts = {name: list(amber_task(name, tmp_path).load()) for name in QUERIES}
    assert [e.id for e in parts["amber_generative"]] == [str(n) for n in range(1, 13)]
    ids = [e.id for part in ("amber_generative", "amber_discriminative") for e in parts[part]]
    assert [e.id for e in parts["amber"]] == ids
    kinds = {e.metadata["kind"] for e in parts["amber"]}
    assert kinds == {"generative", "existence", "state", "number"}
    first = parts["amber"][0]
    assert first.images[0].path == str(tmp_path / "image" / "AMBER_1.jpg")
    assert first.messages[0].text == "\nDescribe this image."
    only = {e.metadata["kind"]: e.references for e in parts["amber_discriminative"]}
    assert only["existence"] == ("No",)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            ANNOTATIONS,
            {"truth": ["unicorn"]},
            "record of id '1': 'unicorn' is no object of data/rel",
        ),
        (ANNOTATIONS, {"type": "other"}, "'type' 'other' is none of generative"),
        (ANNOTATIONS, {"id": 99}, r"query '1': no truth in .*annotations.json"),
        (ANNOTATIONS, {"hallu": "sun"}, "'hallu' must be a list of texts"),
        (QUERIES["amber"], {"id": 2}, "query '2': this id occurs twice"),
        (QUERIES["amber"], {"image": None}, "'image' must be a text"),
    ],
)
def test_bad_records_are_named(
    tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    sample_amber(tmp_path)
    records = read_json(tmp_path / file)
    records[0].update(change)
    (tmp_path / file).write_text(json.dumps(records), "utf-8")
    with pytest.raises(PolyptychError, match=message):
        list(amber_task("amber", tmp_path).load())


def test_bad_lists_of_words_are_named(tmp_path: Path) -> None:
    sample_amber(tmp_path)
    (tmp_path / ASSOCIATED).write_text('{"dog": "cat"}', "utf-8")
    with pytest.raises(PolyptychError, match=r"relation.json: 'dog' must be a list of texts"):
        amber_task("amber", tmp_path)
