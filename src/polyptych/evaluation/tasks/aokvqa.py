"""A-OKVQA (Schwenk et al. 2022), multiple choice: which of four options is right?

ROOT/llava_aokvqa_val.jsonl      {"question_id", "image", "text"}, the text with its options
ROOT/aokvqa_v1p0_val.json        [{"question_id", "choices": [...], "correct_choice_idx": 2}]
ROOT/val2017/000000000139.jpg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyptych.data.records import read_json
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.choice import LETTERS, Flavor, choice_scorer
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
    texts_of,
)
from polyptych.schema import Example

QUESTIONS = "llava_aokvqa_val.jsonl"
TRUTHS = "aokvqa_v1p0_val.json"
FLAVORS: tuple[Flavor, ...] = ("exact_released", "fixed")


def aokvqa_task(root: str | Path) -> Task:
    """Accuracy over the options; answers may be letters or the options' texts."""
    scorers = tuple(choice_scorer(flavor) for flavor in FLAVORS)
    return Task("aokvqa", lambda: read_aokvqa(root), scorers, SHORT_SETTINGS)


def read_aokvqa(root: str | Path) -> list[Example]:
    """Read questions, options and right answers.

    Raises:
        PolyptychError: For a question without a record of its options, or a bad record.
    """
    path = required_file(root, TRUTHS)
    truths = {
        identity_of(record, "question_id", f"{path} record {number}"): record
        for number, record in enumerate(objects_in(read_json(path), None, str(path)))
    }
    examples = []
    for question in read_questions(required_file(root, QUESTIONS)):
        with item():
            if question.id not in truths:
                fail(question.where, f"not in {path}")
            choices, answer = _truth(truths[question.id], f"{path} question {question.id!r}")
            example = make_example(
                question.id,
                question.text,
                image_path(Path(root, "val2017"), question.image, question.where),
                question.where,
                references=(LETTERS[answer],),
                choices=choices,
                metadata={"task": "aokvqa", "image": question.image},
            )
            examples.append(example)
    return examples


def _truth(record: Mapping[str, Any], where: str) -> tuple[list[str], int]:
    choices = texts_of(record, "choices", where)
    answer = record.get("correct_choice_idx")
    if type(answer) is not int or not 0 <= answer < len(choices):
        fail(where, f"'correct_choice_idx' is {answer!r} for {len(choices)} choices")
    return choices, answer
