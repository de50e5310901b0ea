"""Texts by their words alone: an encoder without weights, for stores of real texts.

No sentence encoder comes with the package. Counting words, the rare ones more, finds questions of
the same sort as well as a small one would: each word has a place among D by its hash, and a weight
by how many of the given texts have it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from polyptych.errors import PolyptychError
from polyptych.retrieval.inputs import unit
from polyptych.retrieval.protocol import Modality


class WordEncoder:
    """An :class:`~polyptych.retrieval.protocol.Encoder` of word counts.

    Args:
        texts: What word weights are taken from: the store's own.
        dimension: D; words that share a place are added.
    """

    name = "words"
    modalities: tuple[Modality, ...] = ("text",)

    def __init__(self, texts: Sequence[str], dimension: int = 4096) -> None:
        self.dimension, self.total = dimension, len(texts)
        self.documents = Counter(word for text in texts for word in set(_words(text)))
        known = repr((dimension, self.total, sorted(self.documents.items())))
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()[:16]

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to unit vectors (n, D); one without words is zero."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(_words(text)).items():
                rarity = math.log((1 + self.total) / (1 + self.documents[word])) + 1
                vectors[row, self._place(word)] += (1 + math.log(count)) * rarity
        return unit(vectors)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Not possible.

        Raises:
            PolyptychError: Always.
        """
        raise PolyptychError(f"{self.name} encodes texts only, no images")

    def _place(self, word: str) -> int:
        return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) % (
            self.dimension
        )


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
