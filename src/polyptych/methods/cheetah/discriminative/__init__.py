"""The steps of the discriminative data pipeline, one file each; the nouns between them are here.

    SourcePicture -> Segmentation -> Candidate -> Edit -> edited image -> Example
                  1              1            2       3                4

1 :mod:`.masks`, :mod:`.detection` · 2 :mod:`.edits`, :mod:`.storybook_edits` · 3 :mod:`.images`,
:mod:`.filters` · 4 :mod:`.texts`. Pictures come from :mod:`.sources`, models for photographs from
:mod:`.local_models`; :mod:`.steps` joins the steps, :mod:`..discriminative_data` runs them and
:mod:`.running` keeps what is finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyptych.schema import ImageRef
from polyptych.storybook.graph import Scene

Mask = NDArray[np.bool_]
"""(height, width): which pixels of a picture are meant."""

EditKind = Literal["modify", "swap", "delete", "add"]
EDIT_KINDS: tuple[EditKind, ...] = get_args(EditKind)


@dataclass(frozen=True, slots=True)
class SourcePicture:
    """A picture that will be edited, with a sentence about it; drawn ones know their scene."""

    id: str
    image: ImageRef
    caption: str
    scene: Scene | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A part of a picture that may be edited: an object, or a window of free background."""

    mask: Mask
    label: str = ""
    """What it shows, as far as anybody knows."""
    index: int | None = None
    """Which thing of the scene it is, where there is a scene."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of its pixels; right and bottom lie just outside."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def crop(self, image: Image.Image, margin: float) -> Image.Image:
        """Its box in an image, with surroundings of ``margin`` times the box on each side."""
        left, top, right, bottom = self.box
        dx, dy = ceil(margin * (right - left)), ceil(margin * (bottom - top))
        return image.crop(
            (
                max(0, left - dx),
                max(0, top - dy),
                min(image.width, right + dx),
                min(image.height, bottom + dy),
            )
        )


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The objects of a picture, and every pixel where nothing may be added."""

    objects: tuple[Region, ...]
    occupied: Mask


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A region that was chosen for an edit, and how much attention it got."""

    region: Region
    importance: float
    """Mean attention inside the region; 1 is what the picture's average pixel gets."""
    rank: int
    """0 for the least attended of its picture."""
    of: int
    """How many regions of its picture were ranked."""


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What is to be changed in a picture."""

    kind: EditKind
    description: str
    """The change as an instruction: "replace the red ball by a green cup"."""
    shows: str
    """What the region shows afterwards: "a green cup"; for painters that are told the result."""
    region: Region
    """Where pixels may change."""
    scene: Scene | None = None
    """The changed scene, for painters that draw it."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """The change in the words of Storybook's ``change_captioning``, where it has them."""


class DroppedError(Exception):
    """An item that a step refuses; it is counted under its reason, and the run goes on.

    Args:
        reason: One of few, the same for all items that fail alike.
        detail: What was special about this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
