"""Toys and instruments."""

from __future__ import annotations

import math

from polyptych.storybook.pen import CREAM, DARK, GOLD, INK, METAL, WOOD, Pen, Tint, arc

# Toys --------------------------------------------------------------------------------------------


def ball(pen: Pen, c: Tint) -> None:
    """A beach ball: panels that meet in one point."""
    pen.oval(47, 47, 44, 44, c.base)
    for start in (200, 320, 80):
        edge = arc(47, 47, 42, 42, start, start + 60)
        pen.poly([(40, 38), *edge], CREAM if c.base[2] < 235 else METAL, ink=False)
        for end in (edge[0], edge[-1]):
            pen.line([(40, 38), end], width=3)
    pen.line(arc(47, 47, 44, 44, 0, 360))
    pen.oval(40, 38, 7, 7, c.dark)


def kite(pen: Pen, c: Tint) -> None:
    """A diamond with a tail of bows."""
    pen.curve([(46, 78), (36, 90), (50, 102), (40, 116)], INK, 4)
    pen.poly([(30, 90), (44, 92), (30, 100)], c.base)
    pen.poly([(60, 96), (44, 102), (58, 108)], c.base)
    pen.poly([(47, 3), (91, 36), (47, 82), (4, 36)], c.base)
    pen.poly([(47, 3), (91, 36), (47, 36)], c.light)
    pen.poly([(47, 82), (4, 36), (47, 36)], c.light)
    pen.poly([(47, 3), (47, 36), (4, 36)], c.base)


def balloon(pen: Pen, c: Tint) -> None:
    """Floats, string below."""
    pen.curve([(37, 84), (42, 94), (33, 104), (38, 117)], INK, 4)
    pen.poly([(37, 78), (46, 90), (28, 90)], c.dark)
    pen.blob([(37, 3), (63, 14), (71, 42), (58, 70), (37, 82), (16, 70), (4, 42), (12, 14)], c.base)
    pen.blob([(18, 34), (24, 18), (32, 16), (26, 30)], c.light, ink=False)


def robot(pen: Pen, c: Tint) -> None:
    """Square head, antenna, buttons."""
    pen.line([(45, 16), (45, 6)], INK, 5)
    pen.oval(45, 6, 5, 5, GOLD)
    pen.tube([(18, 58), (8, 66), (8, 82)], METAL, 6)
    pen.tube([(72, 58), (82, 66), (82, 82)], METAL, 6)
    for x in (32, 58):
        pen.box(x - 9, 88, x + 9, 107, METAL, radius=3)
    pen.box(18, 50, 72, 93, c.base, radius=6)
    pen.box(16, 14, 74, 50, c.base, radius=8)
    for x in (33, 57):
        pen.oval(x, 28, 8, 8, CREAM)
        pen.eye(x, 28, 4)
    pen.line([(34, 42), (56, 42)], width=4)
    pen.box(30, 60, 60, 80, c.light, radius=3)
    pen.oval(38, 70, 3.5, 3.5, INK, ink=False)
    pen.oval(52, 70, 3.5, 3.5, INK, ink=False)


def pinwheel(pen: Pen, c: Tint) -> None:
    """Four bent sails on a stick."""
    pen.line([(45, 44), (45, 117)], INK, 9)
    pen.line([(45, 44), (45, 116)], WOOD, 4)
    for turn in range(4):
        cos, sin = math.cos(math.pi / 2 * turn), math.sin(math.pi / 2 * turn)
        shape = [(0, 0), (6, -40), (40, -40)]
        sail = [(45 + x * cos - y * sin, 44 + x * sin + y * cos) for x, y in shape]
        fold = [
            (45 + x * cos - y * sin, 44 + x * sin + y * cos)
            for x, y in ((0, 0), (40, -40), (26, -10))
        ]
        pen.poly(fold, c.light)
        pen.poly(sail, c.base)
    pen.oval(45, 44, 6, 6, GOLD)


# Instruments -------------------------------------------------------------------------------------


def guitar(pen: Pen, c: Tint) -> None:
    """Waisted body, long neck."""
    pen.box(31, 12, 44, 72, WOOD)
    pen.box(26, 3, 49, 20, DARK, radius=4)
    pen.blob(
        [
            (37, 54),
            (58, 58),
            (62, 74),
            (58, 84),
            (71, 102),
            (58, 121),
            (37, 122),
            (16, 121),
            (4, 102),
            (17, 84),
            (13, 74),
            (17, 58),
        ],
        c.base,
    )
    pen.oval(37, 82, 11, 11, DARK)
    pen.box(25, 104, 50, 110, DARK)
    pen.line([(35, 14), (35, 104)], CREAM, 2)
    pen.line([(40, 14), (40, 104)], CREAM, 2)


def drum(pen: Pen, c: Tint) -> None:
    """Laced sides, two sticks behind."""
    pen.poly([(4, 22), (96, 22), (94, 74), (50, 87), (6, 74)], c.base)
    pen.basin(50, 74, 44, 13, c.base)
    pen.box(8, 60, 92, 76, c.base, ink=False)
    zigzag = [(6, 30), (20, 74), (36, 36), (50, 80), (64, 36), (80, 74), (94, 30)]
    pen.line(zigzag, CREAM if c.base[2] < 235 else GOLD, 5)
    pen.oval(50, 20, 46, 15, CREAM)
    pen.line([(30, 20), (52, 6)], WOOD, 6)
    pen.line([(70, 22), (60, 6)], WOOD, 6)


def trumpet(pen: Pen, c: Tint) -> None:
    """Bell at the left, three valves."""
    pen.tube([(44, 24), (96, 24), (108, 36), (96, 50), (56, 50), (48, 38)], c.base, 6)
    pen.tube([(30, 32), (120, 32)], c.base, 7, straight=True)
    pen.poly([(38, 26), (20, 20), (4, 5), (4, 60), (20, 44), (38, 39)], c.base)
    pen.oval(6, 32, 4, 27, c.dark)
    for x in (62, 76, 90):
        pen.box(x - 5, 10, x + 5, 50, c.light, radius=3)
        pen.box(x - 6, 4, x + 6, 12, GOLD, radius=3)
    pen.box(118, 26, 127, 38, METAL, radius=3)


def bell(pen: Pen, c: Tint) -> None:
    """With a bow handle and a clapper."""
    pen.tube([(36, 16), (47, 6), (58, 16)], WOOD, 5)
    pen.oval(47, 89, 10, 8, DARK)
    pen.blob(
        [(47, 12), (68, 24), (74, 58), (91, 82), (47, 86), (3, 82), (20, 58), (26, 24)], c.base
    )
    pen.poly([(5, 78), (89, 78), (91, 87), (3, 87)], c.dark)
    pen.curve([(34, 28), (30, 44), (28, 60)], c.light, 7)


def harp(pen: Pen, c: Tint) -> None:
    """A bowed frame with strings."""
    for x in (26, 38, 50, 62):
        pen.line([(x, 18 + (x - 26) * 0.12), (x, 104 - (x - 20) * 1.1)], INK, 2.5)
    pen.tube([(14, 106), (46, 86), (72, 48), (80, 22)], c.base, 10)
    pen.tube([(12, 12), (36, 18), (56, 8), (80, 22)], c.base, 9)
    pen.tube([(12, 12), (14, 106)], c.base, 10, straight=True)
    pen.box(4, 100, 44, 112, c.dark, radius=4)
