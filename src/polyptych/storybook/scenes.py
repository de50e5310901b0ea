"""Scene graphs of Storybook: what stands in a picture, before a line is drawn.

A :class:`Scene` is plain data: it can be sampled, edited, compared, stored as JSON and drawn
(:mod:`polyptych.storybook.rendering`). Truth about a picture always comes from its scene.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """What makes one character: the same in every picture of a story."""

    hair: str
    hair_color: str
    skin: str
    hat: str | None
    clothes: str
    clothes_color: str
    glasses: bool


@dataclass(frozen=True, slots=True)
class View:
    """How a thing happens to look this time; never part of the truth that is asked for."""

    mirrored: bool = False
    scale: float = 1.0
    angle: float = 0.0  # degrees
    shade: float = 0.0  # -1 darker .. 1 lighter


@dataclass(frozen=True, slots=True)
class Thing:
    """An object of the vocabulary, or a character (``kind == "person"``, with ``person`` set)."""

    kind: str
    color: str
    size: str
    x: float  # centre, 0 left .. 1 right
    y: float  # centre, 0 top .. 1 bottom
    view: View = View()
    person: Person | None = None
    act: str | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """``things[subject]`` stands in ``predicate`` to ``things[object]``: (0, "under", 2)."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: a place, 3 to 8 things from back to front, and their relations."""

    place: str
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()
    seed: int = 0  # of the background's small variations
