"""LLaVA-Bench in the wild (Liu et al. 2023): 60 open questions; a judge grades two answers.

    ROOT/questions.jsonl      {"question_id": 0, "image": "001.jpg", "text", "category": "conv"}
    ROOT/context.jsonl        {"image": "001.jpg", "caption": a long human description, or a list}
    ROOT/answers_gpt4.jsonl   {"question_id": 0, "text": the reference answer}
    ROOT/images/001.jpg
    ROOT/rule.json            llava/eval/table/rule.json of LLaVA's code, the benchmark's own
                              instructions; ours are used where it is absent

The judge reads the description, the question, the reference answer, then the model's, and starts
its reply with both grades from 1 to 10. ``relative`` is the sum of the model's grades over the sum
of the reference's (papers multiply it by 100), over all questions and by category. Flavors:

- ``released``: the first line must be two numbers with one blank or one comma between them ("8, 6"
  has two and fails); otherwise both grades are -1 and are added up all the same.
- ``fixed``: the first two numbers of the first line that has two; a reply without them is left out.

The released judge also gets a system message, "You are a helpful and precise assistant for checking
the quality of the answer."; ours gets none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from polyptych.data.records import parse_json, read_json, read_lines
from polyptych.evaluation.faults import item
from polyptych.evaluation.judge import Judging
from polyptych.evaluation.scorers import Measurement
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks.llava_files import (
    LONG_SETTINGS,
    fail,
    identity_of,
    image_path,
    make_example,
    read_questions,
    required_file,
    text_of,
    texts_of,
)
from polyptych.schema import Example, Prediction

Flavor = Literal["released", "fixed"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

QUESTIONS = "questions.jsonl"
CONTEXT = "context.jsonl"
REFERENCES = "answers_gpt4.jsonl"
RULE = "rule.json"
IMAGES = "images"

CATEGORIES = ("conv", "detail", "complex")

_ASKED_FOR = {
    "conv": "The question is part of a talk about the image; a good answer is right, to the point "
    "and polite.",
    "detail": "The question asks for a description; a good answer is right, complete and precise "
    "about what is in the image and where.",
    "complex": "The question needs reasoning about the image; a good answer reaches a right "
    "conclusion by steps that the image supports.",
}
_RULE = """\
Two assistants have answered the question about an image, which the context describes for you.
{asked}
Grade each answer from 1 (useless) to 10 (as good as can be) by how helpful, relevant, accurate \
and detailed it is. Neither the order of the answers nor their length may decide.
The first line of your reply must hold two numbers only, the grade of assistant 1 and that of \
assistant 2, with a blank between them. Explain the grades in the lines after it."""

_RULE_PREFIX = "llava_bench_"
"""LLaVA's file has rules of other benchmarks, too, such as ``conv`` beside ``llava_bench_conv``."""

_OF_TEN = re.compile(r"\s*(?:/|out of)\s*10\b")
_TWO_NUMBERS = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)[^\d\n]+(\d+(?:\.\d+)?)")


def llava_bench_task(root: str | Path) -> Task:
    """The task over its folder; it is judged."""
    return Task("llava_bench", lambda: read_llava_bench(root), (), LONG_SETTINGS, judging=JUDGING)


def read_llava_bench(root: str | Path) -> list[Example]:
    """Questions as they stand, with the judge's context and instruction in the metadata.

    Raises:
        PolyptychError: For a missing file, a bad line, or a question that lacks its context, its
            reference answer or the instruction of its category.
    """
    contexts = _read_texts(required_file(root, CONTEXT), "image", "caption")
    references = _read_texts(required_file(root, REFERENCES), "question_id", "text")
    rules = _read_rules(Path(root, RULE))
    examples = []
    for question in read_questions(required_file(root, QUESTIONS)):
        with item():
            category = text_of(question.record, "category", question.where)
            image = image_path(Path(root, IMAGES), question.image, question.where)
            for key, table, what in (
                (question.image, contexts, "context"),
                (question.id, references, "reference answer"),
                (category, rules, "instruction"),
            ):
                if key not in table:
                    fail(question.where, f"no {what} for {key!r}")
            examples.append(
                make_example(
                    question.id,
                    question.text,
                    image,
                    question.where,
                    references=(references[question.id],),
                    metadata={
                        "task": "llava_bench",
                        "image": question.image,
                        "category": category,
                        "question": question.text,
                        "context": contexts[str(question.image)],
                        "rule": rules[category],
                    },
                )
            )
    return examples


def _read_texts(path: Path, key: str, text: str) -> dict[str, str]:
    found = {}
    for where, line in read_lines(path):
        with item():
            record = parse_json(line, where)
            if not isinstance(record, dict):
                fail(where, f"expected an object, got {type(record).__name__}")
            if isinstance(record.get(text), list):
                value = "\n".join(texts_of(record, text, where))
            else:
                value = text_of(record, text, where)
            found[identity_of(record, key, where)] = value
    return found


def _read_rules(path: Path) -> dict[str, tuple[str, str]]:
    """Category to what the two assistants are called and the instruction."""
    if not path.exists():
        return {name: ("Assistant", _RULE.format(asked=_ASKED_FOR[name])) for name in CATEGORIES}
    content, found = read_json(path), {}
    if not isinstance(content, dict):
        fail(str(path), "expected an object with an object per category")
    for name, record in content.items():
        where = f"{path} ({name!r})"
        if not isinstance(record, dict):
            fail(where, f"expected an object, got {type(record).__name__}")
        rule = (text_of(record, "role", where), text_of(record, "prompt", where))
        found[name] = rule
    own = {name: rule for name, rule in found.items() if name.startswith(_RULE_PREFIX)}
    return {name.removeprefix(_RULE_PREFIX): rule for name, rule in (own or found).items()}


def grades_prompt(example: Example, prediction: Prediction) -> str:
    """What the judge is asked: the reference answer is the first, the model's the second."""
    role, rule = example.metadata["rule"]
    answers = [
        f"[{role} {number}]\n{text}\n\n[End of {role} {number}]"
        for number, text in ((1, example.references[0]), (2, prediction.text))
    ]
    context = f"[Context]\n{example.metadata['context']}"
    question = f"[Question]\n{example.metadata['question']}"
    return "\n\n".join([context, question, *answers, f"[System]\n{rule}", ""])


def read_grades(reply: str, flavor: Flavor) -> tuple[float, float] | None:
    """Grades of the reference answer and the model's; None if they cannot be read.

    Example:
        >>> read_grades("8 6.5", "released"), read_grades("I give 8/10 and 7/10.", "fixed")
        ((8.0, 6.5), (8.0, 7.0))
    """
    if flavor == "fixed":
        found = _TWO_NUMBERS.search(_OF_TEN.sub("", reply))
        return (float(found.group(1)), float(found.group(2))) if found else None
    words = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        grades = [float(word) for word in words]
    except ValueError:
        return None
    return (grades[0], grades[1]) if len(grades) == 2 else None


def _measure(examples: Sequence[Example], replies: Sequence[str]) -> list[Measurement]:
    ids = tuple(example.id for example in examples)
    categories = [str(example.metadata["category"]) for example in examples]
    measured = []
    for flavor in FLAVORS:
        unread = (-1.0, -1.0) if flavor == "released" else (0.0, 0.0)
        pairs = [read_grades(reply, flavor) or unread for reply in replies]
        rows = np.asarray([(model, reference) for reference, model in pairs]).reshape(-1, 2)
        measured.append(Measurement(f"relative[{flavor}]", ids, rows))
        for name in dict.fromkeys(categories):
            inside = np.asarray([[own == name] for own in categories])
            measured.append(Measurement(f"relative.{name}[{flavor}]", ids, rows * inside))
    return measured


JUDGING = Judging(
    grades_prompt,
    lambda reply: read_grades(reply, "fixed") is not None,
    _measure,
    GenerationSettings(max_new_tokens=1024, do_sample=True, temperature=0.2),
)
"""As published; the seed is ours."""
