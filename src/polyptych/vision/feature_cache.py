"""Frozen image features on disk, by image hash: computed once, read in every epoch and prompt.

A cache folder holds ``features.bin`` (rows of P x D_v numbers, memory-mapped), ``index.txt`` (one
image hash per row, in order) and ``meta.json`` (shape, type, and the fingerprint of the encoder and
its preprocessing; a cache of another encoder is refused). Rows are appended before their hash is,
and a torn end of either file is cut off before the next append, so a killed run loses at most the
rows that were being written. One process may fill a cache at a time; any number may read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.data.images import image_hash, load_image
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import ImageRef
from polyptych.vision.encoder import feature_choice


def encoder_fingerprint(encoder: Any, image_processor: Any) -> str:
    """A hash of everything that decides the features: weights, preprocessing, an unusual layer.

    Args:
        encoder: A :class:`polyptych.vision.encoder.VisionEncoder`.
        image_processor: What makes its pixels.
    """
    digest = hashlib.sha256(json.dumps(image_processor.to_dict(), sort_keys=True).encode())
    if encoder.choice != feature_choice(encoder.config):
        digest.update(repr(encoder.choice).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


BATCH_SIZE = 64
"""Images encoded together."""

Runner = Callable[[Iterable[tuple[int, Sequence[ImageRef]]]], Iterable[tuple[int, np.ndarray]]]
"""What turns numbered batches of images into their features, in order."""


def feature_computer(
    encode: Callable[[Tensor], Tensor], pixels: Callable[[Sequence[Any]], Tensor]
) -> Callable[[Sequence[ImageRef]], np.ndarray]:
    """What makes features (n, P, D_v) in float16 of images, by encoder and preprocessing."""

    def compute(refs: Sequence[ImageRef]) -> np.ndarray:
        with torch.inference_mode():
            features = encode(pixels([load_image(ref) for ref in refs]))
        return features.to(torch.float16).cpu().numpy()

    return compute


_KEY_BYTES = 65
"""A line of the index: 64 hexadecimal digits and the line's end."""


class FeatureCache:
    """Reads and extends one cache folder.

    Args:
        folder: Created on the first :meth:`fill`.
        fingerprint: See :func:`encoder_fingerprint`.

    Raises:
        PolyptychError: If the folder holds features of another encoder.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.rows: dict[str, int] = {}
        self._map: np.ndarray | None = None  # memory-mapped, rows x P x D_v
        self._shape: tuple[int, int] | None = None
        meta = self.folder / "meta.json"
        if meta.exists():
            saved = json.loads(meta.read_text())
            if saved["fingerprint"] != fingerprint:
                raise PolyptychError(
                    f"{self.folder}: features of encoder {saved['fingerprint']}, "
                    f"not of {fingerprint}; use another folder"
                )
            self._shape = (saved["patches"], saved["width"])
            self.rows = {key: row for row, key in enumerate(self._whole_rows())}

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:  # worker processes open the file themselves
        return {**self.__dict__, "_map": None}

    def _whole_rows(self) -> list[str]:
        """Hashes that are written to their end and whose features are, too."""
        try:
            lines = (self.folder / "index.txt").read_text().split("\n")[:-1]
            return lines[: (self.folder / "features.bin").stat().st_size // self._row_bytes]
        except FileNotFoundError:  # killed before the first row
            return []

    @property
    def _row_bytes(self) -> int:
        assert self._shape is not None
        return self._shape[0] * self._shape[1] * np.dtype(np.float16).itemsize

    def get(self, refs: Sequence[ImageRef]) -> Float[Tensor, "n P D_v"]:
        """Features of the images, in order, as float32.

        Raises:
            PolyptychError: For an image that is not in the cache.
        """
        try:
            rows = [self.rows[image_hash(ref)] for ref in refs]
        except KeyError as missing:
            raise PolyptychError(f"{self.folder}: no features of image {missing}") from None
        if self._map is None:
            assert self._shape is not None
            shape = (len(self.rows), *self._shape)
            self._map = np.memmap(self.folder / "features.bin", np.float16, "r", shape=shape)
        return torch.from_numpy(np.asarray(self._map[rows], dtype=np.float32))

    def fill(
        self,
        refs: Iterable[ImageRef],
        encode: Callable[[Tensor], Tensor],
        pixels: Callable[[Sequence[Any]], Tensor],
        batch_size: int = BATCH_SIZE,
    ) -> int:
        """Compute what is missing; returns the number of new images.

        Args:
            refs: Images, in any order, repeated ones too.
            encode: ``pixel_values (n, 3, H, W) -> features (n, P, D_v)``.
            pixels: The processor's preprocessing of decoded images.
            batch_size: Images per call of ``encode``.
        """
        compute = feature_computer(encode, pixels)
        return self.fill_by(
            refs, lambda batches: ((n, compute(part)) for n, part in batches), batch_size
        )

    def fill_by(self, refs: Iterable[ImageRef], run: Runner, batch_size: int = BATCH_SIZE) -> int:
        """:meth:`fill`, with the features of each batch from elsewhere.

        Args:
            refs: Images, in any order, repeated ones too.
            run: Numbered batches of images -> numbered features, in the same order.
            batch_size: Images per batch.
        """
        missing = {key: ref for ref in refs if (key := image_hash(ref)) not in self.rows}
        keys = list(missing)
        starts = range(0, len(keys), batch_size)
        batches = ((n, [missing[key] for key in keys[n : n + batch_size]]) for n in starts)
        for start, features in run(batches):
            self._append(keys[start : start + batch_size], features)
        return len(keys)

    def _append(self, keys: Sequence[str], features: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._shape is None:
            self._shape = features.shape[1], features.shape[2]
            meta = {
                "fingerprint": self.fingerprint,
                "patches": self._shape[0],
                "width": self._shape[1],
                "dtype": "float16",
            }
            with write_aside(self.folder / "meta.json") as file:
                json.dump(meta, file)
        lines = "".join(f"{key}\n" for key in keys).encode()
        for name, size, new in (
            ("features.bin", self._row_bytes, features.tobytes()),
            ("index.txt", _KEY_BYTES, lines),
        ):
            with open(self.folder / name, "ab") as file:
                file.truncate(len(self.rows) * size)
                file.write(new)
        for key in keys:
            self.rows[key] = len(self.rows)
        self._map = None
