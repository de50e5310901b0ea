"""Step 2 over drawn pictures: edits of the scene graph, whose truth is known."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import (
    DroppedError,
    Edit,
    EditKind,
    Mask,
    Region,
    SourcePicture,
)
from polyptych.storybook.graph import (
    Relation,
    Scene,
    Thing,
    ThingSpec,
    box_of,
    change_thing,
    colored_kinds_in,
    find_things,
    holds,
    insert_thing,
    remove_thing,
)
from polyptych.storybook.layout import MARGIN, extent
from polyptych.storybook.rendering import BACKGROUND, draw_with_masks, silhouette_area
from polyptych.storybook.scenes import second_view
from polyptych.storybook.tasks.composition import may_stand, pairs_of
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import COLORS, KINDS, PLACES, RELATIONS, SIZES, Split

_LEAST_VISIBLE = 0.5  # of each thing's silhouette, after the edit
_MOST_COVERED = 0.1  # of an added thing's pixels, over other things
_PLACEMENTS = 200  # how often an added thing is drawn anew until it fits the window
_BELOW_HORIZON = 0.06  # where the ground begins that things stand on


@dataclass(frozen=True, slots=True)
class _Option:
    """An edit that may turn out to hide something."""

    after: Scene
    description: str
    shows: str
    change: Mapping[str, str]


@dataclass(frozen=True)
class StorybookEdits:
    """Edits of the scene graph, with compositions of one split only.

    Args:
        split: Owner of the pairs of kind and color, and of kind and place, that an edit makes.
        name: For the records.
    """

    split: Split = "train"
    name: str = "storybook edits"

    def __call__(
        self, picture: SourcePicture, region: Region, kind: EditKind, rng: random.Random
    ) -> Edit:
        """The first edit, in random order, that hides nothing.

        The edit's region is where the thing is seen before or after.
        """
        scene = picture.scene
        if scene is None:
            raise PolyptychError(f"picture {picture.id!r} is not drawn: it has no scene to edit")
        before = draw_with_masks(scene, len(region.mask))[1]
        for option in self._options(scene, region, kind, rng):
            changed = _changed_pixels(scene, option.after, before, region)
            if changed is not None:
                where = Region(changed, region.label, region.index)
                return Edit(
                    kind, option.description, option.shows, where, option.after, option.change
                )
        raise DroppedError("no fitting edit", f"{kind} of the {region.label}")

    def _options(
        self, scene: Scene, region: Region, kind: EditKind, rng: random.Random
    ) -> Iterator[_Option]:
        if kind == "add":
            return self._additions(scene, region, rng)
        assert region.index is not None  # only background has none
        thing = scene.things[region.index]
        if len(find_things(scene, ThingSpec(thing.kind, thing.color))) > 1:
            raise DroppedError("ambiguous object", f"more than one {region.label}")
        if kind == "delete":
            change = {"type": "delete", "kind": thing.kind, "color": thing.color}
            gone = remove_thing(scene, region.index)
            return iter([_Option(gone, f"remove the {region.label}", "background", change)])
        if kind == "swap":
            return self._swaps(scene, region.index, thing, rng)
        ways = [self._recolorings, self._resizings]
        rng.shuffle(ways)
        return (option for way in ways for option in way(scene, region.index, thing, rng))

    def _recolorings(
        self, scene: Scene, index: int, thing: Thing, rng: random.Random
    ) -> Iterator[_Option]:
        for color in rng.sample(list(COLORS), len(COLORS)):
            if self._may_appear(scene, thing.kind, color):
                yield _Option(
                    change_thing(scene, index, color=color),
                    f"change the color of the {thing.color} {thing.kind} to {color}",
                    with_article(f"{color} {thing.kind}"),
                    {"type": "color", **_old(thing), "new_color": color},
                )

    def _resizings(
        self, scene: Scene, index: int, thing: Thing, rng: random.Random
    ) -> Iterator[_Option]:
        for size in rng.sample(list(SIZES), len(SIZES)):
            if size != thing.size:
                larger = "larger" if SIZES[size] > SIZES[thing.size] else "smaller"
                yield _Option(
                    change_thing(scene, index, size=size),
                    f"make the {thing.color} {thing.kind} {larger}",
                    with_article(f"{size} {thing.color} {thing.kind}"),
                    {"type": "size", **_old(thing), "size": thing.size, "new_size": size},
                )

    def _swaps(
        self, scene: Scene, index: int, thing: Thing, rng: random.Random
    ) -> Iterator[_Option]:
        """Another kind in its place: what flies is replaced by what flies."""
        pairs = pairs_of(self.split)
        for kind, color in rng.sample(pairs, len(pairs)):
            fits = kind != thing.kind and KINDS[kind].flying == KINDS[thing.kind].flying
            if fits and self._may_appear(scene, kind, color):
                new = with_article(f"{color} {kind}")
                yield _Option(
                    change_thing(scene, index, kind=kind, color=color),
                    f"replace the {thing.color} {thing.kind} by {new}",
                    new,
                    {"type": "swap", **_old(thing), "new_kind": kind, "new_color": color},
                )

    def _additions(self, scene: Scene, window: Region, rng: random.Random) -> Iterator[_Option]:
        """A small or medium thing whose middle lies in the window, and in no relation."""
        for _ in range(_PLACEMENTS):
            kind, color = rng.choice(pairs_of(self.split))
            size = rng.choice(("small", "medium"))
            middle = _place_in(window, kind, size, scene.place, rng)
            if middle is None or not self._may_appear(scene, kind, color):
                continue
            plain = Scene(scene.place, (Thing(kind, color, size, *middle),))
            (new,) = second_view(rng, plain).things  # turned and shaded like all others
            index = sum(box_of(old).bottom <= box_of(new).bottom for old in scene.things)
            after = insert_thing(scene, index, new)
            if not _in_relation(after, index):
                words = with_article(f"{color} {kind}")
                change = {"type": "add", "new_kind": kind, "new_color": color}
                yield _Option(after, f"add {words}", words, change)

    def _may_appear(self, scene: Scene, kind: str, color: str) -> bool:
        return (
            (kind, color) in pairs_of(self.split)
            and (kind, color) not in colored_kinds_in(scene)
            and may_stand(self.split, kind, scene.place)
        )


def _old(thing: Thing) -> dict[str, str]:
    return {"kind": thing.kind, "color": thing.color}


def _place_in(
    window: Region, kind: str, size: str, place: str, rng: random.Random
) -> tuple[float, float] | None:
    """A middle in the window where the kind flies or stands on the ground, if there is one."""
    side = len(window.mask)
    left, top, right, bottom = (edge / side for edge in window.box)
    width, height = extent(kind, size)
    horizon = PLACES[place].horizon
    if KINDS[kind].flying:
        highest, lowest = MARGIN + height / 2, horizon - height / 2
    else:
        highest, lowest = horizon + _BELOW_HORIZON - height / 2, 1 - 2 * MARGIN - height / 2
    x = max(left, MARGIN + width / 2), min(right, 1 - MARGIN - width / 2)
    y = max(top, MARGIN + height / 2, highest), min(bottom, lowest)
    if x[0] > x[1] or y[0] > y[1]:
        return None
    return round(rng.uniform(*x), 4), round(rng.uniform(*y), 4)


def _in_relation(scene: Scene, index: int) -> bool:
    """Whether the picture shows a relation of this thing that nobody asked for."""
    others = [other for other in range(len(scene.things)) if other != index]
    return any(
        holds(scene, Relation(*pair))
        for other in others
        for predicate in RELATIONS
        for pair in ((index, predicate, other), (other, predicate, index))
    )


def _new_index(scene: Scene, after: Scene) -> int:
    """Which thing was added; all others stay as they are."""
    (index,) = (i for i, thing in enumerate(after.things) if thing not in scene.things)
    return index


def _changed_pixels(
    scene: Scene, after: Scene, before: NDArray[Any], region: Region
) -> Mask | None:
    """Pixels of the thing before and after the edit; None if the edit hides something."""
    owners = draw_with_masks(after, len(before))[1]
    for index, thing in enumerate(after.things):
        shown = np.count_nonzero(owners == index)
        if shown < _LEAST_VISIBLE * silhouette_area(thing, len(before)):
            return None
    if len(after.things) < len(scene.things):
        return region.mask
    if len(after.things) == len(scene.things):
        return region.mask | (owners == region.index)
    added = owners == _new_index(scene, after)
    covered = np.count_nonzero(added & (before != BACKGROUND))
    return added if covered <= _MOST_COVERED * np.count_nonzero(added) else None
