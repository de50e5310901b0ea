"""Detail questions: several pictures, one question about one thing in one of them.

"Picture 1: <image> Picture 2: <image> What color is the cup in picture 2?" Half of the questions
about colors and kinds ask for what a caption would name
(:mod:`polyptych.reproduce.cheetah.salience`), half for what it leaves out, as it does all that
persons do. Answers are drawn first, so that each is equally likely; often another picture would
give another answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from polyptych.reproduce.cheetah.salience import named_things
from polyptych.storybook.graph import Scene, ThingSpec, find_things
from polyptych.storybook.scenes import Allow
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted, numbered
from polyptych.storybook.tasks.composition import characters_of, draw_scene, pairs_of
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import ACTS, COLORS, KINDS, Split

TASK = "detail_questions"

Question = Literal["color", "kind", "act"]
QUESTIONS: dict[Question, str] = {
    "color": "What color is the {} in picture {}?",
    "kind": "What is the {} thing in picture {}?",
    "act": "What is the person in picture {} doing?",
}
WEIGHTS: dict[Question, float] = {"color": 0.5, "kind": 0.3, "act": 0.2}
DECOYS = 0.5
"""How often another picture would give another answer."""

ALONE = tuple(act for act in ACTS if act != "holding")  # which would need a second thing


def make_detail_question(
    rng: random.Random,
    split: Split,
    *,
    pictures: int = 2,
    things: tuple[int, int] = (3, 5),
) -> StoryExample:
    """Draws a question, its answer, and pictures.

    Args:
        rng: Source of all chance.
        split: Owns the pair of kind and color, or the character, that the question is about.
        pictures: Number of pictures.
        things: Least and greatest number of things in each.
    """
    question = rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
    named = question != "act" and rng.random() < 0.5
    focus = rng.randrange(pictures)
    decoy = rng.random() < DECOYS
    spec, other, allow, words, answer = _ASK[question](rng, split)

    def draw(number: int) -> Callable[[], Scene | None]:
        include = [spec] if number == focus else [other] if decoy else []
        persons = None if question == "color" else 0

        def scene() -> Scene | None:
            drawn = draw_scene(rng, split, include, count=things, allow=allow, fill_persons=persons)
            if number != focus or question == "act":
                return drawn
            (index,) = find_things(drawn, spec)
            return drawn if (index in named_things(drawn)) == named else None

        return scene

    scenes = [first_accepted(draw(number), "picture") for number in range(pictures)]
    asked = QUESTIONS[question].format(*words, focus + 1)
    return build_example(
        task=TASK,
        split=split,
        prompt=[*numbered("Picture", scenes), f" {asked}"],
        references=(f"{answer}.",),
        rng=rng,
        truth={"question": question, "answer": answer, "named": named},
    )


_Asked = tuple[ThingSpec, ThingSpec, Allow | None, tuple[str, ...], str]
"""What to show, what a decoy shows, which other things may be there, words, and the answer."""


def _ask_color(rng: random.Random, split: Split) -> _Asked:
    color = rng.choice(tuple(COLORS))
    kind = rng.choice([k for k, c in pairs_of(split) if c == color])
    other = rng.choice([c for k, c in pairs_of("train") if k == kind and c != color])

    def allow(filler: str, _: str) -> bool:
        return filler != kind

    return ThingSpec(kind, color), ThingSpec(kind, other), allow, (kind,), color


def _ask_kind(rng: random.Random, split: Split) -> _Asked:
    kind = rng.choice(sorted({k for k, _ in pairs_of(split)}))
    color = rng.choice([c for k, c in pairs_of(split) if k == kind])
    other = rng.choice([k for k, c in pairs_of("train") if c == color and k != kind])

    def allow(_: str, hue: str) -> bool:
        return hue != color

    answer = with_article(kind)
    return ThingSpec(kind, color), ThingSpec(other, color), allow, (color,), answer


def _ask_act(rng: random.Random, split: Split) -> _Asked:
    act, other = rng.sample(ALONE, 2)
    here, there = rng.choice(characters_of(split)), rng.choice(characters_of("train"))
    return ThingSpec(person=here, act=act), ThingSpec(person=there, act=other), None, (), act


_ASK: dict[Question, Callable[[random.Random, Split], _Asked]] = {
    "color": _ask_color,
    "kind": _ask_kind,
    "act": _ask_act,
}


def detail_correct(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether an answer names the true color, kind or act and no other."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    possible = {"color": set(COLORS), "kind": set(KINDS), "act": set(ACTS)}[metadata["question"]]
    return words & possible == {metadata["answer"].split()[-1]}
