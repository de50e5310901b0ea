"""A pen for picture-book shapes: flat fills, one ink for every outline, soft curves.

Sprites are drawn in design units, of which 100 are one unit of a kind's size
(:data:`polyptych.storybook.vocabulary.SIZES`), on a transparent canvas several times larger than
they are shown; shrinking smooths their edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from polyptych.storybook.vocabulary import RGB

Point = tuple[float, float]

INK: RGB = (74, 54, 62)
WOOD: RGB = (176, 124, 82)
METAL: RGB = (196, 202, 210)
DARK: RGB = (92, 84, 96)
GLASS: RGB = (198, 228, 240)
CREAM: RGB = (255, 246, 226)
LEAF: RGB = (122, 176, 96)
GOLD: RGB = (244, 198, 84)

_OVERSAMPLING = 4


def mix(one: RGB, two: RGB, part: float) -> RGB:
    """``one`` with a part (0 to 1) of ``two`` stirred in."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, two, strict=True))
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Tint:
    """The color of a thing with a lighter and a darker neighbor for its parts."""

    base: RGB

    @property
    def light(self) -> RGB:
        """For parts that catch light; a cream for white things."""
        return mix(self.base, (255, 255, 255), 0.45)

    @property
    def dark(self) -> RGB:
        """For parts in shadow."""
        return mix(self.base, INK, 0.24)


class Pen:
    """Draws on a transparent canvas of ``width`` × ``height`` design units.

    Args:
        width: Units from left to right.
        height: Units from top to bottom.
        resolution: Pixels per unit of the finished sprite.
        stroke: Width of the outline in units.
        inset: Rim, in units, kept free for outlines; everything is squeezed to fit inside.
    """

    def __init__(
        self,
        width: float,
        height: float,
        resolution: float,
        *,
        stroke: float = 5.0,
        inset: float = 2.0,
    ) -> None:
        self.stroke = stroke
        self._unit = resolution * _OVERSAMPLING
        self._inset = inset
        self._squeeze = (1 - 2 * inset / width, 1 - 2 * inset / height)
        self._pixels = (
            max(1, round(width * resolution)) * _OVERSAMPLING,
            max(1, round(height * resolution)) * _OVERSAMPLING,
        )
        self._image = Image.new("RGBA", self._pixels, (*INK, 0))
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        """The sprite at its resolution, with light falling in from the upper left."""
        sprite = self._image.reduce(_OVERSAMPLING)
        pixels = np.asarray(sprite).astype(np.float32)
        rows = np.linspace(0, 1, pixels.shape[0], dtype=np.float32)[:, None]
        columns = np.linspace(0, 1, pixels.shape[1], dtype=np.float32)[None, :]
        light = 1.04 - 0.08 * rows - 0.04 * columns
        pixels[..., :3] *= light[..., None]
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")

    # Closed shapes -------------------------------------------------------------------------------

    def poly(self, points: Sequence[Point], fill: RGB, *, ink: bool = True) -> None:
        """A polygon with rounded corners of the outline."""
        scaled = self._scale(points)
        self._draw.polygon(scaled, fill=fill)
        if ink:
            self._stroke_path([*scaled, scaled[0], scaled[1]], self.stroke, INK)

    def blob(self, points: Sequence[Point], fill: RGB, *, ink: bool = True) -> None:
        """A smooth closed shape through the points."""
        self.poly(smooth(points, closed=True), fill, ink=ink)

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: RGB, *, ink: bool = True
    ) -> None:
        """An ellipse around (x, y)."""
        self.poly(arc(x, y, rx, ry, 0, 360), fill, ink=ink)

    def dome(
        self, x: float, y: float, rx: float, ry: float, fill: RGB, *, ink: bool = True
    ) -> None:
        """The upper half of an ellipse, flat at ``y``."""
        self.poly(arc(x, y, rx, ry, 180, 360), fill, ink=ink)

    def basin(
        self, x: float, y: float, rx: float, ry: float, fill: RGB, *, ink: bool = True
    ) -> None:
        """The lower half of an ellipse, flat at ``y``."""
        self.poly(arc(x, y, rx, ry, 0, 180), fill, ink=ink)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        fill: RGB,
        *,
        radius: float = 0.0,
        ink: bool = True,
    ) -> None:
        """A rectangle with rounded corners."""
        if radius <= 0:
            self.poly([(left, top), (right, top), (right, bottom), (left, bottom)], fill, ink=ink)
            return
        r = min(radius, (right - left) / 2, (bottom - top) / 2)
        self.poly(
            [
                *arc(right - r, top + r, r, r, 270, 360),
                *arc(right - r, bottom - r, r, r, 0, 90),
                *arc(left + r, bottom - r, r, r, 90, 180),
                *arc(left + r, top + r, r, r, 180, 270),
            ],
            fill,
            ink=ink,
        )

    # Lines ---------------------------------------------------------------------------------------

    def line(self, points: Sequence[Point], color: RGB = INK, width: float | None = None) -> None:
        """A line with round ends, as wide as the outline unless told."""
        self._stroke_path(self._scale(points), width or self.stroke, color)

    def curve(self, points: Sequence[Point], color: RGB = INK, width: float | None = None) -> None:
        """A smooth line through the points."""
        self.line(smooth(points, closed=False), color, width)

    def tube(
        self, points: Sequence[Point], fill: RGB, width: float, *, straight: bool = False
    ) -> None:
        """A thick outlined line: arms, handles, legs."""
        path = list(points) if straight else smooth(points, closed=False)
        self.line(path, INK, width + 2 * self.stroke)
        self.line(path, fill, width)

    def eye(self, x: float, y: float, radius: float = 5.0) -> None:
        """A dot that looks at you."""
        self.oval(x, y, radius, radius, INK, ink=False)
        self.oval(
            x - radius * 0.3, y - radius * 0.35, radius * 0.36, radius * 0.36, CREAM, ink=False
        )

    # Pixels --------------------------------------------------------------------------------------

    def _scale(self, points: Sequence[Point]) -> list[Point]:
        unit, inset, (across, down) = self._unit, self._inset, self._squeeze
        return [((x * across + inset) * unit, (y * down + inset) * unit) for x, y in points]

    def _stroke_path(self, pixels: list[Point], width: float, color: RGB) -> None:
        """A line whose ends and sharp corners are rounded (Pillow's own joints are slow)."""
        thickness = max(1, round(width * self._unit))
        self._draw.line(pixels, fill=color, width=thickness)
        radius = (thickness - 1) / 2  # Pillow counts both rims in
        corners = [pixels[0], pixels[-1]]
        for before, here, after in zip(pixels, pixels[1:], pixels[2:], strict=False):
            ax, ay, bx, by = *_minus(here, before), *_minus(after, here)
            # |cross| = |a||b| sin(turn), and a turn opens a gap of about radius · sin(turn) pixels.
            cross, dot = ax * by - ay * bx, ax * bx + ay * by
            if dot < 0 or (cross * radius) ** 2 > (ax * ax + ay * ay) * (bx * bx + by * by):
                corners.append(here)
        for x, y in corners:
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _minus(one: Point, two: Point) -> Point:
    return one[0] - two[0], one[1] - two[1]


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points on an ellipse, angles in degrees clockwise from the right."""
    steps = max(4, round(abs(end - start) / 10))
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def smooth(points: Sequence[Point], *, closed: bool, steps: int = 7) -> list[Point]:
    """A Catmull-Rom spline through the points."""
    if closed:
        padded = [points[-1], *points, points[0], points[1]]
    else:
        padded = [points[0], *points, points[-1]]
    path: list[Point] = []
    for first, second, third, fourth in zip(
        padded, padded[1:], padded[2:], padded[3:], strict=False
    ):
        for step in range(steps):
            t = step / steps
            path.append(
                (
                    _spline(first[0], second[0], third[0], fourth[0], t),
                    _spline(first[1], second[1], third[1], fourth[1], t),
                )
            )
    if not closed:
        path.append(points[-1])
    return path


def _spline(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (
        2 * b
        + (c - a) * t
        + (2 * a - 5 * b + 4 * c - d) * t * t
        + (3 * b - a - 3 * c + d) * t * t * t
    )
