"""What of an example is embedded, each picture and text once, and how the vectors become one.

A key stands for all that an entry says; a query is what will be known when it is asked: the first
question and the pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from polyptych.data.cluster import Cluster
from polyptych.data.images import image_hash
from polyptych.errors import PolyptychError
from polyptych.retrieval.embedding import BATCH_SIZE, embed, serially, through_ray
from polyptych.retrieval.protocol import Encoder, Modality, require
from polyptych.retrieval.store import Key
from polyptych.schema import Example, ImageRef

Query = Literal["image", "text", "fused"]
"""What of an example asks; ``fused`` is the sum of the two unit vectors, made unit."""

_CHUNK = 16_384


@dataclass(frozen=True, slots=True)
class Embedding:
    """How vectors are computed."""

    batch_size: int = BATCH_SIZE
    """Items encoded together."""
    workers: int = 0
    """Processes of a Ray cluster; 0 for this process alone."""
    ray: str | None = None
    """Address of the cluster; None starts one on this machine where there are workers."""
    on_batch: Callable[[Modality, int, int], None] | None = None
    """Told the modality and how many of how many items are finished."""


def modalities_of(what: Key | Query) -> tuple[Modality, ...]:
    """The sides of the encoder that a key or query needs."""
    return ("image", "text") if what in ("both", "fused") else (what,)  # type: ignore[return-value]


def key_text(example: Example) -> str:
    """Everything that is said in an entry, turn by turn."""
    return "\n".join(message.text.strip() for message in example.messages)


def query_text(example: Example) -> str:
    """The first question."""
    return next((m.text.strip() for m in example.messages if m.role == "user"), "")


def image_hashes(example: Example) -> tuple[str, ...]:
    """The content of an example's images.

    Raises:
        PolyptychError: For an image that cannot be read, naming the example.
    """
    try:
        return tuple(image_hash(ref) for ref in example.images)
    except PolyptychError as error:
        raise PolyptychError(f"example {example.id!r}: {error}") from error


class Inputs:
    """The pictures and texts of many examples.

    Args:
        what: Key or query: what of each example is embedded.
    """

    def __init__(self, what: Key | Query) -> None:
        self.modalities = modalities_of(what)
        self._images: dict[str, tuple[int, ImageRef]] = {}
        self._texts: dict[str, int] = {}
        self._image_rows: list[list[int]] = []
        self._text_rows: list[int] = []

    def __len__(self) -> int:
        return len(self._image_rows)

    def takes(self, images: int, text: str) -> bool:
        """Whether an example has anything of what is embedded."""
        return ("image" in self.modalities and images > 0) or (
            "text" in self.modalities and bool(text)
        )

    def add(self, refs: Sequence[ImageRef], hashes: Sequence[str], text: str) -> None:
        """The next example."""
        rows = []
        if "image" in self.modalities:
            for ref, key in zip(refs, hashes, strict=True):
                rows.append(self._images.setdefault(key, (len(self._images), ref))[0])
        self._image_rows.append(rows)
        use = "text" in self.modalities and bool(text)
        self._text_rows.append(self._texts.setdefault(text, len(self._texts)) if use else -1)

    def vectors(self, encoder: Encoder, work: Path, settings: Embedding) -> Iterator[np.ndarray]:
        """Unit vectors (n, D) of the examples in order, some thousands at a time.

        Args:
            encoder: Has a side for all that is embedded.
            work: Folder that a killed run finds its finished batches in.
            settings: How they are computed.

        Raises:
            PolyptychError: If the encoder lacks a side or a picture cannot be decoded.
        """
        refs = [ref for _, ref in self._images.values()]
        images = self._embed("image", refs, list(self._images), encoder, work, settings)
        texts = self._embed("text", list(self._texts), list(self._texts), encoder, work, settings)
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            total = np.zeros((stop - start, encoder.dimension), np.float32)
            for place, rows in enumerate(self._image_rows[start:stop]):
                if len(rows) == 1:  # as it is: a second division by its length would round
                    total[place] = images[rows[0]]
                elif rows:
                    total[place] = unit(images[rows].sum(axis=0))
            for place, row in enumerate(self._text_rows[start:stop]):
                if row >= 0:
                    total[place] += texts[row]
            yield unit(total) if len(self.modalities) == 2 else total

    def _embed(
        self,
        modality: Modality,
        items: Sequence[ImageRef] | Sequence[str],
        keys: Sequence[str],
        encoder: Encoder,
        work: Path,
        settings: Embedding,
    ) -> np.ndarray:
        if modality not in self.modalities:
            return np.empty((0, encoder.dimension), np.float32)
        require(encoder, modality)
        digest = hashlib.sha256("\0".join([encoder.fingerprint, *keys]).encode()).hexdigest()
        run = (
            through_ray(encoder, modality, Cluster(settings.ray, settings.workers))
            if settings.workers
            else serially(encoder, modality)
        )
        report = settings.on_batch
        return embed(
            items,
            run,
            work / f"{modality}s.f32",
            dimension=encoder.dimension,
            fingerprint=digest,
            batch_size=settings.batch_size,
            on_batch=None if report is None else lambda n: report(modality, n, len(items)),
        )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each vector divided by its length; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)
