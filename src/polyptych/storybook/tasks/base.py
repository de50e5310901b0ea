"""What every Storybook task makes: a conversation over scenes that are not drawn yet."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyptych.schema import Block, ImageBlock, Message, TextBlock
from polyptych.storybook.scenes import Scene, scene_to_json
from polyptych.storybook.vocabulary import Split


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


class MakeExample(Protocol):
    """The one function of a task file."""

    def __call__(self, rng: random.Random, split: Split, **options: Any) -> StoryExample:
        """Draw one example from ``rng``; training splits never show held-out compositions."""
        ...


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
