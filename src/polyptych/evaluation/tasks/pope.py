"""POPE (Li et al. 2023): is there such a thing in the image? Three categories of 3,000 questions.

    ROOT/coco/coco_pope_{random,popular,adversarial}.json
    ROOT/val2014/COCO_val2014_000000310196.jpg

Each line is an object ``{"question_id", "image", "text", "label"}``, although the name ends with
``.json``. The files may also lie in ROOT itself and end with ``.jsonl``.
Examples have the ids CATEGORY-QUESTION_ID.
"""

from __future__ import annotations

from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.yes_no import FLAVORS, pope_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    SHORT_ANSWER,
    SHORT_SETTINGS,
    fail,
    first_existing,
    image_path,
    make_example,
    read_questions,
)
from polyptych.schema import Example

CATEGORIES = ("random", "popular", "adversarial")


def pope_task(root: str | Path) -> Task:
    """All categories found in a folder."""
    scorers = tuple(pope_scorer(flavor) for flavor in FLAVORS)
    return Task("pope", lambda: read_pope(root), scorers, SHORT_SETTINGS)


def read_pope(root: str | Path) -> list[Example]:
    """Questions with LLaVA's instruction; the label is the reference.

    Raises:
        PolyptychError: If there is none of the three files, or for a bad line.
    """
    examples: list[Example] = []
    for category in CATEGORIES:
        name = f"coco_pope_{category}.json"
        path = first_existing(root, f"coco/{name}", name, f"coco/{name}l", f"{name}l")
        if path is not None:
            examples.extend(_read_category(path, category, Path(root, "val2014")))
    if not examples:
        raise PolyptychError(f"{root}: no coco_pope_{{{','.join(CATEGORIES)}}}.json there")
    return examples


def _read_category(path: Path, category: str, images: Path) -> list[Example]:
    examples = []
    for question in read_questions(path):
        with item():
            label = question.record.get("label")
            if label not in ("yes", "no"):
                fail(question.where, f"'label' must be yes or no, got {label!r}")
            example = make_example(
                f"{category}-{question.id}",
                question.text + SHORT_ANSWER,
                image_path(images, question.image, question.where),
                question.where,
                references=(label,),
                metadata={"task": "pope", "category": category, "image": question.image},
            )
            examples.append(example)
    return examples
