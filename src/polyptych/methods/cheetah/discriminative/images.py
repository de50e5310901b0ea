"""Step 3, the edited image, and the filter that throws away what does not show the edit."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageFilter

from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import DroppedError, Edit, Mask, Region
from polyptych.models.checkpoint import first_line
from polyptych.storybook.rendering import draw
from polyptych.storybook.scenes import second_view


class ImageEditor(Protocol):
    """Makes the edited image."""

    name: str

    def __call__(self, image: Image.Image, edit: Edit, seed: int) -> Image.Image:
        """An image of the same size, changed inside the edit's region only."""


@dataclass(frozen=True)
class StorybookEditor:
    """Draws the changed scene.

    Args:
        second_view: Turn, shade and mirror all things a little as well, as ``change_captioning``
            does, so that a difference of pixels is no difference of content. Off, the pictures
            are equal outside the edit, as inpainted ones are.
    """

    second_view: bool = False

    @property
    def name(self) -> str:
        """For the records."""
        return "storybook redraw, second view" if self.second_view else "storybook redraw"

    def __call__(self, image: Image.Image, edit: Edit, seed: int) -> Image.Image:
        """Draw it."""
        if edit.scene is None:
            raise PolyptychError("only edits of drawn scenes can be redrawn; this one has no scene")
        rng = random.Random(seed)
        return draw(second_view(rng, edit.scene) if self.second_view else edit.scene, image.width)


@dataclass(frozen=True)
class InpaintingEditor:
    """Paints inside the region by an inpainting pipeline of diffusers.

    Args:
        pipeline: ``(prompt, image, mask_image, ...) -> .images[0]``.
        longest_side: Pixels of the longer side while painting.
        steps: Denoising steps.
        guidance_scale: Of classifier-free guidance.
        margin: How far beyond the object's outline is painted, as a share of the longer side.
        name: What painted, for the records.
    """

    pipeline: Any
    longest_side: int = 512
    steps: int = 50
    guidance_scale: float = 7.5
    margin: float = 0.015
    name: str = "inpainting"

    def __call__(self, image: Image.Image, edit: Edit, seed: int) -> Image.Image:
        """Paint what the region shows; everything else keeps its pixels."""
        width, height = self._canvas(image)
        mask = self._grown(edit.region.mask)
        painted = self.pipeline(
            prompt=edit.shows,
            negative_prompt=edit.region.label if edit.kind in ("delete", "swap") else None,
            image=image.resize((width, height), Image.Resampling.BICUBIC),
            mask_image=mask.resize((width, height), Image.Resampling.NEAREST),
            width=width,
            height=height,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
        )
        if any(getattr(painted, "nsfw_content_detected", None) or ()):
            raise DroppedError("refused by the safety checker", edit.shows)
        result = painted.images[0].convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
        return Image.composite(result, image, mask.filter(ImageFilter.GaussianBlur(1)))

    def _canvas(self, image: Image.Image) -> tuple[int, int]:
        """Size to paint at: the image's shape in multiples of 8, which latents ask for."""
        scale = self.longest_side / max(image.size)
        return max(8, 8 * round(image.width * scale / 8)), max(
            8, 8 * round(image.height * scale / 8)
        )

    def _grown(self, mask: Mask) -> Image.Image:
        """The mask as an image, wider by the margin."""
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        reach = ceil(self.margin * max(picture.size))
        return picture.filter(ImageFilter.MaxFilter(2 * reach + 1))


def load_inpainting(folder: str, *, device: str = "cpu") -> InpaintingEditor:
    """A painter by a diffusers inpainting pipeline in a local folder.

    Raises:
        PolyptychError: If diffusers is not installed, or the folder holds no such pipeline.
    """
    try:
        from diffusers import AutoPipelineForInpainting
    except ImportError as error:
        raise PolyptychError("inpainting needs diffusers: pip install diffusers") from error
    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise PolyptychError(f"{folder}: no inpainting pipeline: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return InpaintingEditor(pipeline.to(device), name=f"inpainting {folder}")


# Filters.


class SimilarityFilter(Protocol):
    """Decides whether an edited image shows its edit."""

    name: str

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
class ClipModel:
    """Cosines between pictures and texts by a CLIP model of transformers."""

    model: Any
    processor: Any

    @torch.inference_mode()
    def similarity(self, images: list[Image.Image], texts: list[str]) -> torch.Tensor:
        """(images, texts) in -1 .. 1."""
        inputs = self.processor(
            images=images, text=texts, return_tensors="pt", padding=True, truncation=True
        )
        outputs = self.model(**inputs.to(self.model.device))
        pictures, words = outputs.image_embeds, outputs.text_embeds
        pictures, words = (x / x.norm(dim=-1, keepdim=True) for x in (pictures, words))
        return (pictures @ words.T).float().cpu()


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
        crops = [crop(image, edit.region, self.margin) for image in (original, edited)]
        before, after = self.clip.similarity(crops, [edit.shows])[:, 0].tolist()
        if after < self.least:
            raise DroppedError("similarity too low", f"{after:.3f} to {edit.shows!r}")
        if after - before < self.least_gain:
            raise DroppedError(
                "edit not visible", f"similarity {before:.3f} before, {after:.3f} now"
            )
        return round(after, 4)


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
        values = self.clip.similarity([crop(image, region, self.margin)], texts)[0]
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


def crop(image: Image.Image, region: Region, margin: float) -> Image.Image:
    """The region's box with some surroundings."""
    left, top, right, bottom = region.box
    dx, dy = ceil(margin * (right - left)), ceil(margin * (bottom - top))
    return image.crop(
        (
            max(0, left - dx),
            max(0, top - dy),
            min(image.width, right + dx),
            min(image.height, bottom + dy),
        )
    )


def load_clip(folder: str, *, device: str = "cpu") -> ClipModel:
    """A CLIP model with its processor from a local folder.

    Raises:
        PolyptychError: If there is none.
    """
    from transformers import AutoProcessor, CLIPModel

    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise PolyptychError(f"{folder}: no CLIP model: {first_line(error)}") from error
    return ClipModel(model.eval().to(device), processor)
