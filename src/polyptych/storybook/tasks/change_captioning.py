"""Change captioning: two pictures, one thing changed between them; say the change.

The second picture is seen anew (:func:`~polyptych.storybook.scenes.second_view`): all things are
turned, shaded and mirrored a little, so a difference of pixels is no difference of content.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal, get_args

from polyptych.storybook.scenes import (
    Scene,
    ThingSpec,
    add_thing,
    box_of,
    change_thing,
    colored_kinds_in,
    find_things,
    remove_thing,
    second_view,
)
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted, numbered
from polyptych.storybook.tasks.composition import draw_scene, may_stand, pairs_of
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import KINDS, SIZES, Split

TASK = "change_captioning"

ChangeType = Literal["color", "size", "swap", "delete", "add"]
CHANGE_TYPES: tuple[ChangeType, ...] = get_args(ChangeType)

QUESTIONS = (
    "What has changed?",
    "What is different in the second picture?",
    "Find the difference between the two pictures.",
    "Say what changed from the first picture to the second.",
    "Which change was made?",
)

CAPTIONS: dict[ChangeType, tuple[str, ...]] = {
    "color": (
        "the {old} is {new_color} now.",
        "the {old} has turned {new_color}.",
        "the {kind} changed its color from {color} to {new_color}.",
        "the {old} became {new_color}.",
        "in the second picture the {old} is {new_color}.",
    ),
    "size": (
        "the {old} is {comparative} now.",
        "the {old} has become {comparative}.",
        "the {old} got {comparative}.",
        "the size of the {old} changed, it is {comparative}.",
        "in the second picture the {old} is {comparative}.",
    ),
    "swap": (
        "the {old} was replaced by {a_new}.",
        "{a_new} took the place of the {old}.",
        "instead of the {old} there is {a_new}.",
        "the {old} became {a_new}.",
        "in the second picture {a_new} replaces the {old}.",
    ),
    "delete": (
        "the {old} is gone.",
        "the {old} has disappeared.",
        "the {old} was taken away.",
        "the {old} is missing in the second picture.",
        "somebody removed the {old}.",
    ),
    "add": (
        "{a_new} has appeared.",
        "there is a new {new}.",
        "{a_new} was added.",
        "the second picture also shows {a_new}.",
        "only the second picture has {a_new}.",
    ),
}

_SMALL_FIRST = {"small": 0.6, "medium": 0.3, "large": 0.1}
_LARGEST_COVER = 0.35


def captions_for(change: Mapping[str, str]) -> tuple[str, ...]:
    """All accepted captions of a change.

    Args:
        change: ``type`` and, as the type needs them, ``kind``, ``color``, ``size`` before and
            ``new_kind``, ``new_color``, ``new_size`` after the change.
    """
    words = dict(change)
    if "kind" in change:
        words["old"] = f"{change['color']} {change['kind']}"
    if "new_kind" in change:
        words["new"] = f"{change['new_color']} {change['new_kind']}"
        words["a_new"] = with_article(words["new"])
    if "new_size" in change:
        grown = SIZES[change["new_size"]] > SIZES[change["size"]]
        words["comparative"] = "larger" if grown else "smaller"
    return tuple(caption.format(**words) for caption in CAPTIONS[change["type"]])  # type: ignore[index]


def make_example(
    rng: random.Random,
    split: Split,
    *,
    things: tuple[int, int] = (3, 8),
    change_types: tuple[ChangeType, ...] = CHANGE_TYPES,
) -> StoryExample:
    """Draws a picture and a second view of it with one change.

    Args:
        rng: Source of all chance.
        split: Owns the pair of kind and color that the change is about (the new one where there
            is a new one).
        things: Least and greatest number of things in the first picture.
        change_types: Types to choose from, each as likely as the others.
    """
    change_type = rng.choice(change_types)

    def draw() -> tuple[Scene, Scene, dict[str, str]] | None:
        drawn = _DRAW[change_type](rng, split, things)
        if drawn is None or not _all_visible(drawn[1]):
            return None
        before, after, change = drawn
        return before, second_view(rng, after), {"type": change_type, **change}

    before, after, change = first_accepted(draw, f"change of type {change_type}")
    return build_example(
        task=TASK,
        split=split,
        prompt=[*numbered("Picture", (before, after)), f" {rng.choice(QUESTIONS)}"],
        references=captions_for(change),
        rng=rng,
        truth={"change": change},
    )


_Drawn = tuple[Scene, Scene, dict[str, str]] | None


def _change_color(rng: random.Random, split: Split, things: tuple[int, int]) -> _Drawn:
    kind, new_color = rng.choice(pairs_of(split))
    color = rng.choice([c for k, c in pairs_of("train") if k == kind])
    before, index = _scene_with(rng, split, things, kind, color)
    if color == new_color or (kind, new_color) in colored_kinds_in(before):
        return None
    change = {"kind": kind, "color": color, "new_color": new_color}
    return before, change_thing(before, index, color=new_color), change


def _change_size(rng: random.Random, split: Split, things: tuple[int, int]) -> _Drawn:
    kind, color = rng.choice(pairs_of(split))
    before, index = _scene_with(rng, split, things, kind, color)
    size = before.things[index].size
    new_size = rng.choice([word for word in SIZES if word != size])
    change = {"kind": kind, "color": color, "size": size, "new_size": new_size}
    return before, change_thing(before, index, size=new_size), change


def _swap(rng: random.Random, split: Split, things: tuple[int, int]) -> _Drawn:
    new_kind, new_color = rng.choice(pairs_of(split))
    kind, color = rng.choice(pairs_of("train"))
    if kind == new_kind or KINDS[kind].flying != KINDS[new_kind].flying:
        return None
    before, index = _scene_with(rng, split, things, kind, color)
    if (new_kind, new_color) in colored_kinds_in(before):
        return None
    if not may_stand(split, new_kind, before.place):
        return None
    change = {"kind": kind, "color": color, "new_kind": new_kind, "new_color": new_color}
    return before, change_thing(before, index, kind=new_kind, color=new_color), change


def _delete(rng: random.Random, split: Split, things: tuple[int, int]) -> _Drawn:
    kind, color = rng.choice(pairs_of(split))
    before, index = _scene_with(rng, split, things, kind, color)
    return before, remove_thing(before, index), {"kind": kind, "color": color}


def _add(rng: random.Random, split: Split, things: tuple[int, int]) -> _Drawn:
    new_kind, new_color = rng.choice(pairs_of(split))
    before = draw_scene(rng, split, (), count=things)
    if (new_kind, new_color) in colored_kinds_in(before):
        return None
    if not may_stand(split, new_kind, before.place):
        return None
    spec = ThingSpec(new_kind, new_color, size=_draw_size(rng))
    after = add_thing(rng, before, spec, split=split)
    return before, after, {"new_kind": new_kind, "new_color": new_color}


_DRAW = {
    "color": _change_color,
    "size": _change_size,
    "swap": _swap,
    "delete": _delete,
    "add": _add,
}


def _scene_with(
    rng: random.Random, split: Split, things: tuple[int, int], kind: str, color: str
) -> tuple[Scene, int]:
    """A picture with the thing that will change, and its index."""
    scene = draw_scene(rng, split, [ThingSpec(kind, color, _draw_size(rng))], count=things)
    (index,) = find_things(scene, ThingSpec(kind, color))
    return scene, index


def _draw_size(rng: random.Random) -> str:
    return rng.choices(tuple(_SMALL_FIRST), tuple(_SMALL_FIRST.values()))[0]


def _all_visible(scene: Scene) -> bool:
    """Whether no box is covered much by those in front: a change of size may move the borders."""
    boxes = [box_of(thing) for thing in scene.things]
    return all(
        sum(back.overlap(front) for front in boxes[index + 1 :])
        <= _LARGEST_COVER * back.width * back.height
        for index, back in enumerate(boxes)
    )
