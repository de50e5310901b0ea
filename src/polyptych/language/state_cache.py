"""States that enter a decoder layer, on disk: computed once, read in every epoch and every run.

Where all that is trained acts from layer k on, everything below is a fixed function of a training
row and its images. A cache folder holds ``states.bin`` (T x D numbers per row, one row after the
other), ``index.txt`` (key and T of each row, in the same order) and ``meta.json`` (D, the type, and
the fingerprint of what computed them; states of another model are refused). States are written
before their line of the index, and a torn end of either file is cut off before the next append.
One process may fill a cache at a time; any number may read it.
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

from polyptych.data.images import image_hash
from polyptych.data.tokenization import EncodedExample
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import Batch, Example

_TYPES = {torch.float32: "float32", torch.float16: "float16"}
"""What numpy knows, too; states of other types are kept as float32."""


def row_key(row: EncodedExample, example: Example) -> str:
    """What decides a row's states, apart from the model: its ids and its images."""
    digest = hashlib.sha256(np.asarray(row.input_ids, dtype=np.int64).tobytes())
    for ref in example.images:
        digest.update(image_hash(ref).encode())
    return digest.hexdigest()


class StateCache:
    """Reads and extends one cache folder.

    Args:
        folder: Created on the first :meth:`fill`.
        fingerprint: Names the model, the layer, and whatever else decides the states.

    Raises:
        PolyptychError: If the folder holds states of something else.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.places: dict[str, tuple[int, int]] = {}  # key -> first position, positions
        self._width, self._type = 0, "float32"
        self._end, self._index_bytes = 0, 0  # positions and bytes that are written to their end
        self._map: np.ndarray | None = None  # memory-mapped, all positions x D
        meta = self.folder / "meta.json"
        if not meta.exists():
            return
        saved = json.loads(meta.read_text())
        if saved["fingerprint"] != fingerprint:
            raise PolyptychError(
                f"{self.folder}: states of {saved['fingerprint']}, not of {fingerprint}; "
                "use another folder"
            )
        self._width, self._type = saved["width"], saved["dtype"]
        self._read_index()

    def _read_index(self) -> None:
        """Take the rows that are written to their end."""
        try:
            lines = (self.folder / "index.txt").read_text().split("\n")[:-1]
            whole = (self.folder / "states.bin").stat().st_size // self._position_bytes
        except FileNotFoundError:  # killed before the first row
            return
        for line in lines:
            key, length = line.split()
            if self._end + int(length) > whole:
                break
            self.places[key] = (self._end, int(length))
            self._end += int(length)
            self._index_bytes += len(line) + 1

    @property
    def _position_bytes(self) -> int:
        return self._width * np.dtype(self._type).itemsize

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:  # worker processes open the file themselves
        return {**self.__dict__, "_map": None}

    def states(
        self, examples: Sequence[Example], rows: Sequence[EncodedExample]
    ) -> Float[Tensor, "B T D"]:
        """States of the examples' rows, padded with zeros on the right.

        Raises:
            PolyptychError: For a row that is not in the cache.
        """
        places = []
        for example, row in zip(examples, rows, strict=True):
            place = self.places.get(row_key(row, example))
            if place is None:
                raise PolyptychError(f"{self.folder}: no states of example {example.id!r}")
            places.append(place)
        if self._map is None:
            shape = (self._end, self._width)
            self._map = np.memmap(self.folder / "states.bin", self._type, "r", shape=shape)
        states = np.zeros((len(places), max(n for _, n in places), self._width), self._type)
        for into, (start, length) in zip(states, places, strict=True):
            into[:length] = self._map[start : start + length]
        return torch.from_numpy(states)

    def fill(
        self,
        examples: Iterable[Example],
        compute: Callable[[Batch], Float[Tensor, "B T D"]],
        collate: Callable[[Sequence[Example]], Batch],
        encode: Callable[[Example], EncodedExample],
        batch_size: int = 32,
    ) -> int:
        """Compute what is missing; returns the number of new rows.

        Args:
            examples: Training examples, in any order, repeated ones too.
            compute: A right-padded training batch -> the states of its rows.
            collate: Makes that batch.
            encode: One example's row of ids.
            batch_size: Rows per call of ``compute``.
        """
        missing: dict[str, tuple[int, Example]] = {}
        for example in examples:
            row = encode(example)
            if (key := row_key(row, example)) not in self.places:
                missing[key] = (len(row.input_ids), example)
        keys = sorted(missing, key=lambda key: missing[key][0])  # little padding
        for start in range(0, len(keys), batch_size):
            part = keys[start : start + batch_size]
            with torch.inference_mode():
                states = compute(collate([missing[key][1] for key in part])).cpu()
            self._append(part, [states[i, : missing[key][0]] for i, key in enumerate(part)])
        return len(keys)

    def _append(self, keys: Sequence[str], states: Sequence[Tensor]) -> None:
        if not self._width:
            self._start(states[0])
        values = [state.to(getattr(torch, self._type)).numpy() for state in states]
        lengths = [len(value) for value in values]
        index = "".join(f"{key} {length}\n" for key, length in zip(keys, lengths, strict=True))
        for name, whole, new in (
            ("states.bin", self._end * self._position_bytes, b"".join(v.tobytes() for v in values)),
            ("index.txt", self._index_bytes, index.encode()),
        ):
            with open(self.folder / name, "ab") as file:
                file.truncate(whole)
                file.write(new)
        for key, length in zip(keys, lengths, strict=True):
            self.places[key] = (self._end, length)
            self._end += length
        self._index_bytes += len(index)
        self._map = None

    def _start(self, states: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._width, self._type = states.shape[1], _TYPES.get(states.dtype, "float32")
        meta = {"fingerprint": self.fingerprint, "width": self._width, "dtype": self._type}
        with write_aside(self.folder / "meta.json") as file:
            json.dump(meta, file)
