"""Step 1, ignored-object detection: where the task-agnostic Q-Former does not look.

Cross-attention maps are averaged over all layers that look at the image, all heads and all queries
into one map A over patches; A is interpolated bilinearly to pixels and averaged inside the mask of
every object. The objects with the lowest values are the ignored ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from polyptych.connectors.qformer import QFormer
from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import (
    Candidate,
    Mask,
    Region,
    Segmentation,
    SourcePicture,
)
from polyptych.models.checkpoint import first_line
from polyptych.storybook.rendering import BACKGROUND, draw_with_masks
from polyptych.storybook.vocabulary import PERSON

Selection = Literal["least_attended", "random"]

AttentionMap = NDArray[np.float32]
"""(rows, columns) of patches; the mean is 1."""


# Where the Q-Former looks.


@torch.no_grad()
def cross_attention(
    qformer: QFormer, image_features: Float[Tensor, "I P D_v"]
) -> Float[Tensor, "I P"]:
    """Attention that each patch gets while the Q-Former reads an image without any instruction.

    The mean over layers with cross-attention, heads and queries; a row sums to 1. Weights are
    those of the pass itself: they are taken at the real input of each cross-attention, behind
    the layer's self-attention. The Q-Former has to be in eval mode.
    """
    maps: list[Tensor] = []

    def keep(attention: Any, inputs: tuple[Any, ...]) -> None:
        maps.append(attention.weights(*inputs))

    with ExitStack() as stack:
        for layer in qformer.layers:
            if layer.has_cross_attention:
                handle = layer.cross_attention.register_forward_pre_hook(keep)
                stack.callback(handle.remove)
        rows = qformer.embed(len(image_features), None)
        qformer(rows, qformer.image_key_values(image_features))
    return torch.stack(maps).mean(0)


@dataclass(frozen=True)
class QFormerAttention:
    """The map A of pictures, by a BLIP-2 model's vision encoder and Q-Former.

    Args:
        model: In eval mode.
        processor: The processor saved beside it.
    """

    model: Any
    processor: Any

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[AttentionMap]:
        """One map per picture, over the whole picture whatever its shape; no class token."""
        pixels = self._pixels(images).to(self.model.device, self.model.dtype)
        features = self.model.vision_encoder(pixels)
        attention = cross_attention(self.model.connector.qformer, features).float()
        if self.model.vision_encoder.choice.keep_class_token:
            attention = attention[:, 1:]
        side = isqrt(attention.shape[1])
        if side * side != attention.shape[1]:
            raise PolyptychError(f"{attention.shape[1]} patches are no square grid")
        attention = attention / attention.mean(1, keepdim=True)
        return list(attention.unflatten(1, (side, side)).cpu().numpy())

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocessing without the cut to the middle that some encoders' processors make."""
        resize = self.processor.image_processor
        if not getattr(resize, "do_center_crop", False):
            return self.processor.pixels(images)
        whole = resize(
            list(images), size=resize.crop_size, do_center_crop=False, return_tensors="pt"
        )
        return whole["pixel_values"]


# Which parts of a picture there are.


class MaskSource(Protocol):
    """Finds the objects of a picture."""

    name: str

    def __call__(self, picture: SourcePicture, image: Image.Image) -> Segmentation:
        """Objects with masks of the image's size."""


@dataclass(frozen=True)
class StorybookMasks:
    """The true masks of a drawn picture. Characters occupy room, but no edit is made to them."""

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
        return Segmentation(objects, owners != BACKGROUND)


class Labels(Protocol):
    """Says in a word what a region of a picture shows."""

    def __call__(self, image: Image.Image, region: Region, caption: str) -> str:
        """The label."""


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
    pipeline = load_pipeline("mask-generation", folder, device)
    return SegmentAnythingMasks(pipeline, labels, name=f"mask-generation {folder}")


def load_pipeline(task: str, folder: str, device: str) -> Any:
    """A pipeline of transformers from a local folder; nothing is downloaded.

    Raises:
        PolyptychError: Naming the folder and what is wrong with it.
    """
    import transformers

    try:
        build: Any = transformers.pipeline
        return build(task, model=folder, device=device, model_kwargs={"local_files_only": True})
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise PolyptychError(f"{folder}: no {task} model: {first_line(error)}") from error


# Which of them are ignored.


def importance(attention: AttentionMap, masks: Sequence[Mask]) -> list[float]:
    """Mean of the interpolated map inside each mask.

    The map is interpolated bilinearly between the centers of patches, as RoIAlign does.
    """
    if not masks:
        return []
    shape = masks[0].shape
    grid = torch.from_numpy(np.asarray(attention, dtype=np.float32))[None, None]
    pixels = interpolate(grid, size=shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    return [float(pixels[mask].mean(dtype=np.float64)) for mask in masks]


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


def select(
    regions: Sequence[Region],
    attention: AttentionMap,
    rng: random.Random,
    *,
    selection: Selection,
    most: int,
    quantile: float,
) -> list[Candidate]:
    """The regions to edit: the least attended, or, as a control, as many at random.

    Args:
        regions: Of one picture.
        attention: Its map A.
        rng: Source of chance of the random selection.
        selection: Which of the two.
        most: Greatest number of regions.
        quantile: Share of the regions, from the least attended up, that may be chosen at all (at
            least one may).

    Returns:
        In the order of choice.
    """
    values = importance(attention, [region.mask for region in regions])
    order = sorted(range(len(regions)), key=lambda index: (values[index], index))
    ranked = [
        Candidate(regions[index], round(values[index], 6), rank, len(order))
        for rank, index in enumerate(order)
    ]
    if selection == "random":
        return rng.sample(ranked, min(most, len(ranked)))
    return ranked[: min(most, max(1, int(quantile * len(ranked))))]
