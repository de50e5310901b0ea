"""Description: one picture; say where it is and what stands in it, from left to right."""

from __future__ import annotations

import random

from polyptych.storybook.scenes import Scene, Thing, ThingSpec
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted
from polyptych.storybook.tasks.composition import draw_scene, pairs_of
from polyptych.storybook.tasks.phrasing import join_words, person_details, with_article
from polyptych.storybook.vocabulary import PLACES, Split

TASK = "description"

INSTRUCTIONS = (
    "Describe the picture.",
    "What does the picture show, from left to right?",
    "Name everything in this picture.",
    "Describe this picture thing by thing.",
    "What can be seen here?",
)

DESCRIPTIONS = (
    "{place} we see {things}.",
    "{things} are {place}.",
    "the picture shows {things} {place}.",
    "from left to right, there are {things} {place}.",
    "{place} there are {things}.",
)


def references_for(scene: Scene) -> tuple[str, ...]:
    """All accepted descriptions of a picture."""
    things = join_words(described_things(scene))
    place = PLACES[scene.place].phrase
    return tuple(text.format(things=things, place=place) for text in DESCRIPTIONS)


def described_things(scene: Scene) -> list[str]:
    """Noun phrases of all things with their attributes, from left to right."""
    return [_phrase(thing) for thing in sorted(scene.things, key=lambda thing: thing.x)]


def _phrase(thing: Thing) -> str:
    if thing.person is None:
        return with_article(f"{thing.size} {thing.color} {thing.kind}")
    return with_article(f"{thing.act} {person_details(thing.person)}")


def make_example(
    rng: random.Random, split: Split, *, things: tuple[int, int] = (3, 8)
) -> StoryExample:
    """Draws one picture, with a pair of kind and color that ``split`` owns among its things.

    Args:
        rng: Source of all chance.
        split: Split of the pair and of all combinations.
        things: Least and greatest number of things.
    """

    def draw() -> Scene:
        return draw_scene(rng, split, [ThingSpec(*rng.choice(pairs_of(split)))], count=things)

    scene = first_accepted(draw, "picture")
    return build_example(
        task=TASK,
        split=split,
        prompt=[scene, f" {rng.choice(INSTRUCTIONS)}"],
        references=references_for(scene),
        rng=rng,
        truth={"place": scene.place, "things": described_things(scene)},
    )
