"""MMBench and MMBench-CN (Liu et al. 2023): options A to D over images in the table itself.

    ROOT/mmbench_dev_20230712.tsv       columns index, question, hint, A, B, C, D, image (base64)
    ROOT/mmbench_dev_cn_20231003.tsv    and, in some releases, answer and category

The benchmark's circular evaluation asks every question once per rotation of its options; it is
right if all rotations are. Rotation r of question 7 has the id ``7`` for r = 0, else ``7-r``.
"""

from __future__ import annotations

import base64
import binascii
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scorers import Scorer
from polyptych.evaluation.scoring.choice import LETTERS, choice_scorer, circular_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    CHINESE_LETTER_ANSWER,
    LETTER_ANSWER,
    LONG_SETTINGS,
    fail,
    make_example,
    required_file,
)
from polyptych.schema import Example, ImageRef

Name = Literal["mmbench", "mmbench_cn"]
CIRCULAR = "_circular"
"""What the name of a task ends with that asks every rotation."""

FILES: dict[Name, str] = {
    "mmbench": "mmbench_dev_20230712.tsv",
    "mmbench_cn": "mmbench_dev_cn_20231003.tsv",
}
SUFFIXES: dict[Name, str] = {"mmbench": LETTER_ANSWER, "mmbench_cn": CHINESE_LETTER_ANSWER}
_REQUIRED = frozenset({"index", "question", "A", "B", "image"})
_EMPTY = frozenset({"", "nan", "none"})


def mmbench_task(name: Name, root: str | Path, *, circular: bool = False) -> Task:
    """One of the two languages; without a column of answers it has no scorer.

    Args:
        name: ``mmbench`` or ``mmbench_cn``.
        root: Folder of the table.
        circular: Ask every rotation of the options. CaMML's numbers come from a single pass.

    Raises:
        PolyptychError: For an unknown name or a missing or bad table.
    """
    if name not in FILES:
        raise PolyptychError(f"no MMBench {name!r}; known: {', '.join(FILES)}")
    path = required_file(root, FILES[name])
    scorers: tuple[Scorer, ...] = ()
    if "answer" in _columns(path):
        scorers = (circular_scorer("fixed"),) if circular else (choice_scorer("fixed"),)
    task = name + CIRCULAR if circular else name
    return Task(task, lambda: read_mmbench(name, root, circular=circular), scorers, LONG_SETTINGS)


def read_mmbench(name: Name, root: str | Path, *, circular: bool = False) -> list[Example]:
    """Read the table; the answer's letter, where there is one, is the reference.

    Raises:
        PolyptychError: For missing columns, an image that is not base64, or an answer that is no
            letter of an option; named with file and index.
    """
    path = required_file(root, FILES[name])
    examples: dict[str, Example] = {}
    for where, row in _rows(path):
        with item():
            for example in _rotations(name, row, where, circular):
                if example.id in examples:
                    fail(where, f"index {example.id!r} occurs twice")
                examples[example.id] = example
    if not examples:
        fail(str(path), "no questions in it")
    return list(examples.values())


def _columns(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.readline().rstrip("\r\n").split("\t")
    except (OSError, UnicodeDecodeError) as error:
        raise PolyptychError(f"cannot read {path}: {error}") from error


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    missing = _REQUIRED.difference(_columns(path))
    if missing:
        fail(str(path), f"missing column(s) {', '.join(sorted(missing))}")
    csv.field_size_limit(sys.maxsize)  # images are longer than the csv module's default
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), start=1):
            yield f"{path} row {number} (index {row.get('index')!r})", row


def _rotations(name: Name, row: Mapping[str, str], where: str, circular: bool) -> Iterator[Example]:
    if None in row or None in row.values():
        fail(where, "the row has another number of columns than the head")
    choices = _choices(row)
    if len(choices) < 2:
        fail(where, f"{len(choices)} option(s), at least 2 are needed")
    index = row["index"].strip()
    hint, answer = _cell(row, "hint"), _cell(row, "answer")
    if answer and answer not in tuple(LETTERS[: len(choices)]):
        fail(where, f"the answer {answer!r} is no letter of {len(choices)} options")
    question = f"{hint}\n{row['question']}" if hint else row["question"]
    image = _image(row["image"], where)
    for turn in range(len(choices) if circular else 1):
        turned = choices[turn:] + choices[:turn]
        options = "".join(
            f"\n{letter}. {text}" for letter, text in zip(LETTERS, turned, strict=False)
        )
        place = (LETTERS.index(answer) - turn) % len(choices) if answer else None
        yield make_example(
            f"{index}-{turn}" if turn else index,
            question + options + SUFFIXES[name],
            image,
            where,
            references=() if place is None else (LETTERS[place],),
            choices=turned,
            metadata={
                "task": name + CIRCULAR if circular else name,
                "question": index,
                "category": _cell(row, "category"),
                "row": {column: text for column, text in row.items() if column != "image"},
            },
        )


def _choices(row: Mapping[str, str]) -> list[str]:
    """Options up to the first empty one."""
    choices = []
    for letter in "ABCD":
        text = _cell(row, letter)
        if not text:
            break
        choices.append(text)
    return choices


def _cell(row: Mapping[str, str], column: str) -> str:
    text = row.get(column, "").strip()
    return "" if text.lower() in _EMPTY else text


def _image(text: str, where: str) -> ImageRef:
    try:
        return ImageRef(data=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise PolyptychError(f"{where}: the image is not base64: {error}") from error
