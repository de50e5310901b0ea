"""Vehicles and buildings."""

from __future__ import annotations

import math

from polyptych.storybook.pen import CREAM, DARK, GLASS, GOLD, INK, METAL, WOOD, Pen, Tint, arc

_STONE = (206, 200, 194)
_ROOF = (176, 96, 84)
_FLAME = (248, 150, 60)


def _wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.oval(x, y, radius, radius, DARK)
    pen.oval(x, y, radius * 0.42, radius * 0.42, METAL, ink=False)


# Vehicles ----------------------------------------------------------------------------------------


def car(pen: Pen, c: Tint) -> None:
    """A small car that drives to the left."""
    pen.blob([(28, 32), (42, 6), (78, 4), (98, 14), (108, 36), (66, 40)], c.base)
    pen.poly([(38, 30), (47, 13), (64, 12), (64, 30)], GLASS)
    pen.poly([(71, 30), (71, 12), (88, 16), (97, 30)], GLASS)
    pen.box(4, 30, 126, 60, c.base, radius=13)
    pen.line([(68, 34), (68, 54)], width=3)
    pen.oval(11, 42, 5, 6, GOLD)
    pen.line([(76, 40), (84, 40)], width=3.5)
    _wheel(pen, 34, 59, 13)
    _wheel(pen, 96, 59, 13)


def bus(pen: Pen, c: Tint) -> None:
    """One long box with a row of windows."""
    pen.box(4, 4, 131, 71, c.base, radius=10)
    pen.box(5, 46, 130, 56, c.light, ink=False)
    for x in (12, 38, 64):
        pen.box(x, 14, x + 20, 37, GLASS, radius=3)
    pen.box(94, 14, 122, 70, GLASS, radius=3)
    pen.line([(108, 14), (108, 70)], width=3)
    _wheel(pen, 34, 70, 12)
    _wheel(pen, 84, 70, 12)


def boat(pen: Pen, c: Tint) -> None:
    """The hull and the pennant carry the color."""
    pen.line([(54, 6), (54, 82)], WOOD, 8)
    pen.poly([(50, 14), (50, 68), (10, 68)], CREAM)
    pen.poly([(60, 22), (60, 68), (96, 68)], c.light)
    pen.poly([(54, 4), (76, 9), (54, 15)], c.base)
    pen.poly([(3, 78), (107, 78), (88, 106), (22, 106)], c.base)
    pen.line([(13, 90), (97, 90)], c.light, 5)


def bicycle(pen: Pen, c: Tint) -> None:
    """Two wheels and a colored frame."""
    for x in (30, 100):
        for radius, color, width in ((23.5, INK, 12), (23.5, METAL, 4)):
            pen.line(arc(x, 55, radius, radius, 0, 360), color, width)
        pen.line([(x - 20, 55), (x + 20, 55)], METAL, 2)
        pen.line([(x, 35), (x, 75)], METAL, 2)
    frame = [(30, 55), (48, 24), (88, 24), (64, 55), (30, 55)]
    for points in (frame, [(48, 24), (64, 55)], [(84, 12), (100, 55)], [(45, 14), (50, 28)]):
        pen.line(points, INK, 15)
    for points in (frame, [(48, 24), (64, 55)], [(84, 12), (100, 55)], [(45, 14), (50, 28)]):
        pen.line(points, c.base, 8)
    pen.tube([(84, 10), (94, 6), (102, 12)], DARK, 3)
    pen.box(34, 7, 58, 15, DARK, radius=4)
    pen.oval(64, 55, 8, 8, METAL)


def airplane(pen: Pen, c: Tint) -> None:
    """Flies to the left."""
    pen.poly([(62, 34), (92, 4), (106, 4), (86, 36)], c.dark)
    pen.poly([(102, 34), (120, 8), (131, 8), (126, 40)], c.dark)
    pen.blob(
        [(4, 46), (16, 32), (60, 29), (112, 33), (131, 40), (112, 52), (60, 60), (16, 58)], c.base
    )
    pen.poly([(16, 33), (32, 31), (32, 42), (8, 42)], GLASS)
    for x in (46, 62, 78, 94):
        pen.oval(x, 41, 4.5, 4.5, GLASS)
    pen.poly([(52, 50), (82, 50), (106, 71), (90, 71)], c.light)


def rocket(pen: Pen, c: Tint) -> None:
    """Upright, fins and flame."""
    pen.blob([(26, 96), (49, 96), (46, 108), (37, 118), (28, 108)], _FLAME)
    pen.poly([(18, 62), (3, 84), (3, 102), (22, 92)], c.dark)
    pen.poly([(56, 62), (71, 84), (71, 102), (52, 92)], c.dark)
    pen.blob(
        [(37, 2), (56, 28), (60, 62), (54, 96), (37, 99), (20, 96), (15, 62), (18, 28)], c.base
    )
    pen.blob([(37, 3), (47, 14), (52, 28), (37, 31), (22, 28), (27, 14)], c.light)
    pen.oval(37, 50, 12, 12, GLASS)
    pen.line([(37, 76), (37, 98)], width=4)


# Buildings ---------------------------------------------------------------------------------------


def house(pen: Pen, c: Tint) -> None:
    """Walls in color under a tiled roof."""
    pen.box(78, 8, 92, 40, _STONE)
    pen.box(14, 48, 101, 112, c.base)
    pen.poly([(57, 4), (112, 54), (3, 54)], _ROOF)
    pen.box(46, 74, 68, 112, WOOD)
    pen.oval(63, 94, 2.5, 2.5, INK, ink=False)
    for x in (22, 76):
        pen.box(x, 66, x + 17, 84, GLASS)
        pen.line([(x + 8.5, 66), (x + 8.5, 84)], width=3)
    pen.oval(57, 36, 8, 8, GLASS)


def castle(pen: Pen, c: Tint) -> None:
    """Two towers with pointed roofs, a gate between battlements."""
    pen.box(24, 52, 101, 112, c.base)
    for x in (30, 50, 70, 86):
        pen.box(x, 42, x + 10, 56, c.base)
    pen.box(26, 53, 99, 62, c.base, ink=False)
    for x in (4, 93):
        pen.box(x, 40, x + 28, 112, c.base)
        pen.poly([(x + 14, 6), (x + 31, 42), (x - 3, 42)], c.dark)
        pen.box(x + 10, 56, x + 18, 72, DARK, radius=4)
    pen.poly([(14 + 4, 7), (36, 10), (18, 17)], GOLD, ink=False)
    pen.poly([(107, 7), (90, 10), (107, 17)], GOLD, ink=False)
    pen.box(48, 74, 77, 124, WOOD, radius=14)
    pen.line([(62, 76), (62, 112)], width=3)
    pen.line([(4, 112), (121, 112)])


def tent(pen: Pen, c: Tint) -> None:
    """A striped ridge with an open flap."""
    pen.line([(62, 14), (62, 3)], WOOD, 5)
    pen.poly([(62, 10), (122, 92), (3, 92)], c.base)
    pen.poly([(62, 10), (30, 92), (16, 92)], c.light, ink=False)
    pen.poly([(62, 10), (108, 92), (94, 92)], c.light, ink=False)
    pen.poly([(62, 34), (84, 92), (40, 92)], DARK)
    pen.poly([(62, 34), (40, 92), (28, 92)], c.base)
    pen.poly([(62, 34), (84, 92), (96, 92)], c.base)
    pen.line([(3, 92), (62, 10), (122, 92)])


def lighthouse(pen: Pen, c: Tint) -> None:
    """A banded tower with a lamp."""
    pen.poly([(17, 42), (48, 42), (61, 142), (4, 142)], c.base)
    band = CREAM if c.base[2] < 235 else METAL
    for top, bottom in ((62, 80), (100, 118)):
        left, right = (17 - 0.13 * (top - 42), 48 + 0.13 * (top - 42))
        pen.poly([(left, top), (right, top), (right + 2.4, bottom), (left - 2.4, bottom)], band)
    pen.box(25, 122, 40, 142, WOOD)
    pen.box(18, 20, 47, 42, GOLD)
    pen.box(10, 38, 55, 47, DARK)
    pen.poly([(32, 3), (54, 22), (11, 22)], c.dark)


def windmill(pen: Pen, c: Tint) -> None:
    """A tower with four sails."""
    pen.poly([(36, 52), (69, 52), (82, 137), (23, 137)], c.base)
    pen.dome(52, 54, 20, 20, _ROOF)
    pen.box(43, 106, 62, 137, WOOD)
    pen.box(46, 80, 59, 94, GLASS)
    for turn in range(4):
        angle = math.radians(45 + 90 * turn)
        across, along = (-math.sin(angle), math.cos(angle)), (math.cos(angle), math.sin(angle))
        tip = [
            (52 + along[0] * far + across[0] * side, 50 + along[1] * far + across[1] * side)
            for far, side in ((14, 0), (56, 0), (56, 15), (14, 15))
        ]
        pen.poly(tip, CREAM)
        pen.line([(52, 50), tip[1]], WOOD, 6)
    pen.oval(52, 50, 6, 6, DARK)


def bridge(pen: Pen, c: Tint) -> None:
    """An arch with a railing, open below."""
    arch = arc(80, 97, 58, 56, 360, 180)
    outer = [(3, 97), (3, 34), (40, 20), (80, 16), (120, 20), (157, 34), (157, 97)]
    pen.poly([*outer, *arch], c.base)
    pen.curve([(3, 34), (40, 20), (80, 16), (120, 20), (157, 34)], c.light, 9)
    pen.curve([(3, 28), (40, 14), (80, 10), (120, 14), (157, 28)], INK, 5)
    for x, y in (
        (14, 40),
        (32, 50),
        (128, 50),
        (146, 40),
        (10, 66),
        (150, 66),
        (12, 84),
        (148, 84),
    ):
        pen.line([(x - 5, y), (x + 5, y)], c.dark, 4)
