"""Step 1, the parts of a picture: masks of its objects, their names, windows of free background."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import Mask, Region, Segmentation, SourcePicture
from polyptych.methods.cheetah.discriminative.local_models import ClipModel, load_pipeline
from polyptych.storybook.rendering import BACKGROUND, draw_with_masks
from polyptych.storybook.vocabulary import PERSON, PLACES

_ABOVE_FOOT = 0.1  # the middle of a standing thing is about so far above its foot


@runtime_checkable
class MaskSource(Protocol):
    """Finds the objects of a picture."""

    @property
    def name(self) -> str:
        """For the records."""

    def __call__(self, picture: SourcePicture, image: Image.Image) -> Segmentation:
        """Objects with masks of the image's size."""


@dataclass(frozen=True)
class StorybookMasks:
    """The true masks of a drawn picture. Characters occupy room, but no edit is made to them.

    Args:
        sky: Share of pictures whose free background is the sky; in the others it is the ground.
            As many as kinds fly: most free room is sky, which a tenth of the kinds would share.
        name: For the records.
    """

    sky: float = 0.1
    name: str = "storybook masks"

    def __call__(self, picture: SourcePicture, image: Image.Image) -> Segmentation:
        """Every thing with a visible pixel."""
        scene = picture.scene
        if scene is None:
            raise PolyptychError(f"picture {picture.id!r} is not drawn: it has no true masks")
        _, owners = draw_with_masks(scene, image.width)
        objects = tuple(
            Region(owners == index, f"{thing.color} {thing.kind}", index)
            for index, thing in enumerate(scene.things)
            if thing.kind != PERSON and (owners == index).any()
        )
        occupied = owners != BACKGROUND
        horizon = PLACES[scene.place].horizon
        if random.Random(f"{picture.id}/sky").random() < self.sky:
            occupied[round(horizon * image.height) :] = True
        else:
            occupied[: round((horizon - _ABOVE_FOOT) * image.height)] = True
        return Segmentation(objects, occupied)


Labels = Callable[[Image.Image, Region, str], str]
"""``(image, region, caption) -> word`` for what the region shows."""


@dataclass(frozen=True)
class SegmentAnythingMasks:
    """Masks by a ``mask-generation`` pipeline of transformers (Segment Anything; not our SAM).

    Args:
        pipeline: ``image -> {"masks": [(H, W) bool, ...], "scores": ...}``.
        labels: Names each object from the words of the caption; without it they stay nameless.
        largest_area: A mask of more than this share of the picture is background: sky, wall,
            floor.
        name: What made the masks, for the records.
    """

    pipeline: Any
    labels: Labels | None = None
    largest_area: float = 0.35
    name: str = "mask-generation"

    def __call__(self, picture: SourcePicture, image: Image.Image) -> Segmentation:
        """Every mask that is no background, in the pipeline's order."""
        masks = [np.asarray(mask, dtype=bool) for mask in self.pipeline(image)["masks"]]
        regions = [Region(mask) for mask in masks if 0 < mask.mean() <= self.largest_area]
        occupied = np.zeros((image.height, image.width), dtype=bool)
        for region in regions:
            occupied |= region.mask
        if self.labels is not None:
            regions = [
                Region(region.mask, self.labels(image, region, picture.caption))
                for region in regions
            ]
        return Segmentation(tuple(regions), occupied)


def load_segment_anything(
    folder: str, *, labels: Labels | None = None, device: str = "cpu"
) -> SegmentAnythingMasks:
    """Masks by a Segment Anything model in a local folder.

    Raises:
        PolyptychError: If there is none, or torchvision, which transformers wants for it, is
            missing.
    """
    pipeline = load_pipeline("mask-generation", folder, device=device)
    return SegmentAnythingMasks(pipeline, labels, name=f"mask-generation {folder}")


@dataclass(frozen=True)
class CaptionLabels:
    """Labels a region with the word of the caption that CLIP finds most like it."""

    clip: ClipModel
    margin: float = 0.1

    def __call__(self, image: Image.Image, region: Region, caption: str) -> str:
        """One word; the empty label for a caption without words."""
        words = [word.strip(".,;:!?\"'()").lower() for word in caption.split()]
        words = [word for word in dict.fromkeys(words) if word and word not in _NO_LABELS]
        if not words:
            return ""
        texts = [f"a photo of a {word}" for word in words]
        values = self.clip.similarity([region.crop(image, self.margin)], texts)[0]
        return words[int(values.argmax())]


_NO_LABELS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "has",
        "have",
        "he",
        "her",
        "his",
        "in",
        "into",
        "is",
        "it",
        "its",
        "near",
        "next",
        "of",
        "off",
        "on",
        "one",
        "or",
        "out",
        "over",
        "she",
        "some",
        "that",
        "the",
        "their",
        "them",
        "there",
        "they",
        "this",
        "to",
        "two",
        "under",
        "up",
        "very",
        "was",
        "were",
        "while",
        "with",
    ]
)


def background_windows(occupied: Mask, share: float) -> tuple[Region, ...]:
    """Windows that hold nothing but background, half overlapping; for things to be added.

    Args:
        occupied: Pixels of objects.
        share: Width and height of a window as a share of the picture's.
    """
    height, width = occupied.shape
    size = max(1, round(share * height)), max(1, round(share * width))
    windows = []
    for top in range(0, height - size[0] + 1, max(1, size[0] // 2)):
        for left in range(0, width - size[1] + 1, max(1, size[1] // 2)):
            window = np.s_[top : top + size[0], left : left + size[1]]
            if not occupied[window].any():
                mask = np.zeros_like(occupied)
                mask[window] = True
                windows.append(Region(mask, "background"))
    return tuple(windows)
