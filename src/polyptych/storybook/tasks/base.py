"""What every Storybook task makes: a conversation over scenes that are not drawn yet."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from polyptych.errors import PolyptychError
from polyptych.schema import Block, ImageBlock, Message, TextBlock
from polyptych.storybook.scenes import Scene, scene_to_json
from polyptych.storybook.vocabulary import Split

_T = TypeVar("_T")

MOST_DRAWS = 200
"""How often an example is drawn anew before its options count as impossible."""


@dataclass(frozen=True, slots=True)
class StoryExample:
    """An example before drawing: ``schema.Example`` with scenes where the images will be.

    ``references`` are all accepted answers, the target (the assistant's message) among them.
    ``metadata`` holds the truth that :mod:`polyptych.storybook.scoring` reads, and the scenes as
    JSON, so that the truth can be computed again from the record alone.
    """

    messages: tuple[Message, ...]
    scenes: tuple[Scene, ...]
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    @property
    def target(self) -> str:
        """The text of the assistant's answer."""
        return self.messages[-1].text


MakeExample = Callable[..., StoryExample]
"""A task's one function, ``make_example(rng, split, **options)``; the options are its own."""


def build_example(
    *,
    task: str,
    split: Split,
    prompt: Sequence[str | Scene],
    references: Sequence[str],
    rng: random.Random,
    truth: Mapping[str, Any],
) -> StoryExample:
    """Put a task's parts together.

    Args:
        task: Name of the task, kept in the metadata.
        split: Split the example was drawn for, kept in the metadata.
        prompt: The user's message in reading order: text, and a scene where its image stands.
        references: All accepted answers; one of them, by chance, becomes the target.
        rng: Source of that chance.
        truth: What scoring needs to know; joined with task, split and scenes as the metadata.
    """
    scenes = tuple(part for part in prompt if isinstance(part, Scene))
    blocks: list[Block] = [
        TextBlock(part) if isinstance(part, str) else ImageBlock() for part in prompt
    ]
    target = rng.choice(list(references))
    return StoryExample(
        messages=(
            Message("user", tuple(blocks)),
            Message("assistant", (TextBlock(target),)),
        ),
        scenes=scenes,
        references=tuple(references),
        metadata={
            "task": task,
            "split": split,
            **truth,
            "scenes": [scene_to_json(scene) for scene in scenes],
        },
    )


def numbered(word: str, scenes: Sequence[Scene]) -> list[str | Scene]:
    """Prompt parts "Picture 1: ", scene, " Picture 2: ", scene, ..."""
    parts: list[str | Scene] = []
    for number, scene in enumerate(scenes, start=1):
        parts += [f"{' ' if number > 1 else ''}{word} {number}: ", scene]
    return parts


def first_accepted(draw: Callable[[], _T | None], what: str) -> _T:
    """Calls ``draw`` until it gives a value; a draw may fail for want of room in a picture.

    Raises:
        PolyptychError: After :data:`MOST_DRAWS` failures: the options leave no way to draw it.
    """
    for _ in range(MOST_DRAWS):
        with suppress(PolyptychError):
            value = draw()
            if value is not None:
                return value
    raise PolyptychError(f"no {what} found in {MOST_DRAWS} draws; are the options too narrow?")
