"""Multiple choice: which option an answer means, and whether it is the right one.

Flavors:

- ``letter_released``: the scorer of LLaVA 1.5 and CaMML for ScienceQA (image). The answer is a
  letter from A to E, or starts with a letter and ". ", or says "The answer is X." exactly once.
- ``answer_is_released``, ``answer_released``: the earlier ScienceQA scorer and that of CaMML's
  fine-tuned model, "The answer is X." and "ANSWER: X.", exactly once, with any character after the
  letter. Their originals *draw* an option, without a seed, where that fails; here such an answer
  counts as much as it does on average, 1 / number of options.
- ``exact_released``: SEED's; the answer is the letter and nothing else.
- ``fixed``: what the answer means, by letter, "(B)", "option B", "答案是B" or the option's text, as
  :func:`polyptych.evaluation.demon.answers.match_choice` reads it. No option is ever drawn.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.answers import match_choice
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.scoring.groups import by_group, mean_over_groups
from polyptych.schema import Example, Prediction

Flavor = Literal[
    "letter_released", "answer_is_released", "answer_released", "exact_released", "fixed"
]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_RELEASED_OPTIONS = frozenset("ABCDE")
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_ANSWER = re.compile(r"ANSWER: ([A-Z]).")
# After NFKC, which makes full-width letters, brackets and colons plain ones.
_CHINESE = re.compile(r"(?:答案|选项|选择|选)(?:应该|应)?(?:是|为)?\s*:?\s*\(?([A-Z])(?![A-Za-z])")
_LETTER_AND_CHINESE = re.compile(r"\s*\(?([A-Z])\s*[)。,、.:]*\s*(?=[\u4e00-\u9fff]|$)")


def released_letter(answer: str) -> str | None:
    """The letter that ``letter_released`` reads, also one beyond the last option."""
    if answer in _RELEASED_OPTIONS:
        return answer
    if answer[:1] in _RELEASED_OPTIONS and answer[1:3] == ". ":
        return answer[0]
    return _only_match(_THE_ANSWER_IS, answer)


def _only_match(pattern: re.Pattern[str], answer: str) -> str | None:
    found = pattern.findall(answer)
    return found[0] if len(found) == 1 else None


READERS: dict[str, Callable[[str], str | None]] = {
    "letter_released": released_letter,
    "answer_is_released": lambda answer: _only_match(_THE_ANSWER_IS, answer),
    "answer_released": lambda answer: _only_match(_ANSWER, answer),
    "exact_released": lambda answer: answer if len(answer) == 1 and answer in LETTERS else None,
}
"""Flavor to the letter it reads in an answer, None where it finds none."""

_DRAWS = frozenset({"answer_is_released", "answer_released"})


def read_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the option that an answer means, or None; the reading of ``fixed``.

    Example:
        >>> read_choice("(B)", ["red", "blue"]), read_choice("答案是A。", ["红", "蓝"])
        (1, 0)
    """
    text = unicodedata.normalize("NFKC", answer)
    chinese = _only_match(_CHINESE, text)
    first = _LETTER_AND_CHINESE.match(text)
    letter = chinese or (first.group(1) if first else None)
    if letter is not None:
        index = LETTERS.index(letter)
        return index if index < len(choices) else None
    return match_choice(text, choices)


def choice_value(answer: str, choices: Sequence[str], truth: int, flavor: Flavor) -> float:
    """1 for the right option, 0 for another or none, or the mean of a draw; see ``flavor``.

    Args:
        answer: What the model said.
        choices: Texts of the options.
        truth: Index of the right one.
        flavor: See the head of this module.
    """
    if flavor == "fixed":
        return float(read_choice(answer, choices) == truth)
    letter = READERS[flavor](answer)
    index = LETTERS.index(letter) if letter is not None else None
    if index is None or index >= len(choices):
        return 1 / len(choices) if flavor in _DRAWS else 0.0
    return float(index == truth)


def truth_index(example: Example) -> int:
    """Index of the right option: the example's only reference is its letter.

    Raises:
        PolyptychError: For a reference that is no letter of an option.
    """
    letters = LETTERS[: len(example.choices)]
    if len(example.references) == 1 and example.references[0] in tuple(letters):
        return letters.index(example.references[0])
    raise PolyptychError(
        f"question {example.id!r}: the truth must be one letter of {len(letters)} options, "
        f"got {example.references!r}"
    )


def choice_scorer(flavor: Flavor, *groups: str) -> Scorer:
    """``accuracy[FLAVOR]``, and beside it the accuracy of every group.

    Args:
        flavor: See the head of this module.
        *groups: Keys of the metadata whose values are the groups: ``accuracy.VALUE[FLAVOR]``.
    """

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        values = _values(examples, predictions, flavor)
        measured = [mean_of(f"accuracy[{flavor}]", ids, values)]
        for group in groups:
            names = [str(example.metadata[group]) for example in examples]
            measured += by_group("accuracy", flavor, ids, values, names)
        return measured

    return score


def grouped_choice_scorer(flavor: Flavor, group: str) -> Scorer:
    """As :func:`choice_scorer` with one key, and first ``mean_accuracy[FLAVOR]`` over its groups.

    That mean counts every group alike, whatever its size (BLINK's overall number).
    """

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        groups = [str(example.metadata[group]) for example in examples]
        values = _values(examples, predictions, flavor)
        return [
            mean_over_groups(f"mean_accuracy[{flavor}]", ids, values, groups),
            mean_of(f"accuracy[{flavor}]", ids, values),
            *by_group("accuracy", flavor, ids, values, groups),
        ]

    return score


def circular_scorer(flavor: Flavor) -> Scorer:
    """``circular_accuracy[FLAVOR]``: a question is right if it is in every rotation of its options.

    Examples of one question have the same ``question`` in their metadata (MMBench, Liu et al. 2023,
    section 4).
    """

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        right: dict[str, bool] = {}
        values = _values(examples, predictions, flavor)
        for example, value in zip(examples, values, strict=True):
            question = str(example.metadata["question"])
            right[question] = right.get(question, True) and value == 1
        return [mean_of(f"circular_accuracy[{flavor}]", list(right), list(right.values()))]

    return score


def _values(
    examples: Iterable[Example], predictions: Iterable[Prediction], flavor: Flavor
) -> list[float]:
    return [
        choice_value(prediction.text, example.choices, truth_index(example), flavor)
        for example, prediction in zip(examples, predictions, strict=True)
    ]
