"""Pictures of Storybook: deterministic, true to their scene, varied, sharp at any size."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from polyptych.storybook.places import VARIANTS
from polyptych.storybook.rendering import BACKGROUND, draw, draw_with_masks, silhouette_area
from polyptych.storybook.scenes import Scene, Thing, ThingSpec, View, sample_scene
from polyptych.storybook.vocabulary import ACTS, CHARACTERS, COLORS, KINDS, PERSON, PLACES, SIZES


def pixels(scene: Scene, size: int = 96) -> np.ndarray:
    return np.asarray(draw(scene, size)).astype(int)


def alone(thing: Thing) -> Scene:
    return Scene("beach", (thing,))


def person_thing(index: int, act: str) -> Thing:
    person = CHARACTERS[index]
    return Thing(PERSON, person.clothes_color, "large", 0.5, 0.6, View(), person, act)


def difference(one: Scene, two: Scene) -> int:
    """Number of pixels that clearly differ."""
    return int((np.abs(pixels(one) - pixels(two)).max(axis=-1) > 24).sum())


def test_pictures_are_rgb_of_the_asked_size_and_deterministic() -> None:
    scene = sample_scene(random.Random(1), split="train")
    for size in (64, 96, 224):
        picture = draw(scene, size)
        assert picture.mode == "RGB"
        assert picture.size == (size, size)
        assert picture.tobytes() == draw(scene, size).tobytes()


def test_drawing_does_not_touch_kept_backgrounds() -> None:
    scene = sample_scene(random.Random(1), split="train")
    empty = replace(scene, things=(), relations=())
    before = draw(empty).tobytes()
    draw(scene)
    assert draw(empty).tobytes() == before


@pytest.mark.parametrize("size", [96, 160])
def test_masks_agree_with_the_scene(size: int) -> None:
    """All that is required is at least 60 % visible; the masks are where the picture changes."""
    rng = random.Random(4)
    for _ in range(60):
        include = [ThingSpec(), ThingSpec(), ThingSpec(act="waving")]
        relation = (0, rng.choice(("under", "on", "above", "beside")), 1)
        scene = sample_scene(rng, split="train", include=include, relation=relation)
        picture, owners = draw_with_masks(scene, size)
        assert picture.tobytes() == draw(scene, size).tobytes()
        assert owners.dtype == np.int16
        assert owners.shape == (size, size)
        assert set(np.unique(owners)) == {BACKGROUND, *range(len(scene.things))}
        for index, thing in enumerate(scene.things):
            visible = int((owners == index).sum()) / silhouette_area(thing, size)
            assert 0.6 <= visible <= 1.0, (index, thing)


def test_masks_lie_where_things_are_drawn() -> None:
    scene = sample_scene(random.Random(2), split="train", count=5)
    _, owners = draw_with_masks(scene)
    empty = replace(scene, things=(), relations=())
    changed = np.abs(pixels(scene) - pixels(empty)).max(axis=-1) > 0
    assert changed[owners != BACKGROUND].mean() > 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fills_its_box_and_shows_its_color(kind: str) -> None:
    shapes = []
    for color, rgb in COLORS.items():
        thing = Thing(kind, color, "large", 0.5, 0.5)
        picture, owners = draw_with_masks(alone(thing), 192)
        rows, columns = np.nonzero(owners == 0)
        unit = SIZES["large"] * 192
        seen = np.ptp(columns) + 1, np.ptp(rows) + 1
        box = KINDS[kind].width * unit, KINDS[kind].height * unit
        assert all(0.78 * full <= got <= full + 2 for got, full in zip(seen, box, strict=True))
        near = np.abs(np.asarray(picture).astype(int) - rgb).max(axis=-1) < 32
        assert (near & (owners == 0)).sum() > 0.1 * (owners == 0).sum(), color
        shapes.append(owners == 0)
    assert all(np.array_equal(shapes[0], shape) for shape in shapes[1:])


def test_kinds_have_different_silhouettes() -> None:
    """No two kinds overlap almost wholly when drawn on the same spot."""
    masks = {}
    for kind in KINDS:
        _, owners = draw_with_masks(alone(Thing(kind, "red", "large", 0.5, 0.5)))
        masks[kind] = owners == 0
    for one, two in itertools.combinations(KINDS, 2):
        common = (masks[one] & masks[two]).sum() / (masks[one] | masks[two]).sum()
        assert common < 0.93, (one, two)


@pytest.mark.parametrize(
    "view",
    [
        View(mirrored=True),
        View(scale=0.94),
        View(angle=9.0),
        View(shade=-1.0),
        View(shade=1.0),
    ],
)
def test_two_views_of_one_thing_differ(view: View) -> None:
    thing = Thing("teapot", "blue", "large", 0.5, 0.6)
    one, two = alone(thing), alone(replace(thing, view=view))
    assert np.abs(pixels(one) - pixels(two)).sum() > 2000


def test_shading_changes_brightness_not_the_nearest_color() -> None:
    hues = {name: np.asarray(rgb) / max(rgb) for name, rgb in COLORS.items()}
    for color in COLORS:
        for shade in (-1.0, 1.0):
            thing = Thing("apple", color, "large", 0.5, 0.5, View(shade=shade))
            seen = pixels(alone(thing), 192)[104:112, 92:98].reshape(-1, 3).mean(axis=0)
            hue = seen / seen.max()
            assert min(hues, key=lambda name: np.abs(hue - hues[name]).sum()) == color


def test_places_and_their_variants_differ() -> None:
    empty = {place: Scene(place, ()) for place in PLACES}
    for one, two in itertools.combinations(PLACES, 2):
        assert difference(empty[one], empty[two]) > 96 * 96 / 3
    for place in PLACES:
        looks = {draw(Scene(place, (), seed=seed)).tobytes() for seed in range(2 * VARIANTS)}
        assert len(looks) >= VARIANTS


def test_acts_and_characters_are_told_apart() -> None:
    for one, two in itertools.combinations(ACTS, 2):
        assert difference(alone(person_thing(0, one)), alone(person_thing(0, two))) > 40
    for one, two in itertools.combinations(range(24), 2):
        waving = (alone(person_thing(index, "waving")) for index in (one, two))
        assert difference(*waving) > 25


def test_larger_pictures_show_the_same_scene_in_more_detail() -> None:
    scene = sample_scene(random.Random(8), split="train", count=6)
    small, large = draw(scene, 96), draw(scene, 384)
    shrunk = np.asarray(large.resize((96, 96), Image.Resampling.BOX)).astype(int)
    assert np.abs(shrunk - np.asarray(small)).mean() < 12
    sharp, blurred = (
        (np.abs(np.diff(np.asarray(image).astype(int), axis=1)).max(axis=-1) > 60).mean()
        for image in (large, small.resize((384, 384), Image.Resampling.BICUBIC))
    )
    assert sharp > 2 * blurred
