"""Question files as LLaVA publishes them for its evaluation: one JSON object per line.

    {"question_id": 1, "image": "COCO_test2015_01.jpg", "text": "What is it? ..."}

Texts are asked as they stand: they end with the instruction that published numbers were made with.
Pictures are looked for when they are needed, so that answers can be scored without them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from polyptych.data.records import check_example, parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.task import GenerationSettings
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
CHINESE_LETTER_ANSWER = "\n请直接回答选项字母。"

SHORT_SETTINGS = GenerationSettings(max_new_tokens=128)
"""Greedy; for words, phrases and letters."""

LONG_SETTINGS = GenerationSettings(max_new_tokens=1024)
"""Greedy; ScienceQA and MMBench."""


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a question file."""

    id: str
    text: str
    image: str | None
    record: Mapping[str, Any]
    """The whole line."""
    where: str
    """File, line and id, for error messages."""


def read_questions(
    path: str | Path, *, unique: bool = True, key: str = "question_id"
) -> list[Question]:
    """Read a question file.

    Args:
        path: The JSONL file.
        unique: Whether an id may occur once only; in some files it names the image.
        key: What the id is called; captions have an ``image_id``, boxes an ``obj_id``.

    Raises:
        PolyptychError: At the first bad line, naming file, line and what is wrong.
    """
    questions: list[Question] = []
    first: dict[str, str] = {}
    for where, line in read_lines(path):
        with item():
            record = parse_json(line, where)
            question = _question(record, key, where)
            earlier = first.setdefault(question.id, where)
            if unique and earlier != where:
                fail(where, f"{key} {question.id!r} occurs before, in {earlier}")
            questions.append(question)
    if not questions:
        raise PolyptychError(f"{path}: no questions in it")
    return questions


def _question(record: Any, key: str, where: str) -> Question:
    if not isinstance(record, dict):
        fail(where, f"a question must be an object, got {type(record).__name__}")
    identity = identity_of(record, key, where)
    where = f"{where} ({key} {identity!r})"
    image = record.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        fail(where, f"'image' must be a file name, got {image!r}")
    return Question(identity, text_of(record, "text", where), image, record, where)


def make_example(
    identity: str,
    text: str,
    image: ImageRef | str | None,
    where: str,
    *,
    references: Sequence[str] = (),
    choices: Sequence[str] = (),
    metadata: Mapping[str, Any],
) -> Example:
    """One question about one image or none; the image stands before a line of its own.

    Raises:
        PolyptychError: For an empty question.
    """
    ref = ImageRef(path=image) if isinstance(image, str) else image
    content: tuple[Block, ...] = (TextBlock(text),)
    if ref is not None:
        content = (ImageBlock(), TextBlock("\n" + text))
    example = Example(
        id=identity,
        messages=(Message("user", content),),
        images=(ref,) if ref else (),
        references=tuple(references),
        choices=tuple(choices),
        metadata=metadata,
    )
    check_example(example, where)
    return example


def image_path(folder: str | Path, name: str | None, where: str) -> str:
    """Path of a question's picture.

    Raises:
        PolyptychError: If the question names none.
    """
    if name is None:
        fail(where, "no 'image'")
    return os.path.join(folder, name)


def first_existing(root: str | Path, *names: str) -> Path | None:
    """The first of several files that exists in a folder."""
    return next((path for name in names if (path := Path(root, name)).is_file()), None)


def required_file(root: str | Path, *names: str) -> Path:
    """The first of several files that exists in a folder.

    Raises:
        PolyptychError: If none does.
    """
    path = first_existing(root, *names)
    if path is None:
        raise PolyptychError(f"{root}: none of the expected files there: {', '.join(names)}")
    return path


def objects_in(content: Any, key: str | None, where: str) -> list[dict[str, Any]]:
    """The list of objects that a JSON file is, or has under ``key``.

    Raises:
        PolyptychError: If there is no such list.
    """
    found = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        fail(where, f"expected a list of objects{f' under {key!r}' if key else ''}")
    return found


def text_of(record: Mapping[str, Any], key: str, where: str) -> str:
    """A text of a record that must be there; it may be empty."""
    value = record.get(key)
    if not isinstance(value, str):
        fail(where, f"{key!r} must be a text, got {value!r}")
    return value


def texts_of(record: Mapping[str, Any], key: str, where: str) -> list[str]:
    """A list of texts of a record that must be there; it may be empty."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        fail(where, f"{key!r} must be a list of texts, got {value!r:.80}")
    return value


def identity_of(record: Mapping[str, Any], key: str, where: str) -> str:
    """An id of a record as a text; integers and texts are ids."""
    value = record.get(key)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        fail(where, f"{key!r} must be a text or an integer, got {value!r}")
    return str(value)


def fail(where: str, problem: str) -> NoReturn:
    """Raise the error of one place in a file."""
    raise PolyptychError(f"{where}: {problem}")
