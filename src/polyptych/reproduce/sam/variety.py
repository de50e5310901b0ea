"""More training examples from the pictures that are there: other groups, other names.

A small language model has to learn from examples alone what a large one brings along: that a
caption is about what *all* pictures show, and that a name belongs to who bore it before. A few
thousand drawn examples teach it their answers by heart instead. Both changes here make an example
whose answer has to be worked out anew, without drawing or encoding another picture.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyptych.errors import PolyptychError
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.storybook.scenes import scene_from_json
from polyptych.storybook.tasks.factors import Factor, FactorType, scene_factors, strongest
from polyptych.storybook.tasks.group_captioning import QUESTIONS, references_for
from polyptych.storybook.tasks.storytelling import NAMES

_MOST_ATTEMPTS = 200
"""For each group, on average."""


def regrouped(
    examples: Sequence[Example],
    *,
    count: int,
    pictures: tuple[int, int],
    factor_types: Sequence[FactorType],
    seed: int = 0,
) -> Iterator[Example]:
    """New groups of the examples' pictures, each sharing exactly one factor.

    Args:
        examples: Group captioning examples, of training.
        count: How many new ones.
        pictures: Least and greatest number of pictures in a group.
        factor_types: Types of factors, each as likely as the others.
        seed: Another seed makes other groups.

    Raises:
        PolyptychError: If the pictures are too few to share anything in so many groups.
    """
    rng = random.Random(f"regrouped/{seed}")
    images = [image for example in examples for image in example.images]
    scenes = [scene for example in examples for scene in example.metadata["scenes"]]
    factors = [scene_factors(scene_from_json(dict(scene))) for scene in scenes]
    places: dict[Factor, list[int]] = defaultdict(list)
    for place, found in enumerate(factors):
        for factor in found:
            places[factor].append(place)
    often = [f for f in sorted(places) if len(places[f]) >= pictures[1]]
    by_type = [[f for f in often if f.type == kind] for kind in factor_types]
    choices = [factors_of_type for factors_of_type in by_type if factors_of_type]
    made = 0
    for _ in range(_MOST_ATTEMPTS * count if choices else 0):
        factor = rng.choice(rng.choice(choices))
        chosen = rng.sample(places[factor], rng.randint(*pictures))
        if strongest(set.intersection(*(factors[place] for place in chosen))) == {factor}:
            made += 1
            yield _group(f"regrouped-{made}", factor, [images[place] for place in chosen], rng)
            if made == count:
                return
    raise PolyptychError(f"{made} of {count} groups found among {len(images)} pictures")


def _group(
    identity: str, factor: Factor, images: Sequence[ImageRef], rng: random.Random
) -> Example:
    """The conversation of :mod:`polyptych.storybook.tasks.group_captioning` over given pictures."""
    return numbered_pictures(
        identity,
        images,
        rng.choice(QUESTIONS),
        references_for(factor),
        rng,
        {"factor": factor._asdict()},
    )


def numbered_pictures(
    identity: str,
    images: Sequence[ImageRef],
    question: str,
    references: Sequence[str],
    rng: random.Random,
    metadata: Mapping[str, Any],
) -> Example:
    """Pictures that are there already, "Picture 1: ... Picture 2: ...", and a question about them.

    One of the references, by chance, becomes the answer.
    """
    blocks: list[Block] = []
    for number in range(1, len(images) + 1):
        blocks += [TextBlock(f"{' ' if number > 1 else ''}Picture {number}: "), ImageBlock()]
    blocks.append(TextBlock(f" {question}"))
    answer = Message("assistant", (TextBlock(rng.choice(references)),))
    return Example(
        identity,
        (Message("user", tuple(blocks)), answer),
        tuple(images),
        tuple(references),
        metadata=dict(metadata),
    )


def renamed(examples: Sequence[Example], *, copies: int, seed: int = 0) -> Iterator[Example]:
    """The same stories with other names, ``copies`` times; who does what stays.

    Args:
        examples: Storytelling examples, of training.
        copies: New stories of each.
        seed: Another seed gives other names.
    """
    rng = random.Random(f"renamed/{seed}")
    for copy in range(1, copies + 1):
        for example in examples:
            old = example.metadata["cast"]
            yield _rename(example, dict(zip(old, rng.sample(NAMES, len(old)), strict=True)), copy)


def _rename(example: Example, new: Mapping[str, str], copy: int) -> Example:
    word = re.compile(rf"\b({'|'.join(map(re.escape, new))})\b")

    def text(value: str) -> str:
        return word.sub(lambda match: new[match[0]], value)

    def message(old: Message) -> Message:
        blocks = (TextBlock(text(b.text)) if isinstance(b, TextBlock) else b for b in old.content)
        return Message(old.role, tuple(blocks))

    truth = {name: value for name, value in example.metadata.items() if name != "scenes"}
    for field in ("names", "cast"):
        truth[field] = [new[name] for name in truth[field]]
    for field in ("acts", "held"):
        truth[field] = {new[name]: value for name, value in truth[field].items()}
    return dataclasses.replace(
        example,
        id=f"{example.id}-renamed-{copy}",
        messages=tuple(message(old) for old in example.messages),
        references=tuple(text(reference) for reference in example.references),
        metadata=truth,
    )
