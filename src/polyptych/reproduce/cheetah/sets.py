"""Sets of the Cheetah study: captions, changes and detail questions, drawn; and edited pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyptych.data.records import write_records
from polyptych.methods.cheetah.discriminative.detection import Selection
from polyptych.methods.cheetah.discriminative.running import RECORDS_FILE
from polyptych.methods.cheetah.discriminative.sources import StorybookPictures
from polyptych.methods.cheetah.discriminative_data import (
    DiscriminativeSettings,
    build_discriminative_data,
    storybook_steps,
)
from polyptych.reproduce.cheetah.detail_questions import make_detail_question
from polyptych.reproduce.cheetah.salience import make_caption, named_things
from polyptych.schema import Example
from polyptych.storybook.generation import to_example
from polyptych.storybook.graph import ThingSpec, find_things, scene_from_json
from polyptych.storybook.tasks import change_captioning
from polyptych.storybook.tasks.base import MakeExample, StoryExample
from polyptych.storybook.vocabulary import Split

MAKERS: dict[str, MakeExample] = {
    "captions": make_caption,
    "change_captioning": change_captioning.make_example,
    "detail_questions": make_detail_question,
}


def draw_set(
    path: Path, name: str, split: Split, *, count: int, seed: int, things: tuple[int, int]
) -> None:
    """Write one set of :data:`MAKERS`, each example by its index alone.

    Pictures of every split are new, but they all show Storybook's training compositions: a language
    model of a few layers that has never met a red cup does not say "red" of a cup, however well it
    sees it, and that would hide what VPG-C is asked for.
    """

    def stories() -> Iterator[StoryExample]:
        for index in range(count):
            rng = random.Random(f"{name}/{split}/{seed}/{index}")
            story = MAKERS[name](rng, "train", things=things)
            yield replace(story, id=f"{name}-{split}-{seed}-{index:06d}")

    write_records(path, (to_example(story) for story in stories()))


def edit_pictures(
    out: Path,
    model: Any,
    processor: Any,
    selection: Selection,
    *,
    count: int,
    seed: int,
    things: tuple[int, int],
) -> Path:
    """Discriminative data of a base: what its Q-Former overlooks, or objects by chance, edited.

    The edited picture is a second view, as it is in ``change_captioning``.
    """
    build_discriminative_data(
        StorybookPictures(count, "train", seed, things=things),
        out,
        storybook_steps(model, processor, second_view=True),
        settings=DiscriminativeSettings(selection=selection, seed=seed),
        progress=False,
    )
    return out / RECORDS_FILE


def asks_for_named(example: Example) -> bool:
    """Whether a caption of the picture names what the example is about."""
    truth = example.metadata
    if "named" in truth:
        return bool(truth["named"])
    return change_is_named(truth)


def change_is_named(truth: Mapping[str, Any]) -> bool:
    """Whether a caption names the changed thing: of the first picture, or the second if added."""
    change = truth["change"]
    added = change["type"] == "add"
    scene = scene_from_json(truth["scenes"][1 if added else 0])
    prefix = "new_" if added else ""
    spec = ThingSpec(change[f"{prefix}kind"], change[f"{prefix}color"])
    named = named_things(scene)
    return any(index in named for index in find_things(scene, spec))
