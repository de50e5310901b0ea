"""Step 3, the edited image: drawn again, or painted inside the region."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageFilter

from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import DroppedError, Edit, Mask
from polyptych.methods.cheetah.discriminative.local_models import check_local
from polyptych.models.checkpoint import first_line
from polyptych.storybook.rendering import draw
from polyptych.storybook.scenes import second_view


@runtime_checkable
class ImageEditor(Protocol):
    """Makes the edited image."""

    @property
    def name(self) -> str:
        """For the records."""

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
    name: str = "storybook redraw"

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
    check_local(folder, "inpainting")
    try:
        from diffusers import AutoPipelineForInpainting
    except ImportError as error:
        raise PolyptychError("inpainting needs diffusers: pip install diffusers") from error
    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise PolyptychError(f"{folder}: no inpainting pipeline: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return InpaintingEditor(pipeline.to(device), name=f"inpainting {folder}")
