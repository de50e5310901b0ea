"""Where things stand in a picture: boxes, relations between boxes, and finding free room.

All lengths are fractions of the (square) picture, the origin is its top left corner. This module
knows kinds and boxes only; :mod:`polyptych.storybook.scenes` turns them into things.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from polyptych.storybook.vocabulary import ACTS, KINDS, PERSON, RELATIONS, SIZES

MARGIN = 0.012  # everything lies at least this far inside the picture
HAND = (0.88, 0.60)  # where a character (not mirrored) holds a thing, as fractions of its box
_HAND_REACH = 0.04
_HARD_TO_HOLD = frozenset({"building", "piece of furniture", "vehicle"})


class Box(NamedTuple):
    """A rectangle: left < right, top < bottom."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        """The box of this width and height centred at (x, y)."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def width(self) -> float:
        """Horizontal extent."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Vertical extent."""
        return self.bottom - self.top

    @property
    def x(self) -> float:
        """Horizontal centre."""
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        """Vertical centre."""
        return (self.top + self.bottom) / 2

    def rounded(self) -> Box:
        """The box that is left when its centre is stored with four decimals."""
        return Box.around(round(self.x, 4), round(self.y, 4), self.width, self.height)

    def overlap(self, other: Box) -> float:
        """Area common to both."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0


def extent(kind: str, size: str, act: str | None = None, scale: float = 1.0) -> tuple[float, float]:
    """Width and height of a thing; a character's depend on its act, not on ``size``."""
    if kind == PERSON:
        pose = ACTS[act or "standing"]
        return pose.width * scale, pose.height * scale
    unit = SIZES[size] * scale
    return KINDS[kind].width * unit, KINDS[kind].height * unit


def can_relate(subject: str, predicate: str, other: str) -> bool:
    """Whether two kinds (or "person") can be drawn in this relation.

    Under and on need an ``other`` with a canopy or a surface that is wide and high enough for a
    small subject; only what flies is above; persons hold what is handy.
    """
    if predicate == "holding":
        return subject == PERSON and other != PERSON and KINDS[other].category not in _HARD_TO_HOLD
    if predicate == "beside":
        return not _flies(subject) and not _flies(other)
    if subject == PERSON:
        return False
    if predicate == "above":
        return _flies(subject) and not _flies(other)
    if other == PERSON:
        return False
    width, height = extent(subject, "small")
    other_width, other_height = extent(other, "large")
    if predicate == "on":
        return KINDS[other].surface is not None and width <= 0.85 * other_width
    canopy = KINDS[other].canopy
    if predicate != "under" or canopy is None:
        return False
    return width <= 0.7 * other_width and height <= (1 - canopy) * other_height + _UNDER_SLACK


def relation_holds(predicate: str, subject: str, box: Box, other: str, other_box: Box) -> bool:
    """Whether the boxes of two kinds stand in a relation; the geometry behind each predicate."""
    return _HOLDS[predicate](subject, box, other, other_box)


_UNDER_SLACK = 0.03


def _flies(kind: str) -> bool:
    return kind != PERSON and KINDS[kind].flying


def _surface_line(kind: str, box: Box) -> float:
    """Where things stand on a kind that has a surface."""
    return box.top + (KINDS[kind].surface or 0.0) * box.height


def _is_under(subject: str, box: Box, other: str, other_box: Box) -> bool:
    canopy = None if other == PERSON else KINDS[other].canopy
    if canopy is None or subject == PERSON:
        return False
    ceiling = other_box.top + canopy * other_box.height
    return (
        abs(box.x - other_box.x) <= 0.35 * other_box.width
        and box.top >= ceiling - _UNDER_SLACK - 0.005
        and abs(box.bottom - other_box.bottom) <= 0.035
    )


def _is_on(subject: str, box: Box, other: str, other_box: Box) -> bool:
    if PERSON in (subject, other) or KINDS[other].surface is None:
        return False
    distance = abs(box.bottom - _surface_line(other, other_box))
    return abs(box.x - other_box.x) <= 0.45 * other_box.width and distance <= 0.03


def _is_above(subject: str, box: Box, other: str, other_box: Box) -> bool:
    if not _flies(subject) or _flies(other):
        return False
    gap = other_box.top - box.bottom
    return abs(box.x - other_box.x) <= 0.4 * other_box.width and -0.005 <= gap <= 0.1


def _is_beside(subject: str, box: Box, other: str, other_box: Box) -> bool:
    if _flies(subject) or _flies(other):
        return False
    gap = max(other_box.left - box.right, box.left - other_box.right)
    return -0.01 <= gap <= 0.045 and abs(box.bottom - other_box.bottom) <= 0.035


def _is_held(subject: str, box: Box, other: str, other_box: Box) -> bool:
    if subject != PERSON or other == PERSON:
        return False
    hands = (box.left + HAND[0] * box.width, box.right - HAND[0] * box.width)
    hand_y = box.top + HAND[1] * box.height
    near_y = abs(other_box.y - hand_y) <= _HAND_REACH
    return near_y and min(abs(other_box.x - hand) for hand in hands) <= _HAND_REACH


_HOLDS = {
    "under": _is_under,
    "on": _is_on,
    "above": _is_above,
    "beside": _is_beside,
    "holding": _is_held,
}
assert tuple(_HOLDS) == RELATIONS


@dataclass(slots=True)
class Placed:
    """A kind that has found its box; ``depth`` orders from back to front."""

    kind: str
    box: Box
    depth: float
    cover_limit: float
    partner: int | None = None
    covered: float = 0.0


@dataclass(slots=True)
class Layout:
    """Things placed so far, and the search for room for the next.

    A new box is refused where it would cover an earlier thing, or be covered, by more than the
    ``cover_limit`` of the covered one, and where it would stand in a relation by accident.
    """

    rng: random.Random
    horizon: float
    placed: list[Placed] = field(default_factory=list)

    def place(
        self, kind: str, act: str | None, width: float, height: float, cover_limit: float
    ) -> bool:
        """Puts a kind anywhere it is at home; False if no room was found."""
        for _ in range(40):
            box, depth = self._anywhere(kind, act, width, height)
            if self._add(Placed(kind, box.rounded(), depth, cover_limit)):
                return True
        return False

    def place_related(
        self,
        kind: str,
        width: float,
        height: float,
        cover_limit: float,
        predicate: str,
        anchor: int,
        mirrored: bool = False,
    ) -> bool:
        """Puts a kind so that the relation with ``placed[anchor]`` holds.

        The anchor is the relation's object, except for "holding", where it is the character
        (``mirrored`` as it is drawn).
        """
        other = self.placed[anchor]
        for _ in range(40):
            box, depth = self._near(predicate, other, width, height, mirrored)
            box = box.rounded()
            first, second = (other.kind, other.box), (kind, box)
            if predicate != "holding":
                first, second = second, first
            if not relation_holds(predicate, *first, *second):
                continue
            if self._add(Placed(kind, box, depth, cover_limit, anchor)):
                return True
        return False

    def _anywhere(
        self, kind: str, act: str | None, width: float, height: float
    ) -> tuple[Box, float]:
        rng = self.rng
        left = rng.uniform(MARGIN, 1 - MARGIN - width)
        if _flies(kind):
            top = rng.uniform(MARGIN, max(MARGIN, self.horizon - height))
            return Box(left, top, left + width, top + height), top + height
        ground = rng.uniform(max(self.horizon + 0.06, height + 2 * MARGIN), 1 - 2 * MARGIN)
        lift = 0.05 if act == "jumping" and ground - height > 0.05 + MARGIN else 0.0
        return Box(left, ground - lift - height, left + width, ground - lift), ground

    def _near(
        self, predicate: str, other: Placed, width: float, height: float, mirrored: bool
    ) -> tuple[Box, float]:
        rng, around = self.rng, other.box
        front = other.depth + 1e-4
        if predicate == "holding":
            hand = 1 - HAND[0] if mirrored else HAND[0]
            x = around.left + hand * around.width
            y = around.top + HAND[1] * around.height
            return Box.around(x, y, width, height), front
        if predicate == "beside":
            gap, bottom = rng.uniform(0.0, 0.03), around.bottom + rng.uniform(-0.02, 0.02)
            left = around.right + gap if rng.random() < 0.5 else around.left - gap - width
            return Box(left, bottom - height, left + width, bottom), bottom
        if predicate == "above":
            bottom = around.top - rng.uniform(0.01, 0.07)
            x = around.x + rng.uniform(-0.25, 0.25) * around.width
            return Box(x - width / 2, bottom - height, x + width / 2, bottom), bottom
        if predicate == "on":
            slack = max(0.0, 0.44 * (around.width - width))
            bottom = _surface_line(other.kind, around)
        else:
            slack = max(0.0, min(0.33 * around.width, 0.45 * (around.width - width)))
            bottom = around.bottom + rng.uniform(-0.01, 0.01)
        x = around.x + rng.uniform(-slack, slack)
        return Box(x - width / 2, bottom - height, x + width / 2, bottom), front

    def _add(self, new: Placed) -> bool:
        box = new.box
        if box.left < 0 or box.top < 0 or box.right > 1 or box.bottom > 1 - MARGIN / 2:
            return False
        covers = [0.0] * len(self.placed)
        area = box.width * box.height
        for index, old in enumerate(self.placed):
            if index == new.partner:
                continue
            common = box.overlap(old.box)
            if common and new.depth < old.depth:
                new.covered += common / area
            elif common:
                covers[index] = common / (old.box.width * old.box.height)
                if old.covered + covers[index] > old.cover_limit:
                    return False
            if self._accident(new, old):
                return False
        if new.covered > new.cover_limit:
            return False
        for old, cover in zip(self.placed, covers, strict=True):
            old.covered += cover
        self.placed.append(new)
        return True

    @staticmethod
    def _accident(new: Placed, old: Placed) -> bool:
        """Whether an unasked relation would hold; where it can, a sentence would be wrong."""
        pairs = ((new, old), (old, new))
        return any(
            relation_holds(predicate, one.kind, one.box, two.kind, two.box)
            for one, two in pairs
            for predicate in RELATIONS
        )
