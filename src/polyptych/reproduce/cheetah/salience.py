"""What captions say of a picture, and what they leave out.

People who caption a picture name where it is and what catches the eye. So do the captions here: the
place, and kind and color of the two largest things. A visual prompt generator that is trained to be
enough for such captions is *task-agnostic*, and drops the rest (arXiv 2308.04152, section 1).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from polyptych.reproduce.base import FixedDirections, Hints, Readout
from polyptych.storybook.graph import Scene, Thing, ThingSpec, box_of, scene_from_json
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted
from polyptych.storybook.tasks.composition import draw_scene, pairs_of
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import COLORS, KINDS, PERSON, PLACES, Split

TASK = "captions"

NAMED = 2
"""How many things a caption names."""

INSTRUCTIONS = (
    "Describe the picture.",
    "What does the picture show?",
    "Write a caption for this picture.",
    "What can be seen here?",
    "Say in a few words what this is.",
)

CAPTIONS = (
    "{things} {place}.",
    "we see {things} {place}.",
    "there are {things} {place}.",
    "the picture shows {things} {place}.",
    "a picture of {things} {place}.",
)


def named_things(scene: Scene) -> list[int]:
    """Indices of the things that a caption names, the largest first."""
    return by_size(scene)[:NAMED]


def by_size(scene: Scene) -> list[int]:
    """Indices of all things, the largest first."""

    def area(index: int) -> float:
        box = box_of(scene.things[index])
        return box.width * box.height

    return sorted(range(len(scene.things)), key=lambda index: (-area(index), index))


def captions_for(scene: Scene) -> tuple[str, ...]:
    """All accepted captions of a picture."""
    things = " and ".join(_phrase(scene.things[index]) for index in named_things(scene))
    place = PLACES[scene.place].phrase
    return tuple(caption.format(things=things, place=place) for caption in CAPTIONS)


def _phrase(thing: Thing) -> str:
    if thing.kind == PERSON:
        return f"a person in {thing.color}"
    return with_article(f"{thing.color} {thing.kind}")


def make_caption(
    rng: random.Random, split: Split, *, things: tuple[int, int] = (3, 5)
) -> StoryExample:
    """Draws one picture, with a pair of kind and color that ``split`` owns, and captions it.

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
        references=captions_for(scene),
        rng=rng,
        truth={},
    )


class CaptionReadout(Readout):
    """Asks what a caption says, each query its own part: the place, the first thing, the second.

    One thing per query, because a decoder of a few layers can bind a color to a kind only where
    they stand in one token. A kind looks the same in both tokens, so that what is learned of one
    thing holds for the other.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        assert tokens == 1 + NAMED
        self.place = FixedDirections(len(PLACES), width)
        self.kind = FixedDirections(len(_KINDS), width)
        self.color = FixedDirections(len(COLORS), width)

    def loss(self, tokens: Float[Tensor, "n Q D_llm"], truths: Sequence[Any]) -> Tensor:
        """Cross-entropy of each part; truths are scenes as JSON."""
        scenes = [scene_from_json(dict(scene)) for scene in truths]
        parts = [(self.place(tokens[:, 0]), [list(PLACES).index(s.place) for s in scenes])]
        for rank in range(NAMED):
            things = [scene.things[named_things(scene)[rank]] for scene in scenes]
            token = tokens[:, 1 + rank]
            parts.append((self.kind(token), [_KINDS.index(t.kind) for t in things]))
            parts.append((self.color(token), [list(COLORS).index(t.color) for t in things]))
        return torch.stack(
            [cross_entropy(logits, torch.tensor(truth)) for logits, truth in parts]
        ).sum()


class ThingHints(Hints):
    """Asks for one thing of a picture by its rank in size, its kind, or its color.

    Both tokens of things shall then say kind and color of that thing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ways = nn.Embedding(_RANKS + len(_KINDS) + len(COLORS), width)

    def draw(
        self, truths: Sequence[Any], rng: random.Random
    ) -> tuple[Float[Tensor, "n D_q"], Sequence[Thing]]:
        """A thing by chance, in one of the ways in which it alone is meant."""
        drawn = [_way(scene_from_json(dict(scene)), rng) for scene in truths]
        return self.ways(torch.tensor([way for way, _ in drawn])), [thing for _, thing in drawn]

    def loss(
        self, readout: CaptionReadout, tokens: Float[Tensor, "n Q D_llm"], wanted: Sequence[Thing]
    ) -> Tensor:
        """Cross-entropy of kind and color, mean over the tokens of things."""
        kinds = torch.tensor([_KINDS.index(thing.kind) for thing in wanted])
        colors = torch.tensor([list(COLORS).index(thing.color) for thing in wanted])
        parts = [
            cross_entropy(readout.kind(token), kinds) + cross_entropy(readout.color(token), colors)
            for token in tokens[:, 1:].unbind(1)
        ]
        return torch.stack(parts).mean()


def _way(scene: Scene, rng: random.Random) -> tuple[int, Thing]:
    """Row of a hint, and the thing it means."""
    order = by_size(scene)[:_RANKS]
    rank = rng.randrange(len(order))
    thing = scene.things[order[rank]]
    ways = [rank]
    if sum(other.kind == thing.kind for other in scene.things) == 1:
        ways.append(_RANKS + _KINDS.index(thing.kind))
    if sum(other.color == thing.color for other in scene.things) == 1:
        ways.append(_RANKS + len(_KINDS) + list(COLORS).index(thing.color))
    return rng.choice(ways), thing


_RANKS = 8
_KINDS = (PERSON, *KINDS)
