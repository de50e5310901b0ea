"""Questions without what they are about: a model that looks must answer them worse."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from polyptych.schema import Example, ImageBlock, Message


def shuffled_pictures(examples: Sequence[Example]) -> list[Example]:
    """Every example gets the pictures of another one, as many as it had."""
    rng = random.Random("shuffled pictures")
    pool = [image for example in examples for image in example.images]
    return [
        replace(example, images=tuple(rng.sample(pool, len(example.images))))
        for example in examples
    ]


def no_pictures(examples: Sequence[Example]) -> list[Example]:
    """Only the words are left."""

    def words(message: Message) -> Message:
        kept = tuple(block for block in message.content if not isinstance(block, ImageBlock))
        return Message(message.role, kept)

    return [replace(e, messages=tuple(words(m) for m in e.messages), images=()) for e in examples]
