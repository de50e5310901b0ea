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
    Scene,
    Thing,
    ThingSpec,
    change_thing,
    colored_kinds_in,
    find_things,
    remove_thing,
)
from polyptych.storybook.rendering import BACKGROUND, draw_with_masks, silhouette_area
from polyptych.storybook.scenes import add_thing
from polyptych.storybook.tasks.composition import may_stand, pairs_of
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import COLORS, KINDS, SIZES, Split

_LEAST_VISIBLE = 0.5  # of each thing's silhouette, after the edit
_MOST_COVERED = 0.1  # of an added thing's pixels, over other things
_PLACEMENTS = 300  # how often an added thing is placed anew until it lies in the window


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
            return self._additions(scene, region.mask, rng)
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

    def _additions(self, scene: Scene, window: Mask, rng: random.Random) -> Iterator[_Option]:
        """A small or medium thing whose middle lies in the window."""
        side = len(window)
        for _ in range(_PLACEMENTS):
            kind, color = rng.choice(pairs_of(self.split))
            if not self._may_appear(scene, kind, color):
                continue
            spec = ThingSpec(kind, color, rng.choice(("small", "medium")))
            try:
                after = add_thing(rng, scene, spec, split=self.split)
            except PolyptychError:  # no room for this one
                continue
            new = after.things[_new_index(scene, after)]
            if window[min(int(new.y * side), side - 1), min(int(new.x * side), side - 1)]:
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
