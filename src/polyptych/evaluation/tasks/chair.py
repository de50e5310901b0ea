"""CHAIR on COCO photos (Rohrbach et al. 2018): long captions, and which objects they invent.

    ROOT/synonyms.txt                            the 80 objects, one line each with its synonyms
    ROOT/annotations/instances_val2014.json      which objects an image has
    ROOT/annotations/captions_val2014.json       what five humans mention, true as well
    ROOT/val2014/COCO_val2014_000000000042.jpg
    ROOT/questions.jsonl                         {"question_id", "image", "text"}: what to ask about

Images may come from train2014, too; its files are read then. Instead of the annotations there may
be ``objects.jsonl`` with ``{"image_id": 42, "objects": ["dog"]}``. Papers choose images and prompt
in different ways and mostly do not publish them: without ``questions.jsonl``, :data:`COUNT` images
of val2014 with any object are drawn with a fixed seed and described on :data:`REQUEST`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyptych.data.records import parse_json, read_json, read_lines
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.chair import FLAVORS, chair_scorer, read_synonyms
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks.llava_files import (
    Question,
    fail,
    first_existing,
    make_example,
    objects_in,
    read_questions,
    required_file,
    text_of,
    texts_of,
)
from polyptych.schema import Example

SYNONYMS = "synonyms.txt"
OBJECTS = "objects.jsonl"
QUESTIONS = "questions.jsonl"
ANNOTATIONS = "annotations"
SPLITS = ("train", "val")

COUNT = 500
"""Images that are drawn where nobody says which."""
SEED = 0
REQUEST = "Please describe this image in detail."
SETTINGS = GenerationSettings(max_new_tokens=512)
"""Greedy."""

_IMAGE_NAME = re.compile(r"(?:COCO_(train|val)2014_)?0*(\d+)\.\w+")


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of one image."""

    objects: tuple[str, ...]
    captions: tuple[str, ...] = ()


def chair_task(root: str | Path) -> Task:
    """The task over its folder, in all flavors of the metric.

    Raises:
        PolyptychError: If there is no synonym list.
    """
    words = read_synonyms(required_file(root, SYNONYMS))
    scorers = tuple(chair_scorer(words, flavor) for flavor in FLAVORS)
    return Task("chair", lambda: read_chair(root), scorers, SETTINGS)


def read_chair(root: str | Path) -> list[Example]:
    """Images to describe; the human captions are references, the objects in the metadata.

    Raises:
        PolyptychError: For a missing file, a bad line or record, or an image that has no truth.
    """
    asked = first_existing(root, QUESTIONS)
    if asked is not None:
        questions = read_questions(asked)
        truths = _read_truths(root, {_split(_name(q)) for q in questions})
    else:
        truths = _read_truths(root, {"val"})
        questions = _drawn(truths, Path(root, ANNOTATIONS))
    examples = []
    for question in questions:
        with item():
            name = _name(question)
            truth = truths.get(_image_id(name, question.where))
            if truth is None:
                fail(question.where, f"nothing is known of {name!r}")
            examples.append(
                make_example(
                    question.id,
                    question.text,
                    str(Path(root, _folder(name), name)),
                    question.where,
                    references=truth.captions,
                    metadata={"task": "chair", "image": name, "objects": sorted(truth.objects)},
                )
            )
    return examples


def _drawn(truths: Mapping[int, Truth], where: Path) -> list[Question]:
    """:data:`COUNT` images that have objects, in order of their ids; all, if there are fewer."""
    known = sorted(identity for identity, truth in truths.items() if truth.objects)
    chosen = sorted(random.Random(SEED).sample(known, min(COUNT, len(known))))
    if not chosen:
        fail(str(where), "no image with an object")
    names = [f"COCO_val2014_{identity:012d}.jpg" for identity in chosen]
    return [
        Question(str(identity), REQUEST, name, {}, f"{where} (image {identity})")
        for identity, name in zip(chosen, names, strict=True)
    ]


def _name(question: Question) -> str:
    if question.image is None:
        fail(question.where, "no 'image'")
    return question.image


def _image_id(name: str, where: str) -> int:
    found = _IMAGE_NAME.fullmatch(name)
    if found is None:
        fail(where, f"{name!r} does not end with the number of a COCO image")
    return int(found.group(2))


def _split(name: str) -> str | None:
    """Which of COCO's splits a file's name says."""
    found = _IMAGE_NAME.fullmatch(name)
    return found.group(1) if found else None


def _folder(name: str) -> str:
    split = _split(name)
    return "images" if split is None else f"{split}2014"


# What is known of images.


def _read_truths(root: str | Path, splits: Collection[str | None]) -> dict[int, Truth]:
    table = first_existing(root, OBJECTS)
    if table is not None:
        return _read_table(table)
    objects: dict[int, set[str]] = {}
    captions: dict[int, list[str]] = {}
    for split in SPLITS if None in splits else sorted(filter(None, splits)):
        path = required_file(root, f"{ANNOTATIONS}/instances_{split}2014.json")
        for identity, name in _instances(read_json(path), str(path)):
            objects.setdefault(identity, set()).add(name)
        path = required_file(root, f"{ANNOTATIONS}/captions_{split}2014.json")
        for record, where in _annotations(read_json(path), str(path)):
            captions.setdefault(_number(record, "image_id", where), []).append(
                text_of(record, "caption", where)
            )
    return {
        identity: Truth(tuple(objects.get(identity, ())), tuple(captions.get(identity, ())))
        for identity in objects.keys() | captions.keys()
    }


def _read_table(path: Path) -> dict[int, Truth]:
    found = {}
    for where, line in read_lines(path):
        record = parse_json(line, where)
        if not isinstance(record, dict):
            fail(where, f"expected an object, got {type(record).__name__}")
        objects = texts_of(record, "objects", where)
        found[_number(record, "image_id", where)] = Truth(tuple(objects))
    return found


def _instances(content: Any, where: str) -> Iterator[tuple[int, str]]:
    """Image and category of every annotated object."""
    names = {
        _number(record, "id", where): text_of(record, "name", where)
        for record in objects_in(content, "categories", where)
    }
    for record, place in _annotations(content, where):
        category = _number(record, "category_id", place)
        if category not in names:
            fail(place, f"category {category} is none of {len(names)} categories")
        yield _number(record, "image_id", place), names[category]


def _annotations(content: Any, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    for number, record in enumerate(objects_in(content, "annotations", where)):
        yield record, f"{where} annotation {number}"


def _number(record: Mapping[str, Any], key: str, where: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        fail(where, f"{key!r} must be an integer, got {value!r}")
    return value
