"""From scene graph to picture: ``draw(scene, size)`` paints things over a place, back to front.

Sprites and backgrounds are drawn once at a resolution above the shown one and kept; a view
(mirrored, turned, scaled, shaded) is made from the kept sprite, so a picture costs little. Nothing
here is random: the same scene always gives the same pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from polyptych.storybook.layout import extent
from polyptych.storybook.pen import Pen, Tint
from polyptych.storybook.people import UNITS, draw_person
from polyptych.storybook.places import VARIANTS, draw_place
from polyptych.storybook.scenes import Scene, Thing
from polyptych.storybook.sprites import SPRITES
from polyptych.storybook.vocabulary import COLORS, KINDS, PERSON, SIZES, Person

BACKGROUND = -1
"""Value of the mask where no thing is visible."""

_SHADE = 0.1  # strongest change of brightness by a view
_SHADOW = 0.32  # opacity under a thing
_SHADOW_COLOR = (58, 48, 72)
_HEADROOM = 1.5  # kept sprites have at least this many pixels for each one shown


def draw(scene: Scene, size: int = 96) -> Image.Image:
    """Paints a scene.

    Args:
        scene: What to paint.
        size: Width and height in pixels; sharp at any size.

    Returns:
        An RGB picture.
    """
    return _paint(scene, size, None)


def draw_with_masks(scene: Scene, size: int = 96) -> tuple[Image.Image, np.ndarray]:
    """Paints a scene and says which thing is seen at each pixel.

    Returns:
        The picture of :func:`draw`, and an int16 array (size, size) with the index into
        ``scene.things`` of the visible thing, :data:`BACKGROUND` where there is none. Shadows
        belong to the background.
    """
    owners = Image.new("I", (size, size), BACKGROUND)
    picture = _paint(scene, size, owners)
    return picture, np.asarray(owners).astype(np.int16)


def _paint(scene: Scene, size: int, owners: Image.Image | None) -> Image.Image:
    """Pastes all things; ``owners``, if given, receives the index of the thing at each pixel."""
    picture = _background(scene.place, scene.seed, size).copy()
    floating = _floating(scene)
    for index, thing in enumerate(scene.things):
        sprite = _view(thing, size)
        corner = _corner(thing, sprite, size)
        if index not in floating:
            _paste_shadow(picture, thing, size)
        picture.paste(sprite, corner, sprite)
        if owners is not None:
            owners.paste(index, corner, _shape(sprite))
    return picture


def silhouette_area(thing: Thing, size: int = 96) -> int:
    """Pixels that a thing would show if nothing covered it."""
    return int(np.count_nonzero(np.asarray(_shape(_view(thing, size)))))


def _shape(sprite: Image.Image) -> Image.Image:
    """Where a sprite is more opaque than not."""
    return sprite.getchannel("A").point(lambda alpha: 255 * (alpha >= 128))


def _floating(scene: Scene) -> set[int]:
    """Things that throw no shadow on the ground: they fly, or are held or carried."""
    carried = {
        item.subject if item.predicate == "on" else item.object
        for item in scene.relations
        if item.predicate in ("on", "holding")
    }
    flying = {
        index
        for index, thing in enumerate(scene.things)
        if thing.kind != PERSON and KINDS[thing.kind].flying
    }
    return carried | flying


def _corner(thing: Thing, sprite: Image.Image, size: int) -> tuple[int, int]:
    """Upper left pixel of a sprite whose middle is the thing's middle."""
    return round(thing.x * size - sprite.width / 2), round(thing.y * size - sprite.height / 2)


# --- Sprites -------------------------------------------------------------------------------------


def _view(thing: Thing, size: int) -> Image.Image:
    """The thing's sprite as it is seen this time."""
    width, height = extent(thing.kind, thing.size, thing.act, thing.view.scale)
    pixels = width * size, height * size
    if thing.kind == PERSON:
        assert thing.person is not None and thing.act is not None
        wanted = size * thing.view.scale / UNITS
        sprite = _person_sprite(thing.person, thing.act, _resolution(wanted))
    else:
        wanted = size * SIZES[thing.size] * thing.view.scale / 100
        sprite = _thing_sprite(thing.kind, thing.color, _resolution(wanted))
    if thing.view.mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shrink = pixels[0] / sprite.width, pixels[1] / sprite.height
    if thing.view.angle:
        sprite = sprite.rotate(thing.view.angle, Image.Resampling.BILINEAR, expand=True)
    shown = (
        max(1, round(sprite.width * shrink[0])),
        max(1, round(sprite.height * shrink[1])),
    )
    sprite = sprite.resize(shown, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return sprite.point(_shading(thing.view.shade))


def _resolution(wanted: float) -> float:
    """Pixels per unit at which a sprite is kept: the next power of two with headroom."""
    return 2.0 ** math.ceil(math.log2(wanted * _HEADROOM))


@lru_cache(maxsize=4096)
def _thing_sprite(kind: str, color: str, resolution: float) -> Image.Image:
    entry = KINDS[kind]
    pen = Pen(100 * entry.width, 100 * entry.height, resolution)
    SPRITES[kind](pen, Tint(COLORS[color]))
    return pen.finish()


@lru_cache(maxsize=4096)
def _person_sprite(person: Person, act: str, resolution: float) -> Image.Image:
    return draw_person(person, act, resolution)


@lru_cache(maxsize=512)
def _shading(shade: float) -> list[int]:
    """Lookup table for the bands R, G, B, A of a darker or lighter sprite."""
    factor = 1 + _SHADE * shade
    colors = [min(255, round(value * factor)) for value in range(256)]
    return colors * 3 + list(range(256))


# --- What lies behind ----------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _background_variant(place: str, variant: int, mirrored: bool, size: int) -> Image.Image:
    picture = draw_place(place, variant, size)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


def _background(place: str, seed: int, size: int) -> Image.Image:
    """One of the place's looks, chosen by the scene's seed."""
    return _background_variant(place, seed % VARIANTS, bool(seed // VARIANTS % 2), size)


def _paste_shadow(picture: Image.Image, thing: Thing, size: int) -> None:
    width, height = extent(thing.kind, thing.size, thing.act, thing.view.scale)
    lift = 0.05 if thing.act == "jumping" else 0.0
    soft = _shadow(
        max(3, round(width * size * (0.7 if lift else 0.95))), max(2, round(size * 0.045))
    )
    x = round(thing.x * size - soft.width / 2)
    y = round((thing.y + height / 2 + lift) * size - soft.height * 0.6)
    picture.paste(_SHADOW_COLOR, (x, y), soft)


@lru_cache(maxsize=512)
def _shadow(width: int, height: int) -> Image.Image:
    """A soft ellipse as an opacity mask."""
    x = np.linspace(-1, 1, width)[None, :]
    y = np.linspace(-1, 1, height)[:, None]
    distance = np.sqrt(x**2 + y**2)
    opacity = 255 * _SHADOW * np.clip((1.05 - distance) / 0.45, 0, 1)
    return Image.fromarray(opacity.astype(np.uint8), "L")
