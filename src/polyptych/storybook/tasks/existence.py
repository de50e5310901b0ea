"""Existence: is there a red ball? Yes or no, each exactly half of the time.

Records come in pairs with the same question and different pictures, one answered yes and one no,
so the question alone says nothing. All pictures show the kind in another color and the color on
another kind; where the asked thing is missing, a second one of each stands for it, so neither
finding nor counting kinds and colors apart from each other says anything.
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
    things: tuple[int, int] = (4, 8),
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
    focus = rng.randrange(count)
    scenes = [
        _draw_scene(rng, split, kind, color, answer if picture == focus else None, things)
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
    answer: Answer | None,
    things: tuple[int, int],
) -> Scene:
    """A picture with decoys; in the one that has the answer, the thing itself or more of them."""
    hues = [c for k, c in pairs_of("train") if k == kind and c != color]
    kinds = [k for k, c in pairs_of("train") if c == color and k != kind]

    def draw() -> Scene:
        in_other_color = [ThingSpec(kind, hue) for hue in rng.sample(hues, 2)]
        of_other_kind = [ThingSpec(other, color) for other in rng.sample(kinds, 2)]
        include = [in_other_color[0], of_other_kind[0]]
        if answer == "yes":
            include.append(ThingSpec(kind, color))
        elif answer == "no":
            include += [in_other_color[1], of_other_kind[1]]
        return draw_scene(
            rng,
            split,
            include,
            count=things,
            allow=lambda other, hue: (other, hue) != (kind, color),
        )

    return first_accepted(draw, "picture for a question")
