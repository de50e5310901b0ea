"""Group captioning: some pictures share exactly one factor; say it in one sentence.

No picture alone gives the answer away: each of them shows many things, some of which stand in all
pictures but one (:mod:`polyptych.storybook.tasks.groups`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from polyptych.storybook.scenes import Scene
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted, numbered
from polyptych.storybook.tasks.factors import (
    FACTOR_TYPES,
    Factor,
    FactorType,
    shared_factors,
)
from polyptych.storybook.tasks.groups import Group, draw_factor
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import PLACES, Split

TASK = "group_captioning"

QUESTIONS = (
    "What do these pictures have in common?",
    "What do all of these pictures share?",
    "Say in one sentence what the pictures have in common.",
    "Which one thing is the same in all pictures?",
    "Write one caption that is true for every picture.",
    "Name what every picture shows.",
)

_THING_CAPTIONS = (
    "every picture shows {}.",
    "there is {} in every picture.",
    "{} appears in all of the pictures.",
    "all of the pictures contain {}.",
    "each picture has {} in it.",
    "what the pictures share is {}.",
)
CAPTIONS: dict[FactorType, tuple[str, ...]] = {
    "kind": _THING_CAPTIONS,
    "colored_kind": _THING_CAPTIONS,
    "relation": _THING_CAPTIONS,
    "category": (
        "every picture shows {} of some kind.",
        "there is {} of one kind or another in every picture.",
        *_THING_CAPTIONS[2:],
    ),
    "place": (
        "every picture is set {}.",
        "all of the pictures take place {}.",
        "each picture shows a scene {}.",
        "all of these scenes are {}.",
        "everything here happens {}.",
        "what the pictures share is a place {}.",
    ),
    "character": (
        "the {} is in every picture.",
        "every picture shows the {}.",
        "the {} appears every time.",
        "all of them show the {}.",
        "what they share is the {}.",
    ),
}


def references_for(factor: Factor) -> tuple[str, ...]:
    """All accepted captions of pictures that share ``factor``."""
    return tuple(caption.format(_words(factor)) for caption in CAPTIONS[factor.type])


def _words(factor: Factor) -> str:
    if factor.type == "place":
        return PLACES[factor.value].phrase
    if factor.type == "character":
        return factor.value
    if factor.type == "relation":
        subject, predicate, other = factor.value.split()
        return f"{with_article(subject)} {predicate} {with_article(other)}"
    return with_article(factor.value)


def make_example(
    rng: random.Random,
    split: Split,
    *,
    pictures: tuple[int, int] = (3, 6),
    things: tuple[int, int] = (3, 8),
    factor_types: Sequence[FactorType] = FACTOR_TYPES,
) -> StoryExample:
    """Draws pictures that share exactly one factor.

    Args:
        rng: Source of all chance.
        split: Its colored kinds, characters and combinations become factors.
        pictures: Least and greatest number of pictures.
        things: Least and greatest number of things in each.
        factor_types: Types to choose from, each as likely as the others.
    """
    factor_type = rng.choice(tuple(factor_types))
    count = rng.randint(*pictures)

    def draw() -> tuple[Factor, list[Scene]] | None:
        factor, person = draw_factor(rng, split, factor_type)
        group = Group(rng, split, factor, count)
        group.include_factor(person)
        group.include_distractors(things[1])
        scenes = group.draw_scenes(things)
        return (factor, scenes) if shared_factors(scenes) == {factor} else None

    factor, scenes = first_accepted(draw, f"group with a shared {factor_type}")
    return build_example(
        task=TASK,
        split=split,
        prompt=[*numbered("Picture", scenes), f" {rng.choice(QUESTIONS)}"],
        references=references_for(factor),
        rng=rng,
        truth={"factor": {"type": factor.type, "value": factor.value}},
    )
