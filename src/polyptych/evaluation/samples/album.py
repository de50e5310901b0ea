"""Forty drawn pictures, and questions about them whose answers are known: what all samples show.

Samples have the layout of published benchmarks, not their difficulty: numbers on them say that a
model and the tools run, and are no numbers of the benchmarks.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from PIL import Image, ImageDraw

from polyptych.storybook.graph import Scene, colored_kinds_in, kinds_in
from polyptych.storybook.rendering import draw
from polyptych.storybook.tasks import description
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import COLORS, KINDS, PERSON, PLACES, Split

PICTURES = 40
SIZE = 128
"""Width and height of a picture in pixels."""

SPLIT: Split = "test"
"""Whose compositions are shown: none of them occurs in Storybook's training sets."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about one picture with its answer and three other answers of the same sort."""

    picture: int
    sort: str
    question: str
    answer: str
    wrong: tuple[str, str, str]

    def options(self, rng: random.Random) -> tuple[list[str], int]:
        """All four answers in some order, and the index of the right one."""
        choices = shuffled(rng, [self.answer, *self.wrong])
        return choices, choices.index(self.answer)


@dataclass(frozen=True, slots=True)
class Claim:
    """A question about one picture that is answered by yes or no."""

    picture: int
    question: str
    truth: bool

    @property
    def answer(self) -> str:
        """In small letters."""
        return "yes" if self.truth else "no"


@cache
def scenes() -> tuple[Scene, ...]:
    """All pictures before they are drawn."""
    return tuple(
        description.make_example(random.Random(f"album/{number}"), SPLIT).scenes[0]
        for number in range(PICTURES)
    )


@cache
def picture(number: int) -> Image.Image:
    """One picture; numbers beyond the last start anew."""
    return draw(scenes()[number % PICTURES], SIZE)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {"quality": 92}))
    return buffer.getvalue()


def page(*lines: str) -> Image.Image:
    """A white page with printed lines, for what has to be read."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    ImageDraw.Draw(image).multiline_text((8, 12), "\n\n".join(lines), fill="black")
    return image


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """The items in another order."""
    return rng.sample(items, len(items))


# Questions.


def questions(name: str, count: int) -> list[Asked]:
    """Questions about the first pictures, their sorts in turn; the same for the same name."""
    asked = []
    for number in range(count):
        rng = random.Random(f"sample/{name}/{number}")
        sort = (ask_color, ask_place, ask_leftmost)[number % 3]
        found = sort(rng, number % PICTURES)
        asked.append(found or ask_place(rng, number % PICTURES))
    return asked


def ask_color(rng: random.Random, number: int) -> Asked | None:
    """What color is it? About a kind that occurs once; None without any."""
    things = [thing for thing in scenes()[number].things if thing.kind != PERSON]
    kinds = [thing.kind for thing in things]
    alone = [thing for thing in things if kinds.count(thing.kind) == 1]
    if not alone:
        return None
    thing = rng.choice(alone)
    wrong = _three(rng, COLORS, {thing.color})
    return Asked(number, "color", f"What color is the {thing.kind}?", thing.color, wrong)


def ask_place(rng: random.Random, number: int) -> Asked:
    """Where is this?"""
    place = scenes()[number].place
    return Asked(number, "place", "Where is this?", place, _three(rng, PLACES, {place}))


def ask_leftmost(rng: random.Random, number: int) -> Asked:
    """What is furthest to the left?"""
    scene = scenes()[number]
    kind = min(scene.things, key=lambda thing: thing.x).kind
    wrong = _three(rng, KINDS, kinds_in(scene))
    return Asked(number, "thing", "What is furthest to the left?", kind, wrong)


def _three(rng: random.Random, words: Iterable[str], but: set[str]) -> tuple[str, str, str]:
    one, two, three = rng.sample(sorted(set(words) - but), 3)
    return one, two, three


def claims(name: str, count: int) -> list[Claim]:
    """Questions of yes or no about the first pictures, in turn; the same for the same name."""
    return [
        claim_about(random.Random(f"claim/{name}/{number}"), number % PICTURES, number % 2 == 0)
        for number in range(count)
    ]


def claim_about(rng: random.Random, number: int, truth: bool) -> Claim:
    """Is there such a thing? A false one names a thing whose kind the picture does not show."""
    scene = scenes()[number]
    if truth:
        kind, color = rng.choice(sorted(colored_kinds_in(scene)))
    else:
        kind = rng.choice(sorted(set(KINDS) - kinds_in(scene)))
        color = rng.choice(sorted(COLORS))
    thing = with_article(f"{color} {kind}")
    return Claim(number, f"Is there {thing} in the image?", truth)


def persons(number: int) -> int:
    """How many persons a picture shows."""
    return sum(thing.kind == PERSON for thing in scenes()[number % PICTURES].things)
