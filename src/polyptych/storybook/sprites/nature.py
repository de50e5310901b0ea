"""Animals, fruits and plants."""

from __future__ import annotations

from polyptych.storybook.pen import CREAM, DARK, GOLD, INK, LEAF, WOOD, Pen, Tint, arc, mix

_ORANGE = (242, 164, 72)
_TURTLE = (176, 196, 128)
_TRUNK = mix(WOOD, INK, 0.1)


# Animals, in units of 100 per size ---------------------------------------------------------------


def cat(pen: Pen, c: Tint) -> None:
    """Sitting, tail up at its side."""
    pen.tube([(62, 90), (80, 84), (83, 66), (76, 56)], c.base, 8)
    pen.blob([(45, 44), (66, 66), (70, 94), (45, 97), (20, 94), (24, 66)], c.base)
    pen.blob([(45, 62), (55, 76), (52, 94), (38, 94), (35, 76)], c.light, ink=False)
    pen.poly([(14, 30), (12, 3), (36, 14)], c.base)
    pen.poly([(76, 30), (78, 3), (54, 14)], c.base)
    pen.oval(45, 34, 34, 26, c.base)
    pen.eye(32, 32, 5.5)
    pen.eye(58, 32, 5.5)
    pen.poly([(41, 42), (49, 42), (45, 47)], (226, 120, 130), ink=False)
    pen.line([(12, 38), (25, 42)], width=2.5)
    pen.line([(12, 48), (25, 46)], width=2.5)
    pen.line([(78, 38), (65, 42)], width=2.5)
    pen.line([(78, 48), (65, 46)], width=2.5)
    pen.line([(45, 80), (45, 96)], width=3)


def rabbit(pen: Pen, c: Tint) -> None:
    """Sitting upright, long ears."""
    pen.oval(66, 92, 7, 7, CREAM)
    pen.blob([(26, 44), (15, 20), (22, 3), (32, 18), (35, 42)], c.base)
    pen.blob([(48, 44), (47, 18), (58, 3), (62, 20), (52, 44)], c.base)
    pen.blob([(26, 36), (22, 20), (24, 12), (29, 22)], (248, 196, 200), ink=False)
    pen.blob([(53, 36), (54, 20), (57, 12), (58, 22)], (248, 196, 200), ink=False)
    pen.blob([(37, 62), (60, 78), (62, 104), (37, 107), (12, 104), (14, 78)], c.base)
    pen.oval(37, 92, 13, 13, c.light, ink=False)
    pen.oval(37, 52, 28, 22, c.base)
    pen.eye(27, 50, 5)
    pen.eye(47, 50, 5)
    pen.oval(37, 58, 3.5, 2.5, (226, 120, 130), ink=False)
    pen.line([(37, 60), (37, 66)], width=2.5)
    pen.oval(20, 103, 11, 5, c.base)
    pen.oval(54, 103, 11, 5, c.base)


def fish(pen: Pen, c: Tint) -> None:
    """Swims to the left, tail at the right."""
    pen.blob([(46, 18), (58, 3), (76, 12), (68, 24)], c.dark)
    pen.blob([(48, 58), (56, 72), (70, 68), (64, 54)], c.dark)
    pen.poly([(74, 38), (106, 10), (100, 38), (106, 66)], c.dark)
    pen.blob([(4, 40), (26, 18), (56, 14), (86, 38), (56, 62), (26, 60)], c.base)
    pen.curve([(34, 18), (42, 38), (34, 59)], width=3.5)
    pen.curve([(56, 30), (62, 38), (56, 46)], c.light, 4)
    pen.curve([(68, 30), (74, 38), (68, 46)], c.light, 4)
    pen.oval(22, 33, 7, 7, CREAM, ink=False)
    pen.eye(21, 33, 4.5)
    pen.curve([(8, 46), (14, 48), (18, 46)], width=3)


def bird(pen: Pen, c: Tint) -> None:
    """In flight to the left, wings raised."""
    pen.blob([(50, 46), (60, 10), (84, 4), (76, 34), (68, 52)], c.dark)
    pen.poly([(72, 52), (97, 46), (97, 60), (90, 72), (70, 66)], c.dark)
    pen.poly([(18, 44), (2, 50), (18, 56)], _ORANGE)
    pen.blob([(14, 46), (26, 28), (44, 34), (80, 54), (68, 74), (40, 78), (20, 66)], c.base)
    pen.blob([(26, 62), (46, 60), (58, 70), (40, 76)], c.light, ink=False)
    pen.blob([(40, 54), (34, 22), (44, 3), (58, 24), (62, 54), (52, 62)], c.base)
    pen.curve([(44, 20), (48, 32), (48, 46)], width=3)
    pen.eye(27, 43, 5)


def turtle(pen: Pen, c: Tint) -> None:
    """The shell carries the color."""
    pen.poly([(98, 56), (112, 62), (96, 66)], _TURTLE)
    for x in (32, 82):
        pen.box(x - 10, 52, x + 10, 72, _TURTLE, radius=8)
    pen.blob([(30, 52), (14, 58), (3, 46), (6, 32), (20, 28), (32, 40)], _TURTLE)
    pen.dome(64, 59, 40, 54, c.base)
    pen.box(22, 55, 107, 64, c.dark, radius=5)
    pen.poly([(52, 24), (76, 24), (84, 42), (64, 52), (44, 42)], c.light)
    for start, end in (((52, 24), (44, 10)), ((76, 24), (86, 12)), ((84, 42), (102, 48))):
        pen.line([start, end], width=3.5)
    pen.line([(44, 42), (26, 48)], width=3.5)
    pen.eye(13, 38, 4)


def elephant(pen: Pen, c: Tint) -> None:
    """Faces left, trunk down."""
    pen.curve([(112, 36), (116, 50), (113, 60)], width=5)
    for x in (52, 98):
        pen.box(x - 11, 60, x + 11, 96, c.dark, radius=5)
    pen.blob([(40, 22), (74, 6), (108, 20), (115, 54), (104, 74), (60, 78), (38, 62)], c.base)
    for x in (64, 88):
        pen.box(x - 11, 62, x + 11, 97, c.base, radius=5)
    pen.box(56, 52, 98, 74, c.base, radius=10, ink=False)
    pen.tube([(24, 44), (12, 60), (12, 80), (20, 90)], c.base, 12)
    pen.blob([(34, 12), (54, 22), (52, 54), (32, 62), (14, 48), (16, 24)], c.base)
    pen.poly([(20, 58), (14, 74), (30, 62)], CREAM)
    pen.blob([(46, 18), (72, 20), (72, 52), (56, 60), (44, 44)], c.light)
    pen.eye(28, 34, 4.5)


def butterfly(pen: Pen, c: Tint) -> None:
    """Wings spread."""
    for side in (-1, 1):
        x = 50
        pen.blob(
            [
                (x + side * 4, 54),
                (x + side * 30, 54),
                (x + side * 40, 72),
                (x + side * 26, 90),
                (x + side * 8, 78),
            ],
            c.dark,
        )
        pen.blob(
            [
                (x + side * 4, 56),
                (x + side * 12, 24),
                (x + side * 38, 10),
                (x + side * 47, 28),
                (x + side * 34, 56),
            ],
            c.base,
        )
        pen.oval(x + side * 31, 32, 9, 9, c.light, ink=False)
        pen.oval(x + side * 24, 74, 6, 6, c.light, ink=False)
        pen.curve([(x, 30), (x + side * 6, 12), (x + side * 14, 5)], width=4)
    pen.oval(50, 56, 6, 30, DARK)


# Fruits ------------------------------------------------------------------------------------------


def apple(pen: Pen, c: Tint) -> None:
    """Round, dented at stem and base, one leaf."""
    pen.blob(
        [
            (47, 30),
            (68, 20),
            (90, 36),
            (88, 66),
            (68, 94),
            (47, 91),
            (27, 94),
            (7, 66),
            (5, 36),
            (27, 20),
        ],
        c.base,
    )
    pen.blob([(18, 38), (28, 30), (30, 38), (20, 52)], c.light, ink=False)
    pen.tube([(47, 34), (46, 20), (50, 8)], WOOD, 3)
    pen.blob([(52, 20), (62, 6), (82, 6), (74, 20)], LEAF)


def banana(pen: Pen, c: Tint) -> None:
    """A crescent."""
    pen.blob(
        [(8, 10), (20, 8), (32, 34), (60, 50), (92, 42), (105, 50), (92, 70), (56, 76), (22, 56)],
        c.base,
    )
    pen.curve([(17, 22), (30, 46), (58, 62), (92, 56)], c.dark, 4)
    pen.poly([(6, 12), (8, 4), (20, 3), (21, 12)], WOOD)
    pen.oval(103, 51, 4, 5, INK, ink=False)


def pear(pen: Pen, c: Tint) -> None:
    """Narrow above, wide below."""
    pen.blob(
        [
            (40, 20),
            (54, 26),
            (58, 48),
            (76, 72),
            (70, 100),
            (40, 107),
            (10, 100),
            (4, 72),
            (22, 48),
            (26, 26),
        ],
        c.base,
    )
    pen.blob([(18, 70), (28, 60), (30, 72), (20, 86)], c.light, ink=False)
    pen.tube([(40, 24), (42, 8)], WOOD, 3)
    pen.blob([(44, 18), (54, 4), (74, 8), (62, 20)], LEAF)


def cherry(pen: Pen, c: Tint) -> None:
    """Two on their stems."""
    pen.curve([(24, 64), (34, 34), (62, 8)], mix(LEAF, INK, 0.3), 6)
    pen.curve([(70, 66), (68, 36), (62, 8)], mix(LEAF, INK, 0.3), 6)
    pen.blob([(60, 10), (40, 3), (18, 12), (38, 24)], LEAF)
    for x, y in ((25, 75), (70, 77)):
        pen.oval(x, y, 21, 21, c.base)
        pen.oval(x - 8, y - 7, 5, 6, c.light, ink=False)


def pineapple(pen: Pen, c: Tint) -> None:
    """A checkered oval with a crown of leaves."""
    for tip in ((8, 18), (62, 18), (20, 6), (50, 6), (35, 2)):
        pen.poly([(22, 44), tip, (48, 44)], LEAF)
    pen.oval(35, 78, 31, 39, c.base)
    for start, end in (((22, 46), (62, 88)), ((8, 60), (52, 106)), ((6, 80), (34, 114))):
        pen.line([start, end], c.dark, 4)
        pen.line([(70 - start[0], start[1]), (70 - end[0], end[1])], c.dark, 4)
    pen.line(arc(35, 78, 31, 39, 0, 360))


# Plants: the leaves carry the color --------------------------------------------------------------


def tree(pen: Pen, c: Tint) -> None:
    """A round crown on a bare trunk."""
    pen.poly([(54, 70), (72, 70), (74, 134), (84, 147), (42, 147), (52, 134)], _TRUNK)
    pen.tube([(62, 96), (78, 80)], _TRUNK, 6)
    pen.blob(
        [
            (62, 4),
            (88, 10),
            (98, 26),
            (120, 40),
            (116, 66),
            (96, 82),
            (62, 78),
            (30, 84),
            (8, 68),
            (6, 42),
            (26, 28),
            (38, 10),
        ],
        c.base,
    )
    for x, y in ((38, 34), (68, 26), (92, 50), (54, 58), (26, 58)):
        pen.curve([(x - 9, y), (x, y + 6), (x + 9, y)], c.dark, 4)
    pen.blob([(28, 36), (40, 20), (52, 16), (40, 32)], c.light, ink=False)


def palm(pen: Pen, c: Tint) -> None:
    """A leaning trunk with long leaves."""
    pen.poly([(56, 46), (70, 46), (72, 90), (82, 147), (54, 147), (62, 92)], _TRUNK)
    for y in (66, 86, 106, 126):
        pen.line([(62, y), (71 + (y - 66) / 12, y - 2)], INK, 3)
    leaves = (
        [(64, 42), (38, 24), (12, 34), (3, 62), (24, 48), (46, 48)],
        [(64, 42), (92, 24), (118, 34), (127, 62), (106, 48), (84, 48)],
        [(64, 42), (48, 14), (22, 4), (6, 16), (30, 22), (48, 36)],
        [(64, 42), (82, 14), (108, 4), (124, 16), (100, 22), (82, 36)],
    )
    for leaf in leaves:
        pen.blob(leaf, c.base)
        pen.curve([leaf[0], leaf[1], leaf[2]], c.dark, 3)
    pen.oval(56, 50, 7, 7, WOOD)
    pen.oval(73, 50, 7, 7, WOOD)


def pine(pen: Pen, c: Tint) -> None:
    """Three tiers of a fir."""
    pen.box(39, 112, 56, 137, _TRUNK)
    pen.poly([(47, 60), (92, 118), (3, 118)], c.dark)
    pen.poly([(47, 32), (83, 86), (12, 86)], c.base)
    pen.poly([(47, 4), (73, 54), (22, 54)], c.base)
    pen.line([(38, 36), (46, 20)], c.light, 5)
    pen.line([(28, 72), (36, 60)], c.light, 5)


def cactus(pen: Pen, c: Tint) -> None:
    """Two arms up, in a pot."""
    pen.tube([(44, 66), (14, 64), (14, 36)], c.base, 14)
    pen.tube([(44, 56), (76, 54), (76, 24)], c.base, 14)
    pen.box(30, 4, 60, 96, c.base, radius=15)
    pen.line([(40, 16), (40, 84)], c.dark, 3.5)
    pen.line([(50, 16), (50, 84)], c.dark, 3.5)
    pen.poly([(22, 86), (68, 86), (62, 112), (28, 112)], (198, 120, 86))


def flower(pen: Pen, c: Tint) -> None:
    """Five petals on a stem with two leaves."""
    pen.line([(40, 50), (40, 112)], mix(LEAF, INK, 0.3), 7)
    pen.blob([(40, 102), (56, 78), (76, 78), (64, 98)], LEAF)
    pen.blob([(40, 106), (24, 84), (4, 84), (16, 104)], LEAF)
    for x, y in ((40, 17), (62, 32), (54, 57), (26, 57), (18, 32)):
        pen.oval(x, y, 14, 14, c.base)
    pen.oval(40, 39, 12, 12, GOLD if c.base[2] > 90 else WOOD)
