"""Backgrounds: flat, pale shapes without outlines, so that only things have one.

Design units: the picture is 100 × 100. Each place comes in a few variants that move clouds, stars
and trees about.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from polyptych.storybook.pen import RGB, Pen, mix
from polyptych.storybook.vocabulary import PLACES

VARIANTS = 6

_WHITE = (255, 253, 248)
_SKY = (190, 224, 240)
_SKY_LOW = (228, 242, 244)


def draw_place(place: str, variant: int, size: int) -> Image.Image:
    """The background as an RGB picture of ``size`` × ``size`` pixels."""
    pen = Pen(100, 100, size / 100, inset=0.0)
    rng = random.Random(f"{place} {variant}")
    _DRAWERS[place](pen, rng, 100 * PLACES[place].horizon)
    return pen.finish().convert("RGB")


def _bands(pen: Pen, top: float, bottom: float, upper: RGB, lower: RGB, steps: int = 28) -> None:
    """A soft vertical gradient."""
    height = (bottom - top) / steps
    for step in range(steps):
        y = top + step * height
        color = mix(upper, lower, step / (steps - 1))
        pen.box(0, y, 100, y + height + 0.6, color, ink=False)


def _hills(
    pen: Pen, rng: random.Random, y: float, height: float, color: RGB, waves: int = 3
) -> None:
    """A rolling edge; everything below it is filled."""
    step = 100 / waves
    points = [(-30.0, y + 1), (-15.0, y)]
    for wave in range(waves + 1):
        crest = y - height * rng.uniform(0.3, 1.0) if wave % 2 else y + height * rng.uniform(0, 0.6)
        points.append((wave * step, crest))
    points += [(115, y), (130, y + 1), (130, 140), (-30, 140)]
    pen.blob(points, color, ink=False)


def _cloud(pen: Pen, x: float, y: float, size: float, color: RGB = _WHITE) -> None:
    for dx, dy, radius in ((-1.1, 0.1, 0.7), (0, -0.35, 1.0), (1.1, 0.1, 0.75), (0.2, 0.25, 0.9)):
        pen.oval(
            x + dx * size, y + dy * size, radius * size, radius * size * 0.75, color, ink=False
        )


def _clouds(pen: Pen, rng: random.Random, color: RGB = _WHITE) -> None:
    for start in (8, 58):
        _cloud(pen, start + rng.uniform(0, 30), rng.uniform(9, 26), rng.uniform(4, 7), color)


def _specks(
    pen: Pen,
    rng: random.Random,
    count: int,
    top: float,
    bottom: float,
    color: RGB,
    radius: float = 0.8,
) -> None:
    for _ in range(count):
        r = radius * rng.uniform(0.7, 1.3)
        pen.oval(rng.uniform(2, 98), rng.uniform(top, bottom), r, r * 0.7, color, ink=False)


def _beach(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, (150, 212, 240), (214, 240, 246))
    pen.oval(rng.uniform(14, 86), 15, 8, 8, (255, 236, 160), ink=False)
    _clouds(pen, rng)
    _bands(pen, horizon - 20, horizon + 4, (92, 178, 206), (150, 214, 220), 6)
    for y in (horizon - 15, horizon - 9, horizon - 3):
        for wave in range(0, 100, 20):
            start = wave + rng.uniform(0, 8)
            pen.curve([(start, y), (start + 3, y - 1.4), (start + 7, y)], (206, 238, 240), 1.0)
    foam = [(x, horizon + 2 + rng.uniform(-1.5, 1.5)) for x in range(-30, 140, 10)]
    pen.curve(foam, _WHITE, 3)
    pen.blob([*((x, y + 2) for x, y in foam), (140, 130), (-40, 130)], (248, 226, 176), ink=False)
    _specks(pen, rng, 26, horizon + 8, 98, (228, 200, 146))
    for x in (rng.uniform(6, 40), rng.uniform(60, 94)):
        pen.dome(x, rng.uniform(70, 95), 2.6, 2.6, (250, 206, 186), ink=False)


def _street(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, _SKY, _SKY_LOW)
    _clouds(pen, rng)
    x = -6.0
    walls = [(222, 190, 176), (206, 204, 186), (196, 204, 214), (228, 212, 180), (212, 192, 206)]
    rng.shuffle(walls)
    for wall in walls:
        width, top = rng.uniform(21, 27), rng.uniform(14, 30)
        pen.box(x, top, x + width, horizon + 2, wall, ink=False)
        pen.box(
            x - 0.5, top - 2.5, x + width + 0.5, top + 1, mix(wall, (90, 80, 90), 0.25), ink=False
        )
        for row in range(int((horizon - top - 6) // 11)):
            for column in range(3):
                left, y = x + 3 + column * (width - 4) / 3, top + 5 + row * 11
                pen.box(left, y, left + 3.6, y + 5.6, mix(wall, (110, 130, 150), 0.4), ink=False)
        x += width
    pen.box(0, horizon, 100, horizon + 9, (206, 200, 194), ink=False)
    for tile in range(0, 100, 10):
        pen.line([(tile, horizon), (tile - 3, horizon + 9)], (190, 184, 180), 0.7)
    pen.box(0, horizon + 9, 100, 100, (142, 144, 154), ink=False)
    pen.box(0, horizon + 8.4, 100, horizon + 10.4, (178, 174, 174), ink=False)
    shift = rng.uniform(-8, 4)
    for dash in range(5):
        left = shift + dash * 24
        pen.poly(
            [(left, 77), (left + 13, 77), (left + 12, 80), (left - 1, 80)],
            (244, 238, 220),
            ink=False,
        )


def _night(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, (44, 50, 102), (104, 104, 166))
    for _ in range(34):
        x, y, r = rng.uniform(1, 99), rng.uniform(1, horizon - 12), rng.uniform(0.4, 1.0)
        pen.oval(x, y, r, r, (250, 244, 208), ink=False)
    for _ in range(4):
        x, y = rng.uniform(5, 95), rng.uniform(4, 34)
        star = [
            (0, -2.6),
            (0.7, -0.7),
            (2.6, 0),
            (0.7, 0.7),
            (0, 2.6),
            (-0.7, 0.7),
            (-2.6, 0),
            (-0.7, -0.7),
        ]
        pen.poly([(x + dx, y + dy) for dx, dy in star], (255, 244, 190), ink=False)
    x = rng.choice((16, 30, 70, 84)) + rng.uniform(-4, 4)
    pen.oval(x, 15, 10, 10, (84, 86, 144), ink=False)
    pen.oval(x, 15, 8, 8, (255, 244, 200), ink=False)
    pen.oval(x + 3.6, 13, 6.6, 6.6, (84, 86, 144), ink=False)
    _hills(pen, rng, horizon - 4, 9, (76, 86, 138), 4)
    _hills(pen, rng, horizon + 3, 5, (96, 124, 150), 3)
    _bands(pen, horizon + 9, 100, (96, 124, 150), (84, 110, 138), 6)
    _specks(pen, rng, 20, horizon + 8, 98, (122, 150, 170))


def _kitchen(pen: Pen, rng: random.Random, horizon: float) -> None:
    pen.box(0, 0, 100, horizon, (250, 238, 206), ink=False)
    tile = (236, 216, 176)
    for y in range(0, int(horizon), 8):
        pen.line([(0, y), (100, y)], tile, 0.8)
    for x in range(0, 101, 8):
        pen.line([(x, 0), (x, horizon)], tile, 0.8)
    left = rng.choice((4, 60))
    pen.box(left, 4, left + 36, 24, (206, 158, 112), radius=1.5, ink=False)
    pen.box(left + 2, 6, left + 17, 22, (222, 178, 130), radius=1, ink=False)
    pen.box(left + 19, 6, left + 34, 22, (222, 178, 130), radius=1, ink=False)
    pen.oval(left + 15, 14, 1, 1, (140, 104, 78), ink=False)
    pen.oval(left + 21, 14, 1, 1, (140, 104, 78), ink=False)
    hood = 64 - left + rng.uniform(-3, 3)
    pen.poly(
        [(hood + 9, 0), (hood + 19, 0), (hood + 28, 19), (hood, 19)], (206, 210, 214), ink=False
    )
    pen.box(0, 36, 100, 40, (176, 140, 118), ink=False)
    pen.box(0, 40, 100, horizon, (166, 196, 190), ink=False)
    for x in range(0, 100, 20):
        pen.box(x + 1, 41.5, x + 19, horizon - 1, (182, 210, 204), radius=1, ink=False)
        pen.oval(x + 10, 44, 1, 1, (120, 140, 140), ink=False)
    pen.box(hood + 2, 40, hood + 26, horizon, (196, 196, 202), ink=False)
    pen.box(hood + 5, 45, hood + 23, horizon - 2, (112, 108, 122), radius=1.5, ink=False)
    rows = 5
    for row in range(rows):
        top = horizon + (100 - horizon) * row / rows
        bottom = horizon + (100 - horizon) * (row + 1) / rows
        for column in range(-6, 12):
            color = (238, 230, 218) if (row + column) % 2 else (214, 196, 184)
            corners = [(column, top), (column + 1, top), (column + 1, bottom), (column, bottom)]
            pen.poly([(50 + (c - 3) * (8 + 0.16 * y), y) for c, y in corners], color, ink=False)


def _forest(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, (206, 226, 190), (226, 236, 200))
    for depth, (count, color) in enumerate(((8, (172, 200, 158)), (6, (138, 174, 132)))):
        for step in range(count):
            x = (step + rng.uniform(0.2, 0.8)) * 100 / count
            width = 3.0 + 2 * depth
            trunk = mix((150, 128, 108), color, 0.35 - 0.2 * depth)
            pen.box(x - width / 2, 4, x + width / 2, horizon + 3, trunk, ink=False)
        for step in range(count + 3):
            x = (step + rng.uniform(0, 1)) * 100 / (count + 2) - 4
            pen.oval(x, rng.uniform(-2, 9 - 3 * depth), 13, 11, color, ink=False)
    _hills(pen, rng, horizon + 1, 4, (112, 150, 104), 4)
    _bands(pen, horizon + 6, 100, (112, 150, 104), (98, 132, 90), 6)
    for _ in range(16):
        x, y = rng.uniform(0, 100), rng.uniform(horizon + 6, 98)
        for dx in (-1.5, 0, 1.5):
            pen.line([(x, y), (x + dx, y - 3)], (136, 174, 118), 0.9)
    for _ in range(4):
        x, y = rng.uniform(4, 96), rng.uniform(horizon + 10, 96)
        pen.box(x - 0.8, y - 2, x + 0.8, y, (240, 228, 204), ink=False)
        pen.dome(x, y - 2, 2.2, 2, (206, 134, 112), ink=False)


def _desert(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, (250, 198, 150), (254, 232, 190))
    x = rng.uniform(20, 80)
    pen.oval(x, 17, 12, 12, (255, 220, 160), ink=False)
    pen.oval(x, 17, 8.5, 8.5, (255, 240, 196), ink=False)
    peak = rng.uniform(15, 70)
    for dx, size in ((0, 21), (23, 13)):
        left, top = peak + dx, horizon + 2 - size
        pen.poly(
            [(left - size, horizon + 3), (left, top), (left + size, horizon + 3)],
            (226, 172, 118),
            ink=False,
        )
        pen.poly(
            [(left + size * 0.3, horizon + 3), (left, top), (left + size, horizon + 3)],
            (206, 148, 104),
            ink=False,
        )
    _hills(pen, rng, horizon + 1, 6, (238, 190, 124), 2)
    _hills(pen, rng, horizon + 14, 7, (244, 202, 138), 3)
    _hills(pen, rng, horizon + 30, 6, (234, 188, 122), 2)
    for _ in range(9):
        x, y = rng.uniform(2, 90), rng.uniform(horizon + 12, 97)
        pen.curve([(x, y), (x + 4, y - 1.2), (x + 9, y)], (218, 168, 104), 0.9)


def _snow(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, (176, 200, 222), (220, 230, 238))
    for step in range(7):
        x, size = step * 16 + rng.uniform(-4, 6), rng.uniform(9, 15)
        for tier in range(3):
            y = horizon + 3 - tier * size * 0.62
            half = size * (0.62 - 0.14 * tier)
            pen.poly([(x - half, y), (x, y - size), (x + half, y)], (146, 178, 186), ink=False)
            pen.poly(
                [
                    (x - half * 0.55, y - size * 0.45),
                    (x, y - size),
                    (x + half * 0.55, y - size * 0.45),
                ],
                _WHITE,
                ink=False,
            )
    _hills(pen, rng, horizon + 2, 5, (234, 240, 246), 3)
    _hills(pen, rng, horizon + 15, 6, (244, 248, 252), 2)
    _hills(pen, rng, horizon + 32, 5, (230, 238, 246), 3)
    for _ in range(46):
        x, y, r = rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(0.5, 1.2)
        color = _WHITE if y < horizon else (206, 220, 234)
        pen.oval(x, y, r, r, color, ink=False)


def _bedroom(pen: Pen, rng: random.Random, horizon: float) -> None:
    pen.box(0, 0, 100, horizon, (222, 206, 230), ink=False)
    for stripe in range(0, 100, 10):
        pen.box(stripe, 0, stripe + 5, horizon, (230, 216, 236), ink=False)
    left = rng.choice((10, 58)) + rng.uniform(-3, 3)
    pen.box(left - 2, 5, left + 32, 38, (248, 244, 238), radius=1, ink=False)
    pen.box(left, 7, left + 30, 36, (184, 214, 236), ink=False)
    _cloud(pen, left + rng.uniform(9, 21), 15, 3.4)
    pen.box(left + 14, 7, left + 16, 36, (248, 244, 238), ink=False)
    pen.box(left, 21, left + 30, 23, (248, 244, 238), ink=False)
    for side, edge in ((1, left - 5), (-1, left + 35)):
        pen.blob(
            [
                (edge, 3),
                (edge + side * 13, 3),
                (edge + side * 6, 22),
                (edge + side * 7, 42),
                (edge, 42),
            ],
            (236, 168, 178),
            ink=False,
        )
    frame = 78 - left
    pen.box(frame, 11, frame + 15, 27, (190, 142, 108), ink=False)
    pen.box(frame + 2, 13, frame + 13, 25, (246, 236, 214), ink=False)
    pen.blob(
        [
            (frame + 7.5, 23),
            (frame + 3.6, 18),
            (frame + 5.6, 15.4),
            (frame + 7.5, 17),
            (frame + 9.4, 15.4),
            (frame + 11.4, 18),
        ],
        (230, 146, 150),
        ink=False,
    )
    pen.box(0, horizon - 3, 100, horizon, (248, 242, 236), ink=False)
    _bands(pen, horizon, 100, (206, 164, 124), (194, 150, 112), 5)
    for row in range(1, 5):
        y = horizon + (100 - horizon) * (row / 5) ** 1.2
        pen.line([(0, y), (100, y)], (178, 134, 100), 0.8)
        for _ in range(2):
            x = rng.uniform(5, 95)
            pen.line([(x, y), (x, y + 4)], (178, 134, 100), 0.8)
    x = 50 + rng.uniform(-12, 12)
    pen.oval(x, 83, 34, 11, (226, 178, 186), ink=False)
    pen.oval(x, 83, 28, 8.4, (242, 212, 210), ink=False)
    pen.oval(x, 83, 20, 5.6, (226, 178, 186), ink=False)


def _meadow(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, (172, 216, 242), (226, 242, 246))
    _clouds(pen, rng)
    _hills(pen, rng, horizon - 2, 10, (176, 214, 150), 2)
    _hills(pen, rng, horizon + 4, 6, (160, 206, 130), 3)
    _bands(pen, horizon + 10, 100, (160, 206, 130), (142, 194, 116), 6)
    for _ in range(14):
        x, y = rng.uniform(0, 100), rng.uniform(horizon + 8, 98)
        for dx in (-1.2, 0, 1.2):
            pen.line([(x, y), (x + dx, y - 2.4)], (122, 174, 100), 0.8)
    for _ in range(16):
        x, y = rng.uniform(2, 98), rng.uniform(horizon + 7, 98)
        color = rng.choice(((255, 250, 240), (250, 226, 130), (244, 190, 206)))
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            pen.oval(x + dx, y + dy, 0.9, 0.9, color, ink=False)


def _mountains(pen: Pen, rng: random.Random, horizon: float) -> None:
    _bands(pen, 0, horizon + 10, (196, 208, 236), (246, 228, 226))
    for x, height, color in (
        (rng.uniform(5, 25), 34, (168, 164, 196)),
        (rng.uniform(75, 95), 38, (168, 164, 196)),
        (rng.uniform(40, 60), 46, (146, 144, 180)),
    ):
        top, base = horizon + 4 - height, horizon + 4
        half = height * 0.72
        pen.poly([(x - half, base), (x, top), (x + half, base)], color, ink=False)
        pen.poly(
            [(x + 2, top + 2), (x, top), (x + half, base), (x + half * 0.2, base)],
            mix(color, (90, 84, 120), 0.25),
            ink=False,
        )
        cut = 0.32
        edge = [
            (x + half * cut, top + height * cut),
            (x + half * 0.14, top + height * 0.24),
            (x, top + height * 0.36),
            (x - half * 0.15, top + height * 0.25),
            (x - half * cut, top + height * cut),
        ]
        pen.poly([(x, top), *edge], _WHITE, ink=False)
    _hills(pen, rng, horizon + 3, 4, (150, 168, 146), 4)
    _bands(pen, horizon + 7, 100, (150, 168, 146), (168, 168, 150), 6)
    for _ in range(13):
        x, y, r = rng.uniform(2, 98), rng.uniform(horizon + 9, 98), rng.uniform(1.4, 3.4)
        pen.dome(x, y, r * 1.3, r, (186, 184, 180), ink=False)
        pen.dome(x + r * 0.4, y, r * 0.8, r * 0.6, (164, 162, 164), ink=False)


_DRAWERS: dict[str, Callable[[Pen, random.Random, float], None]] = {
    "beach": _beach,
    "street": _street,
    "night": _night,
    "kitchen": _kitchen,
    "forest": _forest,
    "desert": _desert,
    "snow": _snow,
    "bedroom": _bedroom,
    "meadow": _meadow,
    "mountains": _mountains,
}
assert set(_DRAWERS) == set(PLACES)
