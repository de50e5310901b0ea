"""Short answers against one right text: GQA's exact match, and the reading of numbers by MIRB.

GQA has two flavors. ``official`` is the benchmark's exact match, after the trailing periods are cut
and letters made small, as LLaVA and CaMML do; ``fixed`` compares what
:func:`polyptych.evaluation.scoring.vqa_accuracy.normalize_answer` leaves of both, so that "the dog"
is right where "dog" is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.scoring.groups import by_group
from polyptych.evaluation.scoring.vqa_accuracy import normalize_answer
from polyptych.schema import Example, Prediction

Flavor = Literal["official", "fixed"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)


def gqa_answer(answer: str) -> str:
    """An answer as GQA's submission file has it."""
    return answer.rstrip(".").lower()


def _official(answer: str, truth: str) -> bool:
    return gqa_answer(answer) == truth


def _fixed(answer: str, truth: str) -> bool:
    return normalize_answer(answer) == normalize_answer(truth)


JUDGES: dict[Flavor, Callable[[str, str], bool]] = {"official": _official, "fixed": _fixed}


def exact_scorer(flavor: Flavor, *groups: str) -> Scorer:
    """``accuracy[FLAVOR]``, and beside it the accuracy of every group.

    Args:
        flavor: See the head of this module.
        *groups: Keys of the metadata whose values are the groups: ``accuracy.VALUE[FLAVOR]``.
    """
    judge = JUDGES[flavor]

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        values = [
            judge(prediction.text, only_reference(example))
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        measured = [mean_of(f"accuracy[{flavor}]", ids, values)]
        for group in groups:
            names = [str(example.metadata[group]) for example in examples]
            measured += by_group("accuracy", flavor, ids, values, names)
        return measured

    return score


def only_reference(example: Example) -> str:
    """The one right answer.

    Raises:
        PolyptychError: If there is none, or more than one.
    """
    if len(example.references) != 1:
        raise PolyptychError(
            f"question {example.id!r} has {len(example.references)} right answers, 1 is needed"
        )
    return example.references[0]


# MIRB's reading.

_NUMBER_WORDS = """
    zero one first two second three third four fourth five fifth six sixth seven seventh eight
    eighth nine ninth ten tenth
"""
_NUMBERS = {word: str((n + 1) // 2) for n, word in enumerate(_NUMBER_WORDS.split())}
_DIGITS = re.compile(r"\d+")


def first_sentence(answer: str) -> str:
    """An answer up to its first line break or, where it has none, its first period."""
    text = answer.strip()
    end = text.find("\n")
    if end <= 0:
        end = text.find(".")
    return text[:end] if end > 0 else text


def first_number(text: str) -> str:
    """The first run of digits, or what a number word alone means; "" without either."""
    found = _DIGITS.search(text)
    return found.group() if found else _NUMBERS.get(text.lower(), "")
