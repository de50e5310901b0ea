"""Behind step 3: edited images that do not show their edit are thrown away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from polyptych.methods.cheetah.discriminative import DroppedError, Edit
from polyptych.methods.cheetah.discriminative.local_models import ClipModel


@runtime_checkable
class SimilarityFilter(Protocol):
    """Decides whether an edited image shows its edit."""

    @property
    def name(self) -> str:
        """For the records."""

    def __call__(self, original: Image.Image, edited: Image.Image, edit: Edit) -> float:
        """The measured value; raises `DroppedError` where it lies outside the bounds."""


@dataclass(frozen=True)
class PixelChange:
    """The share of the edit's region whose pixels changed, and of the whole picture.

    Args:
        least_in_region: An edit that changes less of its region is not visible.
        least_in_picture: Nor is one that changes less of the picture.
        most_in_picture: One that changes more is no change of a detail.
        tolerance: Difference in the strongest color channel, of 255, that counts as a change.
    """

    least_in_region: float = 0.25
    least_in_picture: float = 0.004
    most_in_picture: float = 0.4
    tolerance: int = 24
    name: str = "pixel change"

    def __call__(self, original: Image.Image, edited: Image.Image, edit: Edit) -> float:
        """Share of the region that changed."""
        before, after = (np.asarray(image, dtype=np.int16) for image in (original, edited))
        changed = (np.abs(before - after).max(-1) > self.tolerance) & edit.region.mask
        in_region = float(changed.sum() / edit.region.mask.sum())
        in_picture = float(changed.mean())
        if in_region < self.least_in_region or in_picture < self.least_in_picture:
            raise DroppedError(
                "edit not visible", f"{in_region:.3f} of the region, {in_picture:.4f} of all"
            )
        if in_picture > self.most_in_picture:
            raise DroppedError("edit too large", f"{in_picture:.3f} of the picture")
        return round(in_region, 4)


@dataclass(frozen=True)
class ClipSimilarity:
    """CLIP has to see in the edited region what the edit says, and better than before.

    Args:
        clip: The model.
        least: Cosine between the edited region and the words for it.
        least_gain: By how much it has to exceed that of the original region.
        margin: Surroundings that are looked at, too, as a share of the region's box on each side.
        name: Which model, for the records.
    """

    clip: ClipModel
    least: float = 0.2
    least_gain: float = 0.0
    margin: float = 0.25
    name: str = "CLIP similarity"

    def __call__(self, original: Image.Image, edited: Image.Image, edit: Edit) -> float:
        """Cosine of the edited region and its words."""
        crops = [edit.region.crop(image, self.margin) for image in (original, edited)]
        before, after = self.clip.similarity(crops, [edit.shows])[:, 0].tolist()
        if after < self.least:
            raise DroppedError("similarity too low", f"{after:.3f} to {edit.shows!r}")
        if after - before < self.least_gain:
            raise DroppedError(
                "edit not visible", f"similarity {before:.3f} before, {after:.3f} now"
            )
        return round(after, 4)
