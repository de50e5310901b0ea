"""Furniture, dishes, garments and tools."""

from __future__ import annotations

from polyptych.storybook.pen import CREAM, DARK, GOLD, INK, METAL, WOOD, Pen, Tint, mix

_STEEL = (206, 212, 220)


# Furniture ---------------------------------------------------------------------------------------


def chair(pen: Pen, c: Tint) -> None:
    """A slatted back above a broad seat."""
    for x in (19, 56):
        pen.box(x - 4, 70, x + 4, 100, c.dark)
    for x in (15, 60):
        pen.box(x - 5, 3, x + 5, 70, c.base, radius=4)
    pen.box(12, 10, 63, 24, c.base, radius=4)
    pen.box(16, 33, 59, 46, c.base, radius=3)
    pen.poly([(12, 60), (63, 60), (73, 78), (2, 78)], c.light)
    for x in (8, 67):
        pen.box(x - 5, 76, x + 5, 112, c.base, radius=2)
    pen.box(2, 74, 73, 83, c.base, radius=3)


def table(pen: Pen, c: Tint) -> None:
    """A broad top on four legs, free below."""
    for x in (22, 112):
        pen.box(x - 6, 20, x + 6, 80, c.dark)
    for x in (12, 128):
        pen.box(x - 6, 20, x + 6, 87, c.base)
    pen.box(3, 4, 137, 22, c.base, radius=6)
    pen.line([(12, 10), (96, 10)], c.light, 5)


def bed(pen: Pen, c: Tint) -> None:
    """Headboard at the left, pillow, colored blanket."""
    pen.box(3, 4, 20, 82, WOOD, radius=6)
    pen.box(122, 34, 137, 82, WOOD, radius=6)
    pen.box(12, 58, 130, 72, WOOD)
    pen.box(16, 44, 130, 62, CREAM, radius=6)
    pen.box(20, 30, 52, 48, (252, 250, 246), radius=8)
    pen.box(46, 40, 131, 68, c.base, radius=8)
    pen.box(46, 40, 60, 68, c.light, radius=5)
    pen.oval(82, 54, 4, 4, c.light, ink=False)
    pen.oval(106, 54, 4, 4, c.light, ink=False)


def sofa(pen: Pen, c: Tint) -> None:
    """Two cushions between round arms."""
    pen.box(20, 70, 30, 82, WOOD)
    pen.box(105, 70, 115, 82, WOOD)
    pen.box(14, 5, 121, 60, c.base, radius=14)
    pen.line([(67, 10), (67, 44)], width=4)
    pen.box(22, 44, 68, 64, c.light, radius=6)
    pen.box(67, 44, 113, 64, c.light, radius=6)
    pen.box(16, 60, 119, 75, c.base)
    pen.box(3, 30, 25, 75, c.base, radius=11)
    pen.box(110, 30, 132, 75, c.base, radius=11)


def lamp(pen: Pen, c: Tint) -> None:
    """A floor lamp: the shade carries the color."""
    pen.line([(42, 50), (42, 130)], INK, 11)
    pen.line([(42, 50), (42, 130)], METAL, 4)
    pen.oval(42, 62, 8, 8, GOLD)
    pen.poly([(26, 4), (59, 4), (82, 56), (3, 56)], c.base)
    pen.line([(30, 12), (20, 46)], c.light, 6)
    pen.dome(42, 136, 24, 11, DARK)


def stool(pen: Pen, c: Tint) -> None:
    """A round seat on three legs."""
    pen.tube([(42, 24), (42, 70)], c.dark, 6, straight=True)
    pen.tube([(24, 22), (12, 79)], c.base, 7, straight=True)
    pen.tube([(61, 22), (73, 79)], c.base, 7, straight=True)
    pen.line([(20, 54), (65, 54)], INK, 5)
    pen.oval(42, 18, 38, 14, c.base)
    pen.oval(42, 14, 28, 7, c.light, ink=False)


# Dishes ------------------------------------------------------------------------------------------


def cup(pen: Pen, c: Tint) -> None:
    """A mug, handle at the right."""
    pen.tube([(68, 30), (92, 28), (92, 60), (68, 62)], c.base, 6)
    pen.box(6, 8, 74, 81, c.base, radius=14)
    pen.box(6, 8, 74, 40, c.base, ink=False)
    pen.line([(6, 14), (6, 60)])
    pen.line([(74, 14), (74, 60)])
    pen.oval(40, 14, 34, 10, mix(WOOD, INK, 0.25))
    pen.line([(20, 36), (20, 62)], c.light, 7)


def teapot(pen: Pen, c: Tint) -> None:
    """Spout at the left, handle at the right, lid."""
    pen.tube([(88, 40), (118, 34), (114, 70), (86, 72)], c.base, 7)
    pen.blob([(34, 74), (14, 56), (3, 28), (16, 26), (28, 44), (44, 54)], c.base)
    pen.blob(
        [(62, 28), (92, 38), (100, 64), (84, 90), (62, 92), (40, 90), (24, 64), (32, 38)], c.base
    )
    pen.dome(62, 34, 26, 16, c.dark)
    pen.oval(62, 13, 7, 7, c.dark)
    pen.blob([(38, 56), (46, 44), (50, 52), (42, 68)], c.light, ink=False)


def bowl(pen: Pen, c: Tint) -> None:
    """Wide and half round."""
    pen.box(36, 56, 74, 67, c.dark, radius=4)
    pen.basin(55, 18, 51, 44, c.base)
    pen.oval(55, 17, 51, 13, c.dark)
    pen.oval(55, 18, 40, 7, CREAM, ink=False)
    pen.curve([(24, 38), (34, 48), (46, 54)], c.light, 6)


def jug(pen: Pen, c: Tint) -> None:
    """Narrow neck, lip, big handle."""
    pen.tube([(54, 22), (80, 26), (76, 66), (56, 74)], c.base, 6)
    pen.blob(
        [
            (20, 14),
            (22, 36),
            (6, 66),
            (14, 102),
            (38, 106),
            (62, 102),
            (70, 66),
            (54, 36),
            (56, 14),
        ],
        c.base,
    )
    pen.poly([(20, 20), (4, 6), (56, 6), (58, 20)], c.base)
    pen.curve([(9, 66), (38, 74), (67, 66)], c.light, 8)


def pan(pen: Pen, c: Tint) -> None:
    """A frying pan with a long handle."""
    pen.box(76, 24, 132, 38, WOOD, radius=7)
    pen.oval(124, 31, 3, 3, INK, ink=False)
    pen.basin(46, 28, 42, 34, c.base)
    pen.oval(46, 27, 43, 15, c.base)
    pen.oval(46, 28, 33, 9, DARK, ink=False)


# Garments ----------------------------------------------------------------------------------------


def shirt(pen: Pen, c: Tint) -> None:
    """Short sleeves, a round collar."""
    pen.poly(
        [
            (40, 5),
            (75, 5),
            (94, 14),
            (112, 40),
            (92, 52),
            (86, 44),
            (86, 91),
            (29, 91),
            (29, 44),
            (22, 52),
            (3, 40),
            (21, 14),
        ],
        c.base,
    )
    pen.basin(57, 5, 17, 14, c.light)
    pen.line([(86, 44), (86, 32)], width=3.5)
    pen.line([(29, 44), (29, 32)], width=3.5)
    pen.box(62, 40, 76, 54, c.dark, radius=2)


def dress(pen: Pen, c: Tint) -> None:
    """A flaring skirt with a belt."""
    pen.poly([(26, 5), (38, 5), (45, 18), (52, 5), (64, 5), (62, 48), (28, 48)], c.base)
    pen.blob([(28, 50), (62, 50), (86, 100), (66, 110), (45, 106), (24, 110), (4, 100)], c.base)
    pen.box(27, 44, 63, 54, c.dark)
    for x in (28, 45, 62):
        pen.line([(45 + (x - 45) * 0.6, 66), (x, 96)], c.light, 5)


def sock(pen: Pen, c: Tint) -> None:
    """Toe to the left, striped cuff."""
    pen.blob(
        [(42, 20), (78, 20), (78, 70), (70, 96), (36, 106), (8, 102), (6, 84), (36, 70)], c.base
    )
    pen.blob([(8, 102), (6, 84), (22, 78), (26, 104)], c.light)
    pen.blob([(62, 70), (78, 64), (78, 82), (70, 94)], c.light, ink=False)
    pen.box(38, 4, 82, 24, c.light, radius=5)
    pen.line([(45, 38), (75, 38)], c.light, 6)
    pen.line([(45, 52), (75, 52)], c.light, 6)


def boot(pen: Pen, c: Tint) -> None:
    """Toe to the left, a dark sole."""
    pen.blob(
        [(44, 10), (88, 10), (86, 60), (90, 88), (40, 90), (6, 88), (10, 66), (40, 56)], c.base
    )
    pen.box(4, 84, 92, 97, DARK, radius=4)
    pen.box(42, 4, 91, 19, c.dark, radius=5)
    for y in (32, 44, 56):
        pen.line([(42, y), (58, y + 3)], CREAM if c.base[2] < 235 else DARK, 4)


def mitten(pen: Pen, c: Tint) -> None:
    """Thumb at the left, knitted cuff."""
    pen.blob([(30, 60), (6, 54), (3, 36), (14, 30), (30, 44)], c.base)
    pen.blob([(28, 70), (26, 30), (40, 6), (66, 6), (80, 30), (78, 74), (54, 80)], c.base)
    pen.box(24, 48, 36, 64, c.base, ink=False)
    pen.box(24, 76, 80, 101, c.light, radius=7)
    for x in (38, 52, 66):
        pen.line([(x, 82), (x, 96)], c.dark, 4)
    pen.curve([(44, 34), (54, 44), (64, 34)], c.light, 6)


# Tools: handle or head carries the color ---------------------------------------------------------


def hammer(pen: Pen, c: Tint) -> None:
    """A steel head on a colored handle."""
    pen.box(29, 26, 55, 107, c.base, radius=9)
    pen.line([(37, 46), (37, 94)], c.light, 4)
    pen.poly([(58, 8), (74, 10), (83, 30), (80, 38), (66, 30), (58, 34)], _STEEL)
    pen.box(4, 4, 24, 38, _STEEL, radius=4)
    pen.box(20, 8, 60, 34, _STEEL, radius=3)


def saw(pen: Pen, c: Tint) -> None:
    """A toothed blade, colored grip at the right."""
    teeth = [(4 + 8 * step, 58 if step % 2 else 48) for step in range(11)]
    pen.poly([(4, 40), (88, 14), (88, 58), *reversed(teeth)], _STEEL)
    pen.blob([(84, 8), (108, 4), (127, 18), (126, 50), (112, 66), (88, 64), (82, 36)], c.base)
    pen.blob([(96, 24), (110, 22), (114, 36), (108, 48), (96, 46)], INK)
    pen.blob([(98, 27), (109, 25), (112, 36), (107, 45), (98, 43)], c.dark, ink=False)


def wrench(pen: Pen, c: Tint) -> None:
    """An open jaw above, a ring below."""
    pen.box(18, 34, 37, 96, c.base, radius=4)
    pen.blob(
        [
            (16, 4),
            (18, 20),
            (27, 27),
            (37, 20),
            (39, 4),
            (52, 18),
            (48, 38),
            (27, 48),
            (7, 38),
            (3, 18),
        ],
        c.base,
    )
    pen.oval(27, 98, 19, 19, c.base)
    pen.oval(27, 98, 8, 8, c.dark)
    pen.line([(27, 54), (27, 76)], c.light, 6)


def shovel(pen: Pen, c: Tint) -> None:
    """A colored blade at the foot of a wooden shaft."""
    pen.box(19, 10, 31, 80, WOOD)
    pen.box(8, 4, 42, 15, WOOD, radius=5)
    pen.blob([(6, 74), (25, 70), (44, 74), (44, 100), (25, 123), (6, 100)], c.base)
    pen.line([(25, 80), (25, 104)], c.light, 5)


def ladder(pen: Pen, c: Tint) -> None:
    """Two rails and five rungs."""
    for y in (20, 41, 62, 83, 104):
        pen.tube([(12, y), (48, y)], c.light, 5, straight=True)
    for x in (10, 50):
        pen.box(x - 6, 3, x + 6, 122, c.base, radius=4)
