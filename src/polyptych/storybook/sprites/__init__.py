"""How every kind of object looks: one small drawing function each, ``draw(pen, tint)``."""

from __future__ import annotations

from collections.abc import Callable

from polyptych.storybook.pen import Pen, Tint
from polyptych.storybook.sprites import indoors, nature, outdoors, play
from polyptych.storybook.vocabulary import KINDS

_DRAWERS = {
    "animal": nature,
    "fruit": nature,
    "plant": nature,
    "vehicle": outdoors,
    "building": outdoors,
    "piece of furniture": indoors,
    "dish": indoors,
    "garment": indoors,
    "tool": indoors,
    "toy": play,
    "instrument": play,
}

SPRITES: dict[str, Callable[[Pen, Tint], None]] = {
    name: getattr(_DRAWERS[kind.category], name) for name, kind in KINDS.items()
}
"""Kind → the function that draws it; the module follows from its category."""
