"""Boxes of referring expressions (RefCOCO, RefCOCO+, RefCOCOg): right at an overlap of one half.

LLaVA writes a box as ``[x1, y1, x2, y2]``, each number from 0 to 1 of the image *after* it was
padded to a square, with the image in the middle. Truths are pixels of the image as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.schema import Example, Prediction

LEAST_OVERLAP = 0.5
"""Intersection over union from which a box is right."""

_NUMBER = r"\s*(-?\d*\.?\d+)\s*"
_BOX = re.compile(r"[\[(]" + ",".join([_NUMBER] * 4) + r"[\])]")


class Box(NamedTuple):
    """Left, top, right and bottom."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """0 for a box that is inside out."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)


def read_box(answer: str) -> Box | None:
    """The first ``[x1, y1, x2, y2]`` in an answer; None without one or where it is inside out."""
    found = _BOX.search(answer)
    if found is None:
        return None
    box = Box(*map(float, found.groups()))
    return box if box.area > 0 else None


def in_square(box: Box, width: float, height: float) -> Box:
    """A box in pixels as fractions of the square-padded image.

    Example:
        >>> in_square(Box(0, 0, 100, 50), 100, 50)
        Box(x1=0.0, y1=0.25, x2=1.0, y2=0.75)
    """
    side = max(width, height)
    left, top = (side - width) / 2, (side - height) / 2
    return Box(
        (box.x1 + left) / side, (box.y1 + top) / side, (box.x2 + left) / side, (box.y2 + top) / side
    )


def overlap(first: Box, second: Box) -> float:
    """Intersection over union, from 0 to 1; 0 for boxes without area."""
    shared = Box(
        max(first.x1, second.x1),
        max(first.y1, second.y1),
        min(first.x2, second.x2),
        min(first.y2, second.y2),
    ).area
    union = first.area + second.area - shared
    return shared / union if union > 0 else 0.0


def box_scorer() -> Scorer:
    """``accuracy@0.5[square]``, ``mean_iou[square]``, and the shares of what cannot be right.

    ``unreadable`` are answers without a box (NaN is none), ``out_of_range`` boxes that leave the
    image, such as ones in pixels or thousandths instead of fractions.

    An example has ``box`` (x1, y1, x2, y2 in pixels), ``width`` and ``height`` in its metadata.
    """

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        said = [read_box(prediction.text) for prediction in predictions]
        overlaps = [
            overlap(box, _truth(example)) if box else 0.0
            for box, example in zip(said, examples, strict=True)
        ]
        return [
            mean_of("accuracy@0.5[square]", ids, [value >= LEAST_OVERLAP for value in overlaps]),
            mean_of("mean_iou[square]", ids, overlaps),
            mean_of("unreadable[square]", ids, [box is None for box in said]),
            mean_of(
                "out_of_range[square]", ids, [box is not None and _leaves(box) for box in said]
            ),
        ]

    return score


def _leaves(box: Box) -> bool:
    return min(box) < 0 or max(box) > 1


def _truth(example: Example) -> Box:
    data = example.metadata
    box = Box(*map(float, data["box"]))
    width, height = float(data["width"]), float(data["height"])
    inside = 0 <= box.x1 < box.x2 <= width and 0 <= box.y1 < box.y2 <= height
    if not inside or not all(map(math.isfinite, box)):
        raise PolyptychError(
            f"box {example.id!r}: {tuple(box)} is not inside an image of {width:g} x {height:g}"
        )
    return in_square(box, width, height)
