"""MMHal-Bench (Sun et al. 2023): 96 questions that invite hallucination; a judge rates 0 to 6.

    ROOT/response_template.json   [{"question_type", "question_topic", "image_id", "image_src",
                                    "image_content": ["Pillow"], "question", "gt_answer",
                                    "model_answer": ""}]
    ROOT/images/NAME              NAME is the last part of "image_src"; test_data.zip has them

The judge reads what is in the image, a human's answer and the model's, and ends with "Rating: N".
``score`` is the mean rating, over all and by question type; a rating below 3 is a hallucination.
Flavors:

- ``released``: a reply must have "rating: N" for exactly one N; otherwise it counts as 0.
- ``fixed``: the last rating of a reply; a reply without one is left out.

Ids are the numbers of the records, from 0. The judge's prompt is ours; the benchmark's script asks
GPT-4 greedily with one of its own, and takes a record's type from its place, which agrees with
"question_type" as long as nobody sorts the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from polyptych.data.records import read_json
from polyptych.evaluation.faults import item
from polyptych.evaluation.judge import Judging
from polyptych.evaluation.scorers import Measurement, mean_of
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks.llava_files import (
    LONG_SETTINGS,
    make_example,
    objects_in,
    required_file,
    text_of,
    texts_of,
)
from polyptych.schema import Example, Prediction

Flavor = Literal["released", "fixed"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

QUESTIONS = "response_template.json"
IMAGES = "images"

HIGHEST = 6
HALLUCINATED_BELOW = 3

_RATING = re.compile(r"rating\W{0,4}([0-6])(?![\d.]*\d)", re.IGNORECASE)

_PROMPT = """\
A model has answered a question about an image. You do not see the image; you are told what is in \
it and how a human answered. Judge how informative the model's answer is and whether it \
hallucinates, that is, claims something that neither the contents nor the human's answer support \
and that cannot be concluded from them. Saying less than the human is no hallucination.

Ratings:
6: very informative, with good reasoning beyond the question, no hallucination
5: very informative, no hallucination
4: somewhat informative, no hallucination
3: not informative, no hallucination
2: very informative, with hallucination
1: somewhat informative, with hallucination
0: not informative, with hallucination

What is in the image: {content}
Question: {question}
The human's answer: {truth}
The model's answer: {answer}

First explain in a few sentences what the model's answer gets right and wrong. Then write, on a \
line of its own, the word "Rating:" and one number from 0 to 6."""


def mmhal_task(root: str | Path) -> Task:
    """The task over its folder; it is judged."""
    return Task("mmhal", lambda: read_mmhal(root), (), LONG_SETTINGS, judging=JUDGING)


def read_mmhal(root: str | Path) -> list[Example]:
    """Questions as they stand; the human's answer is the reference.

    Raises:
        PolyptychError: For a missing file or a bad record.
    """
    path = required_file(root, QUESTIONS)
    examples = []
    for number, record in enumerate(objects_in(read_json(path), None, str(path))):
        with item():
            where = f"{path} record {number}"
            image = PurePosixPath(text_of(record, "image_src", where)).name
            question = text_of(record, "question", where)
            examples.append(
                make_example(
                    str(number),
                    question,
                    str(Path(root, IMAGES, image)),
                    where,
                    references=(text_of(record, "gt_answer", where),),
                    metadata={
                        "task": "mmhal",
                        "image": image,
                        "category": text_of(record, "question_type", where),
                        "question": question,
                        "content": texts_of(record, "image_content", where),
                    },
                )
            )
    return examples


def rating_prompt(example: Example, prediction: Prediction) -> str:
    """What the judge is asked."""
    return _PROMPT.format(
        content=", ".join(example.metadata["content"]),
        question=example.metadata["question"],
        truth=example.references[0],
        answer=prediction.text,
    )


def read_rating(reply: str, flavor: Flavor) -> int | None:
    """The rating of a reply, or None.

    Example:
        >>> read_rating("Rating: 4", "released"), read_rating("**Rating:** 5", "fixed")
        (4, 5)
    """
    if flavor == "fixed":
        found = _RATING.findall(reply)
        return int(found[-1]) if found else None
    said = [n for n in range(HIGHEST + 1) if f"rating: {n}" in reply.lower()]
    return said[0] if len(said) == 1 else None


def _measure(examples: Sequence[Example], replies: Sequence[str]) -> list[Measurement]:
    ids = [example.id for example in examples]
    types = [str(example.metadata["category"]) for example in examples]
    measured = []
    for flavor in FLAVORS:
        ratings = [read_rating(reply, flavor) for reply in replies]
        if flavor == "released":
            ratings = [rating or 0 for rating in ratings]
        wrong = [None if rating is None else rating < HALLUCINATED_BELOW for rating in ratings]
        measured.append(mean_of(f"score[{flavor}]", ids, ratings))
        measured.append(mean_of(f"hallucination_rate[{flavor}]", ids, wrong))
        for name in dict.fromkeys(types):
            inside = [r if own == name else None for r, own in zip(ratings, types, strict=True)]
            measured.append(mean_of(f"score.{name}[{flavor}]", ids, inside))
    return measured


JUDGING = Judging(
    rating_prompt,
    lambda reply: read_rating(reply, "fixed") is not None,
    _measure,
    GenerationSettings(max_new_tokens=500),
)
"""Greedy; the length leaves room for the explanation."""
