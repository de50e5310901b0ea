"""Storybook: questions over drawn pictures whose truth is known, so that answers can be checked.

Caption metrics compare words with five or more references; the judges of
:mod:`polyptych.storybook.scoring` compare what an answer says with what the pictures show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Scorer, caption_scorer, item_scorer
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.schema import Example
from polyptych.storybook import scoring
from polyptych.storybook.generation import IMAGE_SIZE, make_examples, to_example
from polyptych.storybook.vocabulary import Split

CAPTIONS = caption_scorer("cider", "rouge_l", "bleu")

SCORERS: dict[str, tuple[Scorer, ...]] = {
    "group_captioning": (
        CAPTIONS,
        item_scorer("factor_accuracy[storybook]", scoring.factor_correct),
    ),
    "storytelling": (
        CAPTIONS,
        item_scorer("name_accuracy[storybook]", scoring.name_accuracy),
        item_scorer("name_f1[storybook]", scoring.name_f1),
        item_scorer("story_accuracy[storybook]", scoring.story_accuracy),
    ),
    "change_captioning": (
        CAPTIONS,
        item_scorer("change_accuracy[storybook]", scoring.change_correct),
    ),
    "description": (CAPTIONS,),
    "existence": (item_scorer("accuracy[storybook]", scoring.existence_correct),),
}
"""What judges each task's answers."""

SETTINGS = GenerationSettings(num_beams=3, max_new_tokens=32)
"""Decoding of answers of one sentence; their references have at most 17 words."""

LONG_SETTINGS = replace(SETTINGS, max_new_tokens=128)
"""Decoding of descriptions, which name every thing of a picture."""


def storybook_task(
    name: str,
    *,
    count: int,
    split: Split = "test",
    seed: int = 0,
    size: int = IMAGE_SIZE,
    settings: GenerationSettings | None = None,
    **options: Any,
) -> Task:
    """A Storybook task over examples that are drawn when it is loaded.

    Args:
        name: Key of :data:`SCORERS`.
        count: Number of examples.
        split: Whose compositions they show; ``test`` ones never occur in training.
        seed: Another seed draws another set.
        size: Width and height of the pictures in pixels.
        settings: Decoding; default: :data:`SETTINGS`, or the long ones for descriptions.
        **options: Passed to the task's ``make_example``, such as ``pictures=(4, 4)``.

    Raises:
        PolyptychError: For an unknown name.
    """
    if name not in SCORERS:
        raise PolyptychError(f"no Storybook task {name!r} to score; known: {', '.join(SCORERS)}")

    def load() -> Iterator[Example]:
        stories = make_examples(name, count=count, split=split, seed=seed, **options)
        return (to_example(story, size) for story in stories)

    usual = LONG_SETTINGS if name == "description" else SETTINGS
    return Task(f"storybook/{name}", load, SCORERS[name], settings or usual)
