"""SEED-Bench (Li et al. 2023): 19,242 questions with four options over images and video frames.

    ROOT/llava-seed-bench.jsonl    {"question_id", "image": "SEED-Bench-image/...", "text"}
    ROOT/SEED-Bench.json           {"questions": [{"question_id", "answer": "C", "choice_a", ...,
                                    "question_type_id", "data_type"}], "question_type": {NAME: ID}}

Videos are asked by their middle frame, as the question file names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyptych.data.records import read_json
from polyptych.evaluation.faults import item
from polyptych.evaluation.scorers import Scorer
from polyptych.evaluation.scoring.choice import Flavor, choice_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    SHORT_SETTINGS,
    fail,
    identity_of,
    image_path,
    make_example,
    objects_in,
    read_questions,
    required_file,
    text_of,
)
from polyptych.schema import Example

FLAVORS: tuple[Flavor, ...] = ("exact_released", "fixed")
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def seed_task(root: str | Path) -> Task:
    """Accuracy in all, on images, on videos, and by the type of question."""
    scorers: tuple[Scorer, ...] = tuple(choice_scorer(f, "medium", "type") for f in FLAVORS)
    return Task("seed", lambda: read_seed(root), scorers, SHORT_SETTINGS)


def read_seed(root: str | Path) -> list[Example]:
    """Read questions and their options, types and answers.

    Raises:
        PolyptychError: For a question without a record in ``SEED-Bench.json``, or a bad record.
    """
    path = required_file(root, "SEED-Bench.json")
    content = read_json(path)
    records = {
        identity_of(record, "question_id", f"{path} record {number}"): record
        for number, record in enumerate(objects_in(content, "questions", str(path)))
    }
    types = content.get("question_type")
    if not isinstance(types, dict):
        fail(str(path), "no object 'question_type'")
    names = {str(number): name for name, number in types.items()}
    examples = []
    for question in read_questions(required_file(root, "llava-seed-bench.jsonl")):
        with item():
            record = records.get(question.id)
            if record is None:
                fail(question.where, f"not in {path}")
            where = f"{path} question {question.id!r}"
            example = make_example(
                question.id,
                question.text,
                image_path(root, question.image, question.where),
                question.where,
                references=(_answer(record, where),),
                choices=[text_of(record, key, where) for key in _CHOICES],
                metadata={
                    "task": "seed",
                    "medium": "video" if record.get("data_type") == "video" else "image",
                    "type": names.get(str(record.get("question_type_id")), "unknown"),
                },
            )
            examples.append(example)
    return examples


def _answer(record: Mapping[str, Any], where: str) -> str:
    answer = text_of(record, "answer", where)
    if answer not in tuple("ABCD"):
        fail(where, f"'answer' must be A, B, C or D, got {answer!r}")
    return answer
