"""MME (Fu et al. 2023): 14 sub-tasks, each image with one question to affirm and one to deny.

    ROOT/llava_mme.jsonl                           {"question_id", "image": "count/01.jpg", "text"}
    ROOT/MME_Benchmark_release_version/SUBTASK/    NAME.jpg and NAME.txt, or both in the folders
                                                   images/ and questions_answers_YN/

A text file has two lines, ``QUESTION<tab>Yes``. Ids of examples are ``SUBTASK/NAME.jpg#1`` and
``#2``, since both questions of an image have the same id in the question file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.yes_no import mme_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    SHORT_ANSWER,
    SHORT_SETTINGS,
    Question,
    fail,
    first_existing,
    make_example,
    read_questions,
    required_file,
)
from polyptych.schema import Example

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
PARTS = {
    "perception": PERCEPTION,
    "cognition": COGNITION,
    **{name: (name,) for name in (*PERCEPTION, *COGNITION)},
}
"""Names of scores and the sub-tasks they add up."""

IMAGES = "MME_Benchmark_release_version"
_INSTRUCTION = re.compile(r"\s*Please answer yes or no\.\s*", re.IGNORECASE)


def mme_task(root: str | Path) -> Task:
    """Perception (at most 2,000), cognition (at most 800) and every sub-task (at most 200)."""
    return Task("mme", lambda: read_mme(root), (mme_scorer(PARTS),), SHORT_SETTINGS)


def read_mme(root: str | Path) -> list[Example]:
    """Read the questions and their answers.

    Raises:
        PolyptychError: For a sub-task that is none of MME's, a question without an answer in its
            text file, or an answer that is not yes or no.
    """
    truths: dict[str, dict[str, str]] = {}
    seen: Counter[str] = Counter()
    examples = []
    for question in read_questions(required_file(root, "llava_mme.jsonl"), unique=False):
        with item():
            image = question.image or fail(question.where, "no 'image'")
            category, _, name = image.partition("/")
            if category not in (*PERCEPTION, *COGNITION) or not name:
                fail(question.where, f"image {image!r} is in no folder of an MME sub-task")
            if image not in truths:
                truths[image] = _read_truths(Path(root, IMAGES, category), name, question.where)
            seen[image] += 1
            example = make_example(
                f"{image}#{seen[image]}",
                question.text,
                str(_picture(Path(root, IMAGES, category), Path(name).name)),
                question.where,
                references=(_truth(question, truths[image]),),
                metadata={"task": "mme", "category": category, "pair": image},
            )
            examples.append(example)
    return list(_in_pairs(examples))


def _in_pairs(examples: Sequence[Example]) -> Iterator[Example]:
    """Those whose image has both questions: accuracy+ is over pairs."""
    counts = Counter(example.metadata["pair"] for example in examples)
    for example in examples:
        with item():
            count = counts[example.metadata["pair"]]
            if count != 2:
                fail(f"MME question {example.id!r}", f"its image has {count} question(s), not 2")
            yield example


def _picture(folder: Path, name: str) -> Path:
    return first_existing(folder, f"images/{name}") or folder / name


def _read_truths(folder: Path, image: str, where: str) -> dict[str, str]:
    """Plain question to its answer, of one image."""
    name = f"{Path(image).stem}.txt"
    path = first_existing(folder, name, f"questions_answers_YN/{name}")
    if path is None:
        fail(where, f"no answers {folder / name}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PolyptychError(f"cannot read {path}: {error}") from error
    truths = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            question, _, answer = line.rpartition("\t")
            if not question or answer.strip() not in ("Yes", "No"):
                fail(f"{path} line {number}", "expected QUESTION, a tab, and Yes or No")
            truths[_plain(question)] = answer.strip().lower()
    return truths


def _truth(question: Question, truths: dict[str, str]) -> str:
    plain = _plain(question.text.removesuffix(SHORT_ANSWER))
    if plain not in truths:
        fail(question.where, f"its image's text file has no question {plain[:60]!r}")
    return truths[plain]


def _plain(question: str) -> str:
    """The question without MME's own instruction, which the question file has left out."""
    return " ".join(_INSTRUCTION.sub(" ", question).split())
