"""Characters: the same person is recognised in every pose by hair, skin, hat, clothes, glasses.

Design units: 100 are the height of a standing character (0.40 of the picture).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from polyptych.storybook.pen import CREAM, DARK, INK, RGB, WOOD, Pen, Point, Tint, mix
from polyptych.storybook.vocabulary import ACTS, COLORS, HAIR_COLORS, HATS, SKINS, Person

UNITS = 100 / ACTS["standing"].height
"""Design units across a whole picture."""

_TROUSERS = (104, 116, 150)
_CHEEK = (240, 140, 130)
_STROKE = 3.0


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the joints are, relative to the middle of the canvas and its top."""

    left_arm: tuple[Point, ...]
    right_arm: tuple[Point, ...]
    left_leg: tuple[Point, ...]
    right_leg: tuple[Point, ...]
    lean: float = 0.0
    shift: float = 0.0  # of the body's middle from the middle of the canvas
    asleep: bool = False


_LEFT_DOWN, _RIGHT_DOWN = ((-12, 54), (-19, 66), (-19, 76)), ((12, 54), (19, 66), (19, 76))
_LEFT_STAND, _RIGHT_STAND = ((-7, 76), (-8, 94)), ((7, 76), (8, 94))

_POSES: dict[str, Pose] = {
    "standing": Pose(_LEFT_DOWN, _RIGHT_DOWN, _LEFT_STAND, _RIGHT_STAND),
    "waving": Pose(_LEFT_DOWN, ((12, 54), (25, 50), (29, 28)), _LEFT_STAND, _RIGHT_STAND, shift=-2),
    "cheering": Pose(
        ((-12, 54), (-25, 42), (-29, 18)),
        ((12, 54), (25, 42), (29, 18)),
        _LEFT_STAND,
        _RIGHT_STAND,
    ),
    "sitting": Pose(
        ((-12, 54), (-18, 64), (-10, 70)),
        ((12, 54), (18, 64), (10, 70)),
        ((-6, 74), (-16, 76), (-24, 79)),
        ((6, 74), (16, 76), (24, 79)),
    ),
    "running": Pose(
        ((-10, 55), (-22, 62), (-30, 54)),
        ((12, 55), (22, 66), (32, 60)),
        ((-4, 76), (-14, 86), (-29, 84)),
        ((6, 76), (20, 79), (18, 94)),
        lean=6,
    ),
    "jumping": Pose(
        ((-12, 54), (-24, 52), (-30, 42)),
        ((12, 54), (24, 52), (30, 42)),
        ((-6, 76), (-20, 80), (-14, 92)),
        ((6, 76), (20, 80), (14, 92)),
    ),
    "sleeping": Pose(_LEFT_DOWN, _RIGHT_DOWN, _LEFT_STAND, _RIGHT_STAND, shift=-4, asleep=True),
    "reading": Pose(
        ((-12, 54), (-20, 64), (-16, 72)),
        ((12, 54), (20, 64), (16, 72)),
        _LEFT_STAND,
        _RIGHT_STAND,
    ),
    "holding": Pose(
        ((-10, 58), (6, 72), (27, 66)),
        ((12, 54), (22, 61), (33, 60)),
        _LEFT_STAND,
        _RIGHT_STAND,
        shift=-7,
    ),
}
assert set(_POSES) == set(ACTS)


def draw_person(person: Person, act: str, resolution: float) -> Image.Image:
    """A character's sprite in a pose, at ``resolution`` pixels per design unit."""
    pose, box = _POSES[act], ACTS[act]
    width, height = box.width * UNITS, box.height * UNITS
    if pose.asleep:
        width, height = height, width
    pen = Pen(width, height, resolution, stroke=_STROKE, inset=1.0)
    middle = width / 2 + pose.shift
    clothes = Tint(COLORS[person.clothes_color])
    head = middle + pose.lean

    if pose.asleep:
        pen.box(middle - 24, 6, middle + 24, 44, CREAM, radius=9)
    _hair_behind(pen, person, head)
    _legs(pen, person, pose, middle)
    _arms(pen, person, pose, middle, clothes, (pose.left_arm,))
    _torso(pen, person, middle, pose.lean, clothes)
    _arms(pen, person, pose, middle, clothes, (pose.right_arm,))
    _head(pen, person, head, asleep=pose.asleep)
    if act == "reading":
        _book(pen, middle)
    if act == "running":
        _speed_lines(pen)
    if pose.asleep:
        return _lay_down(pen)
    return pen.finish()


def _legs(pen: Pen, person: Person, pose: Pose, middle: float) -> None:
    color = SKINS[person.skin] if person.clothes == "dress" else _TROUSERS
    for leg in (pose.left_leg, pose.right_leg):
        path = [(middle + x, y) for x, y in leg]
        pen.tube(path, color, 8, straight=True)
        x, y = path[-1]
        pen.oval(x + (1.5 if leg is pose.right_leg else -1.5), y + 1, 6.5, 4, DARK)


def _arms(
    pen: Pen,
    person: Person,
    pose: Pose,
    middle: float,
    clothes: Tint,
    arms: tuple[tuple[Point, ...], ...],
) -> None:
    skin = SKINS[person.skin]
    for arm in arms:
        path = [(middle + pose.lean * 0.5 + x, y) for x, y in arm]
        sleeved = person.clothes == "striped sweater"
        pen.tube(path, clothes.base if sleeved else skin, 6)
        if person.clothes == "shirt":
            first, second = path[0], path[1]
            cuff = (
                first[0] + (second[0] - first[0]) * 0.7,
                first[1] + (second[1] - first[1]) * 0.7,
            )
            pen.tube([first, cuff], clothes.base, 8, straight=True)
        pen.oval(*path[-1], 4, 4, skin)


def _torso(pen: Pen, person: Person, middle: float, lean: float, clothes: Tint) -> None:
    top = middle + lean * 0.6
    if person.clothes == "dress":
        pen.blob(
            [
                (top - 10, 48),
                (top + 10, 48),
                (middle + 13, 64),
                (middle + 20, 84),
                (middle, 87),
                (middle - 20, 84),
                (middle - 13, 64),
            ],
            clothes.base,
        )
        pen.line([(middle - 11, 65), (middle + 11, 65)], clothes.dark, 4)
        return
    pen.blob(
        [
            (top - 12, 49),
            (top + 12, 49),
            (middle + 14, 64),
            (middle + 13, 80),
            (middle - 13, 80),
            (middle - 14, 64),
        ],
        clothes.base,
    )
    if person.clothes == "striped sweater":
        stripe = DARK if person.clothes_color in ("white", "yellow", "pink") else CREAM
        for y in (57, 65, 73):
            pen.line([(middle - 11, y), (middle + 11, y)], stripe, 3.2)


def _head(pen: Pen, person: Person, x: float, *, asleep: bool) -> None:
    skin = SKINS[person.skin]
    pen.oval(x, 33, 19, 17.5, skin)
    for side in (-1, 1):
        pen.oval(x + side * 12, 40, 3.5, 2.5, mix(skin, _CHEEK, 0.6), ink=False)
    _hair_in_front(pen, person, x)
    for side in (-1, 1):
        if person.glasses:
            pen.oval(x + side * 8, 34, 6.8, 6.8, (240, 250, 255))
        if asleep:
            pen.curve(
                [(x + side * 8 - 3.5, 34), (x + side * 8, 36.5), (x + side * 8 + 3.5, 34)],
                width=2.4,
            )
        else:
            pen.oval(x + side * 7.5, 34.5, 2.7, 3.2, INK, ink=False)
    if person.glasses:
        pen.line([(x - 2, 33), (x + 2, 33)])
    pen.curve([(x - 4.5, 43), (x, 46), (x + 4.5, 43)], width=2.4)
    if person.hat is not None:
        _HAT_DRAWERS[person.hat](pen, x, HATS[person.hat])


def _hair_behind(pen: Pen, person: Person, x: float) -> None:
    color = HAIR_COLORS[person.hair_color]
    if person.hair == "long":
        pen.blob(
            [
                (x, 12),
                (x + 20, 20),
                (x + 24, 42),
                (x + 24, 62),
                (x, 60),
                (x - 24, 62),
                (x - 24, 42),
                (x - 20, 20),
            ],
            color,
        )
    elif person.hair == "curly":
        spots = (
            (-19, 24),
            (-23, 36),
            (-19, 47),
            (19, 24),
            (23, 36),
            (19, 47),
            (-10, 16),
            (10, 16),
            (0, 13),
        )
        for dx, y in spots:
            pen.oval(x + dx, y, 8, 8, color)
        for dx, y in spots:
            pen.oval(x + dx, y, 6, 6, color, ink=False)
    elif person.hair == "braided":
        for side in (-1, 1):
            for step, y in enumerate((40, 49, 58)):
                pen.oval(x + side * (19 + step * 1.2), y, 6 - step * 0.6, 6, color)
            pen.oval(x + side * 22.5, 64, 3, 3, _CHEEK)


def _hair_in_front(pen: Pen, person: Person, x: float) -> None:
    color = HAIR_COLORS[person.hair_color]
    if person.hair == "curly":
        for dx, y in ((-14, 20), (-5, 17), (5, 17), (14, 20)):
            pen.oval(x + dx, y, 6.5, 6, color)
        for dx, y in ((-14, 20), (-5, 17), (5, 17), (14, 20)):
            pen.oval(x + dx, y - 1, 5, 5, color, ink=False)
        return
    fringe = {
        "short": [(12, 26), (4, 22), (-4, 27), (-12, 24)],
        "long": [(8, 26), (0, 19), (-8, 26)],
        "braided": [(9, 25), (0, 18), (-9, 25)],
    }[person.hair]
    ends = 31 if person.hair == "short" else 36
    shape = [
        (x - 20, ends),
        (x - 18, 20),
        (x - 8, 13),
        (x + 8, 13),
        (x + 18, 20),
        (x + 20, ends),
        (x + 15, 29),
        *((x + dx, y) for dx, y in fringe),
        (x - 15, 29),
    ]
    pen.poly(shape, color)
    if person.hair == "braided":
        pen.line([(x, 14), (x, 19)], mix(color, INK, 0.4), 2)


def _cap(pen: Pen, x: float, color: RGB) -> None:
    pen.dome(x, 21, 19, 17, color)
    pen.box(x + 2, 17, x + 29, 23, mix(color, INK, 0.2), radius=3)


def _crown(pen: Pen, x: float, color: RGB) -> None:
    points = [(-16, 20), (-18, 3), (-8, 11), (0, 1), (8, 11), (18, 3), (16, 20)]
    pen.poly([(x + dx, y) for dx, y in points], color)
    for dx in (-9, 0, 9):
        pen.oval(x + dx, 15.5, 2, 2, (214, 76, 84), ink=False)


def _beanie(pen: Pen, x: float, color: RGB) -> None:
    pen.oval(x, 4.5, 5, 4.5, CREAM)
    pen.dome(x, 22, 19, 16, color)
    pen.box(x - 20, 17, x + 20, 25, mix(color, CREAM, 0.55), radius=4)


def _top_hat(pen: Pen, x: float, color: RGB) -> None:
    pen.box(x - 13, 0, x + 13, 20, color, radius=2)
    pen.box(x - 13, 12, x + 13, 17, (214, 76, 84), ink=False)
    pen.box(x - 22, 17, x + 22, 22.5, color, radius=3)


def _straw_hat(pen: Pen, x: float, color: RGB) -> None:
    pen.oval(x, 20, 26, 5.5, color)
    pen.dome(x, 19, 14, 15, color)
    pen.line([(x - 13, 16), (x + 13, 16)], WOOD, 4)


_HAT_DRAWERS: dict[str, Callable[[Pen, float, RGB], None]] = {
    "cap": _cap,
    "crown": _crown,
    "beanie": _beanie,
    "top hat": _top_hat,
    "straw hat": _straw_hat,
}


def _book(pen: Pen, x: float) -> None:
    pen.poly(
        [(x - 17, 58), (x, 62), (x + 17, 58), (x + 17, 75), (x, 79), (x - 17, 75)], (120, 88, 150)
    )
    for side in (-1, 1):
        page = [(x, 61), (x + side * 14, 57), (x + side * 14, 72), (x, 76)]
        pen.poly(page, CREAM)
        pen.line([(x + side * 3, 66), (x + side * 11, 64)], WOOD, 1.6)
        pen.line([(x + side * 3, 70), (x + side * 11, 68)], WOOD, 1.6)


def _speed_lines(pen: Pen) -> None:
    for y in (38, 66, 74):
        pen.line([(1, y), (8, y)], width=2)


def _lay_down(pen: Pen) -> Image.Image:
    """Turns a sleeper onto its back, head at the left, and lets it snore.

    The letters are drawn on the upright canvas: its right becomes the top, its top the left.
    """
    for size, left, top in ((9, 3, 2), (6, 16, 1)):
        zed = [(left, top), (left + size, top), (left, top + size), (left + size, top + size)]
        turned = [(60 - y, x) for x, y in zed]
        pen.line(turned, CREAM, 6)
        pen.line(turned, INK, 2.4)
    return pen.finish().transpose(Image.Transpose.ROTATE_90)
