"""How true an answer is, where it is known what the pictures show: Storybook's records.

Only for measuring: a critic never sees these numbers. Descriptions are held against every thing of
the picture; answers to the other tasks are judged as their benchmark does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from polyptych.evaluation.statistics import bootstrap_interval
from polyptych.methods.sima.records import GREEDY, Responses, Verdict
from polyptych.storybook import scoring
from polyptych.storybook.vocabulary import (
    ACTS,
    CLOTHES,
    COLORS,
    HAIR,
    HAIR_COLORS,
    HATS,
    KINDS,
    PERSON,
    PLACES,
    SIZES,
)

Truth = Callable[[str, Mapping[str, Any]], float]
"""An answer and its record's metadata to a value from 0 (nothing is true) to 1."""

Fact = tuple[str | None, ...]


def description_truth(text: str, metadata: Mapping[str, Any]) -> float:
    """F1 of the facts that a description tells against those of the picture.

    Each thing is worth several facts (that it is there, with its color, with its size; a person's
    act, clothes and hair), so that a wrong color costs less than an invented thing.
    """
    said = facts_of(text)
    true = facts_of(f"{'. '.join(metadata['things'])}. {PLACES[metadata['place']].phrase}")
    common = (said & true).total()
    return 2 * common / (said.total() + true.total())


def facts_of(text: str) -> Counter[Fact]:
    """All facts that a description tells, with how often."""
    words = " ".join(re.findall(r"[a-z-]+", text.lower()))
    facts: Counter[Fact] = Counter()
    for match in _PERSON.finditer(words):
        part = match.groupdict()
        facts[("kind", PERSON)] += 1
        for name in ("act", "clothes", "hat", "hair", "glasses"):
            if part[name]:
                facts[(PERSON, name, part[name])] += 1
    words = _PERSON.sub(" ", words)
    for size, color, kind in _THING.findall(words):
        facts[("kind", kind)] += 1
        if color:
            facts[("color", color, kind)] += 1
        if size:
            facts[("size", size, color or None, kind)] += 1
    for name, place in PLACES.items():
        if re.search(rf"\b{place.phrase}\b", words):
            facts[("place", name)] += 1
    return facts


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_HAT = _any(hat for hat in HATS if hat)
_PERSON = re.compile(
    rf"\b(?:(?P<act>{_any(ACTS)}) )?{PERSON}\b"
    rf"(?: in an? (?P<clothes>(?:{_any(COLORS)}) (?:{_any(CLOTHES)})))?"
    rf"(?: and an? (?P<hat>{_HAT}))?"
    rf"(?: with (?P<hair>(?:{_any(HAIR)}) (?:{_any(HAIR_COLORS)}) hair))?"
    r"(?: and (?P<glasses>glasses))?"
)
_THING = re.compile(rf"\b(?:({_any(SIZES)}) )?(?:({_any(COLORS)}) )?({_any(KINDS)})\b")


def _story_truth(text: str, metadata: Mapping[str, Any]) -> float:
    """Names and acts in equal parts."""
    return (scoring.name_f1(text, metadata) + scoring.act_f1(text, metadata)) / 2


TRUTHS: dict[str, Truth] = {
    "description": description_truth,
    "group_captioning": scoring.factor_correct,
    "storytelling": _story_truth,
    "change_captioning": scoring.change_correct,
    "existence": scoring.existence_correct,
    "knowledge_qa": scoring.knowledge_correct,
}
"""What judges the answers to each of Storybook's tasks."""


def truth(text: str, metadata: Mapping[str, Any]) -> float | None:
    """How true an answer is; None where the truth is not known."""
    judge = TRUTHS.get(str(metadata.get("task"))) if "scenes" in metadata else None
    return None if judge is None else float(judge(text, metadata))


def truth_of(responses: Responses) -> list[float] | None:
    """How true each answer is; None where the truth is not known."""
    metadata = responses.prompt.example.metadata
    values = [truth(answer, metadata) for answer in responses.answers]
    return None if None in values else [value for value in values if value is not None]


def agreement(
    verdicts: Iterable[Verdict],
    truths: Callable[[Responses], list[float] | None] = truth_of,
) -> dict[str, Any] | None:
    """How often a critic prefers the truer answer, over comparisons of unequally true ones.

    A comparison without a winner counts one half.

    Args:
        verdicts: What the critic said.
        truths: How true each answer is; None where nobody knows.

    Returns:
        ``share``, its ``interval`` (bootstrap over prompts) and ``count``; None where no truth is
        known.
    """
    rows, prompts = [], []
    for verdict in verdicts:
        values = truths(verdict.responses)
        for comparison in verdict.comparisons if values is not None else ():
            assert values is not None
            difference = values[comparison.candidate] - values[GREEDY]
            if difference:
                margin = comparison.margin or 0.0
                rows.append([0.5 + 0.5 * np.sign(margin) * np.sign(difference), 1.0])
                prompts.append(verdict.id)
    if not rows:
        return None
    statistics = np.array(rows)
    low, high = bootstrap_interval(statistics, clusters=prompts)
    share = float(statistics[:, 0].mean())
    return {"share": share, "interval": [low, high], "count": len(rows)}
