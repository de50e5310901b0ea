"""Asking an index: which entries stand nearest to a question or picture, some left out."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.errors import PolyptychError
from polyptych.retrieval.building import check_encoder
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.index import VectorIndex
from polyptych.retrieval.inputs import (
    Embedding,
    Inputs,
    Query,
    image_hashes,
    modalities_of,
    query_text,
)
from polyptych.retrieval.protocol import Encoder
from polyptych.retrieval.store import Store
from polyptych.schema import Example

_SPARE = 8
"""Hits searched beyond the wanted ones where some may be left out; doubled when too few."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One found entry."""

    row: int
    id: str
    score: float
    """Cosine of query and key."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What one query must not find."""

    ids: Collection[str] = ()
    image_hashes: Collection[str] = ()


class Retriever:
    """An index and the encoder that made it.

    Args:
        folder: Of the index.
        encoder: The encoder; None to load it by the name in the index.
        device: Where a loaded encoder computes.

    Raises:
        PolyptychError: If the index is not whole, or the encoder is another one.
    """

    def __init__(
        self, folder: str | Path, encoder: Encoder | None = None, *, device: str = "cpu"
    ) -> None:
        self.store = Store(folder)
        self.index = VectorIndex(self.store)
        self.encoder = encoder or load_encoder(self.store.info.encoder, device=device)
        check_encoder(self.store, self.encoder)

    def default_query(self) -> Query:
        """Text where the encoder reads any (the paper's choice), else the picture."""
        return "text" if "text" in self.encoder.modalities else "image"

    def encode(
        self,
        examples: Sequence[Example],
        query: Query,
        *,
        work: Path | None = None,
        settings: Embedding = Embedding(),  # noqa: B008 - frozen
    ) -> tuple[np.ndarray, list[int]]:
        """Queries of examples.

        Args:
            examples: They may lack what asks; those get no vector.
            query: What of them asks.
            work: Folder in which a killed run is continued; None for a temporary one.
            settings: How vectors are computed.

        Returns:
            Unit vectors (n, D), and which examples they are of.
        """
        inputs, asking = Inputs(query), []
        for number, example in enumerate(examples):
            text = query_text(example)
            if inputs.takes(len(example.images), text):
                hashes = image_hashes(example) if "image" in modalities_of(query) else ()
                inputs.add(example.images if hashes else (), hashes, text)
                asking.append(number)
        with tempfile.TemporaryDirectory() as temporary:
            folder = work or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            parts = list(inputs.vectors(self.encoder, folder, settings))
        empty = np.empty((0, self.encoder.dimension), np.float32)
        return np.concatenate([empty, *parts]), asking

    def search(
        self,
        queries: np.ndarray,
        top_k: int,
        *,
        left_out: Sequence[LeftOut] | None = None,
        unique_images: bool = False,
    ) -> list[list[Hit]]:
        """The nearest entries of each query, best first.

        Args:
            queries: Unit vectors (n, D).
            top_k: Wanted for each; fewer come only where too many are left out.
            left_out: What each query must not find.
            unique_images: Of entries with the same images only the best one.

        Raises:
            PolyptychError: If more are wanted than the index has entries.
        """
        if not 0 < top_k <= len(self.store):
            raise PolyptychError(
                f"{self.store.folder}: {top_k} shots wanted, but the index has {len(self.store)}"
            )
        filtered = left_out is not None or unique_images
        left_out = left_out or [LeftOut()] * len(queries)
        results: list[list[Hit]] = [[] for _ in queries]
        missing = np.arange(len(queries))
        width = min(len(self.store), top_k + _SPARE * filtered)
        while len(missing):
            scores, rows = self.index.search(queries[missing], width)
            entries = self._entries(rows, with_images=filtered)
            for number, row_scores, row_rows in zip(missing.tolist(), scores, rows, strict=True):
                results[number] = _choose(
                    row_scores, row_rows, entries, left_out[number], unique_images, top_k
                )
            if width == len(self.store):
                break
            missing = np.array([n for n in missing if len(results[n]) < top_k], dtype=np.int64)
            width = min(len(self.store), width * 4)
        return results

    def _entries(self, rows: np.ndarray, *, with_images: bool) -> dict[int, tuple[str, Any]]:
        """Row -> id and image hashes of all that were found."""
        found = np.unique(rows[rows >= 0])
        ids = self.store.column("id", found)
        images = self.store.column("image_hashes", found) if with_images else [()] * len(ids)
        return dict(zip(found.tolist(), zip(ids, map(tuple, images), strict=True), strict=True))

    def example(self, hit: Hit) -> Example:
        """The entry itself, as a shot."""
        return self.store.example(hit.row)


def _choose(
    scores: np.ndarray,
    rows: np.ndarray,
    entries: dict[int, tuple[str, Any]],
    left_out: LeftOut,
    unique_images: bool,
    top_k: int,
) -> list[Hit]:
    hits: list[Hit] = []
    seen: set[tuple[str, ...]] = set()
    for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
        if row < 0:
            continue
        identity, images = entries[row]
        if identity in left_out.ids or any(image in left_out.image_hashes for image in images):
            continue
        if unique_images and images:
            if images in seen:
                continue
            seen.add(images)
        hits.append(Hit(row, identity, score))
        if len(hits) == top_k:
            break
    return hits
