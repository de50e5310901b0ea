"""GQA (Hudson and Manning 2019): compositional questions over photos, answered by one word.

ROOT/llava_gqa_testdev_balanced.jsonl        {"question_id", "image", "text"}, LLaVA's
ROOT/data/testdev_balanced_questions.json    {ID: {"answer", "types": {"structural", ...}}}
ROOT/data/images/n161313.jpg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyptych.data.records import read_json
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.short_answer import FLAVORS, exact_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    SHORT_SETTINGS,
    fail,
    image_path,
    make_example,
    read_questions,
    required_file,
    text_of,
)
from polyptych.schema import Example

QUESTIONS = "llava_gqa_testdev_balanced.jsonl"
TRUTHS = "testdev_balanced_questions.json"
_OPEN = "query"  # the structural type whose answers are not yes, no or one of two named things


def gqa_task(root: str | Path) -> Task:
    """Exact match in all, on binary and open questions."""
    scorers = tuple(exact_scorer(flavor, "kind") for flavor in FLAVORS)
    return Task("gqa", lambda: read_gqa(root), scorers, SHORT_SETTINGS)


def read_gqa(root: str | Path) -> list[Example]:
    """Read questions and answers.

    Raises:
        PolyptychError: For a question without an answer, or a bad record.
    """
    path = required_file(root, f"data/{TRUTHS}", f"data/questions1.2/{TRUTHS}", TRUTHS)
    truths = read_json(path)
    if not isinstance(truths, dict):
        fail(str(path), "expected an object of questions by id")
    examples = []
    for question in read_questions(required_file(root, QUESTIONS)):
        with item():
            truth = truths.get(question.id)
            if not isinstance(truth, dict):
                fail(question.where, f"no answer to it in {path}")
            where = f"{path} question {question.id!r}"
            example = make_example(
                question.id,
                question.text,
                image_path(Path(root, "data", "images"), question.image, question.where),
                question.where,
                references=(text_of(truth, "answer", where),),
                metadata={"task": "gqa", "image": question.image, "kind": _kind(truth, where)},
            )
            examples.append(example)
    return examples


def _kind(truth: Mapping[str, Any], where: str) -> str:
    types = truth.get("types")
    if not isinstance(types, Mapping):
        fail(where, "no object 'types'")
    return "open" if types.get("structural") == _OPEN else "binary"
