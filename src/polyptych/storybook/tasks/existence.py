"""Existence: is there a red ball? Yes or no, each exactly half of the time.

Records come in pairs with the same question and different pictures, one answered yes and one no,
so the question alone says nothing. All pictures show the kind in another color and the color on
another kind, so finding both of them apart says nothing either.
"""

from __future__ import annotations

import random
from typing import Literal

from polyptych.storybook.scenes import Scene, ThingSpec
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted, numbered
from polyptych.storybook.tasks.composition import draw_scene, pairs_of
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import Split

TASK = "existence"

Answer = Literal["yes", "no"]
ANSWERS: tuple[Answer, ...] = ("yes", "no")

ONE_PICTURE = (
    "Is there {} in the picture?",
    "Does the picture show {}?",
    "Can you see {} here?",
    "Is {} anywhere in this picture?",
    "Does this picture contain {}?",
)
SEVERAL_PICTURES = (
    "Is there {} in any of the pictures?",
    "Does one of the pictures show {}?",
    "Can you see {} in any of these?",
    "Is {} anywhere in these pictures?",
    "Do these pictures contain {}?",
)
REPLIES: dict[Answer, tuple[str, ...]] = {
    "yes": (
        "yes.",
        "yes, there is {a_thing}.",
        "yes, there is one.",
        "yes, it can be seen.",
        "yes, {a_thing} can be seen.",
    ),
    "no": (
        "no.",
        "no, there is no {thing}.",
        "no, there is none.",
        "no, it cannot be seen.",
        "no, {a_thing} cannot be seen.",
    ),
}


def make_example(
    rng: random.Random,
    split: Split,
    *,
    role: Answer | None = None,
    pictures: tuple[int, int] = (1, 3),
    things: tuple[int, int] = (3, 8),
) -> StoryExample:
    """Draws a question about one colored kind and pictures that answer it.

    Args:
        rng: Source of all chance; the same state gives the same question for both answers.
        split: Owns the pair of kind and color that is asked for.
        role: The true answer; by chance if None.
        pictures: Least and greatest number of pictures.
        things: Least and greatest number of things in each.
    """
    kind, color = rng.choice(pairs_of(split))
    count = rng.randint(*pictures)
    thing = f"{color} {kind}"
    a_thing = with_article(thing)
    question = rng.choice(ONE_PICTURE if count == 1 else SEVERAL_PICTURES).format(a_thing)
    answer: Answer = rng.choice(ANSWERS) if role is None else role
    shown_in = rng.randrange(count) if answer == "yes" else None
    scenes = [
        _draw_scene(rng, split, kind, color, shown=picture == shown_in, things=things)
        for picture in range(count)
    ]
    prompt = numbered("Picture", scenes) if count > 1 else list(scenes)
    return build_example(
        task=TASK,
        split=split,
        prompt=[*prompt, f" {question}"],
        references=tuple(reply.format(thing=thing, a_thing=a_thing) for reply in REPLIES[answer]),
        rng=rng,
        truth={"answer": answer, "kind": kind, "color": color},
    )


def _draw_scene(
    rng: random.Random,
    split: Split,
    kind: str,
    color: str,
    *,
    shown: bool,
    things: tuple[int, int],
) -> Scene:
    """A picture with both decoys, and with the colored kind itself if it is ``shown``."""

    def draw() -> Scene:
        hues = [c for k, c in pairs_of("train") if k == kind and c != color]
        kinds = [k for k, c in pairs_of("train") if c == color and k != kind]
        include = [ThingSpec(kind, rng.choice(hues)), ThingSpec(rng.choice(kinds), color)]
        if shown:
            include.append(ThingSpec(kind, color))
        return draw_scene(
            rng,
            split,
            include,
            count=things,
            allow=lambda other, hue: (other, hue) != (kind, color),
        )

    return first_accepted(draw, "picture for a question")
