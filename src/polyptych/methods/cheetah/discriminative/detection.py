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
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from polyptych.connectors.qformer import QFormer
from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import Candidate, Mask, Region

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

    Raises:
        PolyptychError: For a model without a Q-Former.
    """

    model: Any
    processor: Any

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.model.connector, "qformer", None), QFormer):
            raise PolyptychError(
                f"a model of type {self.model.config.model_type!r} has no Q-Former"
            )

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[AttentionMap]:
        """One map per picture, over the whole picture whatever its shape; no class token."""
        pixels = self._pixels(images).to(self.model.device, self.model.dtype)
        features = self.model.vision_encoder(pixels)
        attention = cross_attention(self.model.connector.qformer, features).float()
        choice = self.model.vision_encoder.choice
        if choice.has_class_token and choice.keep_class_token:
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


# Which regions are ignored.


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
