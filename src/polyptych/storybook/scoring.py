"""Is an answer true? Pure functions of the answer's text and the record's metadata.

They read words of the vocabulary in any order of speech: articles, plurals, case and punctuation
do not matter, and an answer is right only if it says nothing else of the same sort. "every picture
shows a red ball." is wrong where the pictures share a ball of several colors, and right where they
share the red ball.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from polyptych.storybook.tasks.change_captioning import captions_for
from polyptych.storybook.tasks.factors import (
    Factor,
    kind_factors,
    relation_factor,
    strongest,
)
from polyptych.storybook.tasks.knowledge_qa import ATTRIBUTES
from polyptych.storybook.tasks.phrasing import character_phrase
from polyptych.storybook.vocabulary import (
    ACTS,
    CATEGORIES,
    CLOTHES,
    COLORS,
    HAIR_COLORS,
    HATS,
    KINDS,
    NAMES,
    PERSON,
    PLACES,
    RELATIONS,
    Person,
)


def factor_correct(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a group caption names the shared factor, exactly, and no other factor.

    Args:
        text: The answer.
        metadata: ``metadata["factor"]`` holds the true type and value.
    """
    truth = metadata["factor"]
    return strongest(mentioned_factors(text)) == {Factor(truth["type"], truth["value"])}


def name_accuracy(text: str, metadata: Mapping[str, Any]) -> float:
    """1 if the set of names in the text is the true one, else 0 (``metadata["names"]``)."""
    return float(mentioned_names(text) == set(metadata["names"]))


def name_f1(text: str, metadata: Mapping[str, Any]) -> float:
    """F1 of the set of names in the text against the true one: credit for one of two."""
    return _f1(mentioned_names(text), set(metadata["names"]))


def story_accuracy(text: str, metadata: Mapping[str, Any]) -> float:
    """1 if names, the act of each of them, and the place are all right, else 0."""
    right_acts = mentioned_acts(text) == metadata["acts"]
    return float(right_acts and place_correct(text, metadata))


def act_f1(text: str, metadata: Mapping[str, Any]) -> float:
    """F1 of the set of acts in the text against the true one, whoever does them."""
    acts = {act for act in mentioned_acts(text).values() if act is not None}
    return _f1(acts, set(metadata["acts"].values()))


def _f1(said: set[str], true: set[str]) -> float:
    return 2 * len(said & true) / (len(said) + len(true))


def place_correct(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether the text names the true place and no other."""
    return _places(_normal(text)) == {metadata["place"]}


def change_correct(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether the text says the true change in one of the accepted wordings."""
    return _normal(text) in {_normal(caption) for caption in captions_for(metadata["change"])}


def existence_correct(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a yes/no answer is the true one; saying both or neither is wrong."""
    said = {"yes", "no"} & set(_normal(text).split())
    return said == {metadata["answer"]}


def knowledge_correct(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether the text gives the true answer and no other possible answer to the question.

    The name of whom the question is about is no answer.
    """
    words = _normal(text)
    possible = {_normal(answer) for answer in ATTRIBUTES[metadata["attribute"]].answers}
    said = {answer for answer in possible if re.search(rf"\b{answer}\b", words)}
    return said == {_normal(metadata["answer"])}


# --- What a text says ----------------------------------------------------------------------------


def mentioned_factors(text: str) -> set[Factor]:
    """All factors that a text names, weaker ones included."""
    words = _normal(text)
    factors = {Factor("place", place) for place in _places(words)}
    for match in _CHARACTER.finditer(words):
        factors |= {Factor("character", _phrase_of(match)), Factor("kind", PERSON)}
    words = _CHARACTER.sub(PERSON, words)
    for color, kind in _KIND.findall(words):
        factors |= kind_factors(kind)
        if color:
            factors.add(Factor("colored_kind", f"{color} {kind}"))
    for subject, predicate, other in _RELATION.findall(words):
        factors.add(relation_factor(subject, predicate, other))
    return factors | {Factor("category", _CATEGORY_WORDS[w]) for w in _CATEGORY.findall(words)}


def mentioned_names(text: str) -> set[str]:
    """All names of the pool that a text contains."""
    return {_NAME_OF[word] for word in _words(text) if word in _NAME_OF}


def mentioned_acts(text: str) -> dict[str, str | None]:
    """Name → gerund of the first act that is told behind it; None if there is none."""
    acts: dict[str, str | None] = {}
    waiting: list[str] = []
    for word in _words(text):
        if word in _NAME_OF:
            waiting.append(_NAME_OF[word])
        elif word in _ACT_OF:
            acts |= dict.fromkeys(waiting, _ACT_OF[word])
            waiting = []
    return acts | dict.fromkeys(waiting)


def _places(words: str) -> set[str]:
    return {_PLACE_WORDS[word] for word in words.split() if word in _PLACE_WORDS}


def _phrase_of(match: re.Match[str]) -> str:
    part = match.groupdict()
    return character_phrase(
        Person(
            hair="",
            hair_color=part["hair"],
            skin="",
            hat=part["hat"],
            clothes=part["clothes"],
            clothes_color=part["color"],
            glasses=False,
        )
    )


# --- Words ---------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _normal(text: str) -> str:
    """Lower-case singular words without articles, one space between them."""
    words = [_SINGULAR.get(word, word) for word in _words(text) if word not in _ARTICLES]
    return " ".join(words).replace("next to", "beside")


def _any_of(words: object) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # type: ignore[call-overload]


_ARTICLES = frozenset({"a", "an", "the"})
_CATEGORY_WORDS = {category.split()[-1]: category for category in CATEGORIES}
_PLACE_WORDS = {place.removesuffix("s"): place for place in PLACES}
_SINGULAR = (
    {kind.plural: kind.name for kind in KINDS.values()}
    | {CATEGORIES[category].split()[-1]: word for word, category in _CATEGORY_WORDS.items()}
    | {place: word for word, place in _PLACE_WORDS.items()}
    | {"persons": PERSON, "people": PERSON, "beneath": "under", "below": "under", "over": "above"}
    | {"holds": "holding"}
)
_NAME_OF = {name.lower(): name for name in NAMES}
_ACT_OF = {
    form: gerund
    for gerund, act in ACTS.items()
    for form in (gerund, act.past, act.base, act.base + "s")
}
_THING = _any_of((*KINDS, PERSON))
_HUE = _any_of(COLORS)
_KIND = re.compile(rf"\b(?:({_HUE}) )?({_THING})\b")
_CATEGORY = re.compile(rf"\b({_any_of(_CATEGORY_WORDS)})\b")
_RELATION = re.compile(
    rf"\b({_THING}) (?:(?:is|are|stands?|lies?|sits?) )?({_any_of(RELATIONS)}) "
    rf"(?=(?:(?:{_HUE}) )?({_THING})\b)"
)
_CHARACTER = re.compile(
    rf"\b(?P<hair>{_any_of(HAIR_COLORS)}) haired person (?:(?:with|in) )?"
    rf"(?:(?P<hat>{_any_of(hat for hat in HATS if hat)}) (?:(?:and|in|with) )?)?"
    rf"(?P<color>{_HUE}) (?P<clothes>{_any_of(CLOTHES)})\b"
)
