"""Mantis-Eval (Jiang et al. 2024): 217 questions over several images, by options or short answers.

    ROOT/mantis_eval/test-00000-of-00001.parquet    id, question_type ("multi-choice" or
                                                    "short-answer"), question, options, answer,
                                                    images; ``<image>`` in the question

Prompts are those of the benchmark's evaluation: options get letters where they have none, images
that the question has no place for stand first, and short answers may be preceded by an analysis and
"Final Answer:". Flavor ``released`` is its scorer, which
takes the first letter of the alphabet in an answer for the option; ``fixed`` reads options as
everywhere here, and compares short answers without case, articles and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.scoring.choice import LETTERS, read_choice, truth_index
from polyptych.evaluation.scoring.groups import by_group
from polyptych.evaluation.scoring.short_answer import only_reference
from polyptych.evaluation.scoring.vqa_accuracy import normalize_answer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.interleaving import interleaved_example, unique_examples
from polyptych.evaluation.tasks.llava_files import (
    LETTER_ANSWER,
    SHORT_SETTINGS,
    fail,
    text_of,
    texts_of,
)
from polyptych.evaluation.tasks.parquet_files import image_of, parquet_parts, read_parquet
from polyptych.schema import Example, Prediction

Flavor = Literal["released", "fixed"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

CHOICE, SHORT = "multi-choice", "short-answer"
_COLUMNS = ("id", "question_type", "question", "options", "answer", "images")
_SHORT_PROMPT = (
    "Given the images, answer the following short answer vqa question:\nQ: {}\n"
    'You can first give your analysis, and then give your final answer as "Final Answer:"'
)
_FINAL = re.compile(r"final answer:", re.IGNORECASE)
_NAMED = re.compile(r"Answer: ([A-Z])")
_LABEL = re.compile(r"^\s*\(?[A-Z]\s*[).:]\s*")


def mantis_task(root: str | Path) -> Task:
    """Accuracy in all, and by type of question."""
    scorers = tuple(mantis_scorer(flavor) for flavor in FLAVORS)
    return Task("mantis_eval", lambda: read_mantis(root), scorers, SHORT_SETTINGS)


def mantis_scorer(flavor: Flavor) -> Scorer:
    """``accuracy[FLAVOR]``, and that of either type of question; see the head of this module."""
    judge = _released if flavor == "released" else _fixed

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        values = [
            judge(prediction.text, example)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        kinds = [str(example.metadata["kind"]) for example in examples]
        return [
            mean_of(f"accuracy[{flavor}]", ids, values),
            *by_group("accuracy", flavor, ids, values, kinds),
        ]

    return score


def final_answer(answer: str) -> str:
    """What follows the first "Final answer:", or all of it."""
    return _FINAL.split(answer, maxsplit=1)[-1].strip() if _FINAL.search(answer) else answer


def _released(answer: str, example: Example) -> bool:
    said = final_answer(answer)
    if not example.choices:
        return said.lower() == only_reference(example).strip("()\n ").lower()
    named = _NAMED.match(said)
    letter = named.group(1) if named else next((c.upper() for c in said if c.isalpha()), "")
    truth = truth_index(example)
    if letter and letter in LETTERS[: len(example.choices)]:
        return LETTERS.index(letter) == truth
    return answer.strip() == example.choices[truth]


def _fixed(answer: str, example: Example) -> bool:
    said = final_answer(answer)
    if example.choices:
        return read_choice(said, example.choices) == truth_index(example)
    return normalize_answer(said) == normalize_answer(only_reference(example))


def read_mantis(root: str | Path) -> list[Example]:
    """Read all questions.

    Raises:
        PolyptychError: For a missing file or a bad row.
    """
    rows = read_parquet(parquet_parts(Path(root, "mantis_eval"), "test"), _COLUMNS)
    return unique_examples(rows, _example, "id")


def _example(row: Mapping[str, Any], where: str) -> Example:
    identity, kind = str(row["id"]), row["question_type"]
    where = f"{where} (id {identity!r})"
    question, answer = text_of(row, "question", where), text_of(row, "answer", where)
    options: list[str] = []
    if kind == CHOICE:
        labelled = texts_of(row, "options", where)
        answer = _letter(answer, len(labelled), where)
        options = [_LABEL.sub("", option).strip() for option in labelled]
        question += "".join(map(_listed, LETTERS, labelled))
        text = question + LETTER_ANSWER
    elif kind == SHORT:
        text = _SHORT_PROMPT.format(question)
    else:
        fail(where, f"'question_type' must be {CHOICE} or {SHORT}, got {kind!r}")
    return interleaved_example(
        identity,
        text,
        [image_of(image, where) for image in row["images"] or ()],
        where,
        references=(answer,),
        choices=options,
        metadata={"task": "mantis_eval", "kind": kind},
    )


def _listed(letter: str, option: str) -> str:
    """An option on a line of its own, with its letter unless it has that one."""
    has_one = any(letter + mark in option.upper() for mark in ").:")
    return f"\n {option}" if has_one else f"\n ({letter}) {option}"


def _letter(answer: str, options: int, where: str) -> str:
    """The first letter of an answer such as "(B)" or "B. the dog"."""
    letter = next((c for c in answer.strip("()\n ").upper() if c.isalpha()), "")
    if not letter or letter not in LETTERS[:options]:
        fail(where, f"the answer {answer!r} is no letter of {options} options")
    return letter
