"""Image features of a whole data set beforehand, here or on a Ray cluster: the same files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyptych.data.cluster import Cluster, Compute, on_ray
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_model
from polyptych.schema import Example
from polyptych.vision.feature_cache import (
    BATCH_SIZE,
    FeatureCache,
    encoder_fingerprint,
    feature_computer,
)


def cache_image_features(
    name: str | None,
    examples: Iterable[Example],
    folder: str | Path,
    *,
    cluster: Cluster | None = None,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
) -> FeatureCache:
    """Fill a feature cache with all images of the examples, their shots' too.

    Args:
        name: Model whose vision encoder computes them: folder, hub name or bundled name.
        examples: Consumed once.
        folder: The cache, see :class:`polyptych.vision.feature_cache.FeatureCache`; what a killed
            call has left there is kept.
        cluster: Where the work is done; None for this process.
        batch_size: Images encoded together.
        device: Where this process computes.

    Raises:
        PolyptychError: If the model or an image cannot be read, or the cache is of another encoder.
    """
    encoder, processor = _encoder(name, device)
    cache = FeatureCache(folder, encoder_fingerprint(encoder, processor.image_processor))
    refs = (ref for e in examples for part in (e, *e.shots) for ref in part.images)
    if cluster is None:
        cache.fill(refs, _on(encoder, device), processor.pixels, batch_size)
        return cache
    arguments = (name, cache.fingerprint)
    cache.fill_by(refs, lambda b: on_ray(b, _encoder_there, arguments, cluster), batch_size)
    return cache


def _encoder_there(name: str | None, fingerprint: str) -> Compute:
    """What a worker does with a batch of images."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, processor = _encoder(name, device)
    found = encoder_fingerprint(encoder, processor.image_processor)
    if found != fingerprint:
        raise PolyptychError(
            f"{name} has encoder {found} on a worker, {fingerprint} where the work is started"
        )
    return feature_computer(_on(encoder, device), processor.pixels)


def _encoder(name: str | None, device: str) -> tuple[Any, Any]:
    model, processor = load_model(name)
    return model.get_submodule("vision_encoder").to(device).eval(), processor


def _on(encoder: Any, device: str) -> Any:
    def encode(pixels: Tensor) -> Tensor:
        return encoder(pixels.to(device))

    return encode
