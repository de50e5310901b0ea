"""A small data set of colored squares, and an encoder whose vectors a test can work out."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from polyptych.retrieval.protocol import Modality
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

WIDTH = 8


@dataclass
class ToyEncoder:
    """A picture's mean color and a text's letters, each put through a fixed random matrix."""

    name: str = "toy"
    dimension: int = WIDTH
    modalities: tuple[Modality, ...] = ("image", "text")
    fingerprint: str = "toy-1"
    calls: list[int] = field(default_factory=list)
    stop_after: int | None = None
    """Calls after which the process is interrupted."""

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        colors = [np.asarray(image, np.float32).mean(axis=(0, 1)) / 255 - 0.5 for image in images]
        return self._project(np.stack(colors))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        counts = [[text.count(letter) + 0.1 for letter in "abcdefgh"] for text in texts]
        return self._project(np.array(counts, np.float32))

    def _project(self, values: np.ndarray) -> np.ndarray:
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(values))
        matrix = np.random.default_rng(values.shape[1]).normal(size=(values.shape[1], WIDTH))
        vectors = values @ matrix.astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def square(number: int) -> ImageRef:
    """A picture of one color, another for each number."""
    color = tuple(hashlib.sha256(str(number).encode()).digest()[:3])
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())


def entry(number: int, *, picture: int | None = None, images: int = 1) -> Example:
    """Example ``number``; its first picture is that of its number unless said otherwise."""
    first = number if picture is None else picture
    content = (*[ImageBlock()] * images, TextBlock(f"what is {'abcdefgh'[number % 8]}{number}?"))
    messages = (Message("user", content), Message("assistant", (TextBlock(f"it is {number}."),)))
    return Example(f"e{number}", messages, tuple(square(first + n) for n in range(images)))
