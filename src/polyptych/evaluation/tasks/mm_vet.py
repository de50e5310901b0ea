"""MM-Vet (Yu et al. 2023): 218 open questions that need several abilities; a judge gives 0 to 1.

    ROOT/mm-vet.json         {"v1_0": {"imagename": "v1_0.png", "question", "answer", "capability"}}
    ROOT/images/v1_0.png
    ROOT/llava-mm-vet.jsonl  {"question_id": "v1_0" or 0, "image": "v1_0.png", "text": "What..."}

The last file is LLaVA's and only decides the order. In an answer, ``<AND>`` joins parts that are
all needed and ``<OR>`` answers that are all right. ``score[fixed]`` is the mean over the answers
whose grade can be read, beside it those of every ability (``score.ocr``) and of every combination
that occurs (``score.ocr+math``). The benchmark's server has its own judge
(:mod:`polyptych.evaluation.submission`); its script asks GPT-4 up to five times, ever less
greedily, for a grade that it can read, and then counts 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyptych.data.records import read_json
from polyptych.evaluation.faults import item
from polyptych.evaluation.judge import Judging
from polyptych.evaluation.scorers import Measurement, mean_of
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks.llava_files import (
    LONG_SETTINGS,
    fail,
    first_existing,
    make_example,
    read_questions,
    required_file,
    text_of,
    texts_of,
)
from polyptych.schema import Example, Prediction

FLAVORS = ("fixed",)

TRUTHS = "mm-vet.json"
QUESTIONS = "llava-mm-vet.jsonl"
IMAGES = "images"

_PREFIX = "v1_"
_SIGN = re.compile(r"\s*(<AND>|<OR>)\s*")  # truths have them with and without blanks
_GRADE = re.compile(r"(?<![\d.])(?:1(?:\.0+)?|0(?:\.\d+)?)(?![\d]|\.\d)")

_PROMPT = """\
You grade answers to questions about images. You do not see the image; trust the true answer.
<AND> in a true answer means that every part is needed; <OR> means that any one of them is right.
Give a grade from 0.0 (nothing is right) to 1.0 (all of it is right) in steps of 0.1. Other words \
with the same meaning are right; a part that is missing or wrong lowers the grade; what an answer \
adds does not, unless it contradicts the true answer.

Question: What do the two signs say?
True answer: exit <AND> no smoking
Answer: The left one says "Exit".
Grade: 0.5

Question: Which animal stands on the roof?
True answer: cat <OR> kitten
Answer: A small cat is on top of the house.
Grade: 1.0

Question: How much do three apples cost?
True answer: 6 dollars
Answer: They cost 4 dollars.
Grade: 0.0

Question: {question}
True answer: {truth}
Answer: {answer}
Reply with the grade alone.
Grade:"""


def mm_vet_task(root: str | Path) -> Task:
    """The task over its folder; it is judged."""
    return Task("mm_vet", lambda: read_mm_vet(root), (), LONG_SETTINGS, judging=JUDGING)


def read_mm_vet(root: str | Path) -> list[Example]:
    """Questions as they stand, the true answer as reference, abilities in the metadata.

    Raises:
        PolyptychError: For a missing file, a bad record, or a question without a true answer.
    """
    path = required_file(root, TRUTHS)
    truths = read_json(path)
    if not isinstance(truths, dict) or not truths:
        fail(str(path), "expected an object with an object per question")
    examples = []
    for key in _order(root, truths):
        with item():
            examples.append(_example(truths, key, path, Path(root, IMAGES)))
    return examples


def _order(root: str | Path, truths: dict[str, Any]) -> list[str]:
    questions = first_existing(root, QUESTIONS)
    if questions is None:
        return list(truths)
    keys = []
    for question in read_questions(questions):
        with item():
            key = question.id if question.id.startswith(_PREFIX) else _PREFIX + question.id
            if key not in truths:
                fail(question.where, f"{key!r} has no true answer in {TRUTHS}")
            keys.append(key)
    return keys


def _example(truths: dict[str, Any], key: str, path: Path, images: Path) -> Example:
    where, record = f"{path} ({key!r})", truths[key]
    if not isinstance(record, dict):
        fail(where, f"expected an object, got {type(record).__name__}")
    return make_example(
        key,
        text_of(record, "question", where),
        str(images / text_of(record, "imagename", where)),
        where,
        references=(text_of(record, "answer", where),),
        metadata={
            "task": "mm_vet",
            "image": record["imagename"],
            "question": record["question"],
            "abilities": texts_of(record, "capability", where),
        },
    )


def grade_prompt(example: Example, prediction: Prediction) -> str:
    """What the judge is asked."""
    return _PROMPT.format(
        question=example.metadata["question"],
        truth=_SIGN.sub(r" \1 ", example.references[0]),
        answer=" ".join(prediction.text.split()),
    )


def read_grade(reply: str) -> float | None:
    """The first number from 0 to 1 in a reply.

    Example:
        >>> read_grade("Grade: 0.7"), read_grade("1"), read_grade("7 of 10")
        (0.7, 1.0, None)
    """
    found = _GRADE.search(reply)
    return float(found.group()) if found else None


def _measure(examples: Sequence[Example], replies: Sequence[str]) -> list[Measurement]:
    ids = [example.id for example in examples]
    grades = [read_grade(reply) for reply in replies]
    abilities = [tuple(example.metadata["abilities"]) for example in examples]
    alone = sorted({ability for several in abilities for ability in several})
    together = sorted({several for several in abilities if len(several) > 1})
    measured = [mean_of("score[fixed]", ids, grades)]
    for ability in alone:
        inside = [g if ability in own else None for g, own in zip(grades, abilities, strict=True)]
        measured.append(mean_of(f"score.{ability}[fixed]", ids, inside))
    for several in together:
        inside = [g if several == own else None for g, own in zip(grades, abilities, strict=True)]
        measured.append(mean_of(f"score.{'+'.join(several)}[fixed]", ids, inside))
    return measured


JUDGING = Judging(
    grade_prompt,
    lambda reply: read_grade(reply) is not None,
    _measure,
    GenerationSettings(max_new_tokens=16),
)
"""Greedy, as published."""
