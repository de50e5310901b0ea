"""What every encoder of the retriever offers, and how two of them are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image
from torch import nn

from polyptych.errors import PolyptychError

Modality = Literal["image", "text"]


class Encoder(Protocol):
    """What an index needs to know of an encoder."""

    name: str
    """How to load it again: a bundled name, a folder, a hub name or a file."""
    dimension: int
    """Width D of its vectors."""
    modalities: tuple[Modality, ...]
    """What it encodes."""
    fingerprint: str
    """A hash of all that decides its vectors."""

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Decoded RGB pictures to unit vectors (n, D), float32."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to unit vectors (n, D), float32."""


def require(encoder: Encoder, modality: Modality) -> None:
    """Refuse what an encoder has no side for.

    Raises:
        PolyptychError: Naming the encoder and what it encodes.
    """
    if modality not in encoder.modalities:
        other = " and ".join(f"{known}s" for known in encoder.modalities)
        raise PolyptychError(f"{encoder.name} encodes {other} only, no {modality}s")


def fingerprint(model: nn.Module, settings: dict[str, Any]) -> str:
    """A hash of weights and settings: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]
