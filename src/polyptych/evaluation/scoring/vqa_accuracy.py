"""VQA accuracy: an answer against ten human ones, as a scorer of VQAv2, OKVQA, VizWiz and TextVQA.

Antol et al. 2015: an answer is right to the degree min(1, humans who said it / 3), as a mean over
the ten sets of nine humans. So 1, 2, 3 and 4 of ten matches give 0.3, 0.6, 0.9 and 1.

Two flavors, which differ in what they compare:

- ``official``: the VQA challenge's evaluation. Texts are normalized only where the ten humans
  disagree; human answers then lose their punctuation only.
- ``released``: the TextVQA evaluation that LLaVA and CaMML ship. Everything is normalized fully,
  and "'s" becomes a word of its own.

Quirks of the originals are kept, since published numbers contain them: "a-b" becomes "b" (the
hyphen a space, the "a" an article), and periods go although a digit stands in front.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NoReturn, get_args

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.schema import Example, Prediction

Flavor = Literal["official", "released"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

HUMANS = 10
"""Human answers to a question."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the originals pass re.UNICODE, which is 32, where a count is expected
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(n) for n, word in enumerate(_NUMBER_WORDS.split())}

_CONTRACTED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
    how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've
    o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll
    someone's something'd something'll that's there'd there're there's they'd they'll they're
    they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd
    you'll you're you've couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've
    somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've
    y'all'll y'all'd've you'd've 'ow's'at
"""
"""Written right; what is mended is each of them with one apostrophe missing."""


def _one_apostrophe_less(word: str) -> list[str]:
    return [word[: m.start()] + word[m.end() :] for m in re.finditer("'", word)]


_CONTRACTIONS = {
    short: word for word in _CONTRACTED.split() for short in _one_apostrophe_less(word)
} | {"somebody'd": "somebodyd"}  # the wrong way round in the originals, too


@lru_cache(maxsize=1 << 16)
def normalize_answer(text: str, flavor: Flavor = "released") -> str:
    """An answer as it is compared.

    Example:
        >>> normalize_answer("The two dogs."), normalize_answer("John's car")
        ('2 dogs', "john 's car")
    """
    if flavor == "released":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _plain_words(_without_punctuation(text))


def _without_punctuation(text: str) -> str:
    """Marks vanish beside a space or if digits are grouped anywhere; else they become a space."""
    grouped = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        if mark in result:
            vanishes = grouped or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _plain_words(text: str) -> str:
    digits = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def vqa_accuracy(answer: str, humans: Sequence[str], flavor: Flavor = "released") -> float:
    """How far ten humans support an answer, from 0 to 1.

    Args:
        answer: What the model said.
        humans: Ten answers.
        flavor: See the head of this module.

    Raises:
        PolyptychError: For another number of human answers.
    """
    if len(humans) != HUMANS:
        raise PolyptychError(f"VQA accuracy needs {HUMANS} human answers, got {len(humans)}")
    said, right = _prepare(answer, humans, flavor)
    matches = [human == said for human in right]
    total = sum(matches)
    others = [total - match for match in matches]  # of the nine without this human
    return sum(min(1.0, count / 3) for count in others) / HUMANS


def _prepare(answer: str, humans: Sequence[str], flavor: Flavor) -> tuple[str, list[str]]:
    if flavor == "released":
        return normalize_answer(answer), [normalize_answer(human) for human in humans]
    if len(set(humans)) == 1:
        return answer.replace("\n", " ").replace("\t", " ").strip(), list(humans)
    return normalize_answer(answer, "official"), [_without_punctuation(text) for text in humans]


def vqa_scorer(flavor: Flavor) -> Scorer:
    """``vqa_accuracy[FLAVOR]`` against the ten references of each example."""

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        values = []
        for example, prediction in zip(examples, predictions, strict=True):
            if len(example.references) != HUMANS:
                raise PolyptychError(
                    f"question {example.id!r} has {len(example.references)} human answers, "
                    f"VQA accuracy needs {HUMANS}"
                )
            values.append(vqa_accuracy(prediction.text, example.references, flavor))
        return [mean_of(f"vqa_accuracy[{flavor}]", [e.id for e in examples], values)]

    return score


def textvqa_question(prompt: str) -> str:
    """The lower-case question in a prompt of LLaVA's TextVQA file, by which it finds its answers.

    Raises:
        PolyptychError: If the prompt has none of the three known shapes.
    """
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        return found.group(1).lower() if found else _unknown_shape(prompt)
    lines = prompt.split("\n")
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    return lines[0].lower() if len(lines) == 2 else _unknown_shape(prompt)


def _unknown_shape(prompt: str) -> NoReturn:
    raise PolyptychError(f"no question found in the TextVQA prompt {prompt[:60]!r}")
