"""Sets that are larger than memory and disk: shards in Parquet or tar, anywhere fsspec reaches.

A shard is either of

tar      one ``KEY.json`` per example (a native record) with its images beside it, files whose names
         begin with ``KEY.``; the record's ``images`` are these names
parquet  a column ``record`` (a native record as JSON) and a column ``images`` (list of bytes); the
         record's ``images`` are their numbers, ``"0"``, ``"1"`` ...

``polyptych data shard`` makes both, with a list ``shards.json`` of how many examples each holds;
without that list every shard is looked into once. Shards that lie elsewhere (``s3://``, ``https://``,
``hf://`` ...) are fetched whole when their turn comes and kept, the last used ones, up to a number
of bytes; all processes of a machine share them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
from torch.utils.data import Dataset

from polyptych.data.dataset import LoadedExample, Transform, load_all
from polyptych.data.records import parse_json, parse_record
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageRef

MANIFEST = "shards.json"
"""Name of the list beside the shards: shard name -> number of examples and SHA-256 of the file."""

ENDINGS = (".tar", ".parquet")

_WINDOW = 4
"""Shards whose examples are mixed with each other; so many are read at a time."""

_OPEN = 2 * _WINDOW
"""Shards that one process keeps open."""

CACHE_BYTES = 64 * 2**30
"""Bytes of fetched shards that are kept where nobody says otherwise."""


def is_sharded(path: str) -> bool:
    """Whether a path or pattern names shards, or a folder of them."""
    if path.endswith(ENDINGS):
        return True
    return "://" in path or Path(path, MANIFEST).exists()


class ShardedExamples(Dataset[Any]):
    """Random access to the examples of all shards; picklable, for worker processes.

    Args:
        path: A shard, a pattern (``s3://bucket/train-*.tar``), or a folder with ``shards.json``.
        transform: Applied to each `LoadedExample`; without it the item is the loaded example.
        load_images: Decode the images.
        cache: Folder for shards that are fetched; default: in the system's folder for such things.
        cache_bytes: How much is kept there; None for ``CACHE_BYTES``.

    Raises:
        PolyptychError: If there are no shards, or one cannot be read.
    """

    def __init__(
        self,
        path: str,
        transform: Transform | None = None,
        *,
        load_images: bool = True,
        cache: str | Path | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.transform, self.load_images = transform, load_images
        self.store = _Store(path, cache, cache_bytes)
        self.names, sizes = self.store.names, self.store.sizes
        if sizes is None:
            sizes = [len(self._open(number)) for number in range(len(self.names))]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        names = [name.rpartition("/")[2] for name in self.names]
        listed = json.dumps([names, sizes, [*self.store.digests.values()]])
        self.fingerprint = hashlib.sha256(listed.encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Any:
        example = self.example(index)
        loaded = LoadedExample(example, load_all(example) if self.load_images else ())
        return loaded if self.transform is None else self.transform(loaded)

    def __getstate__(self) -> dict[str, Any]:  # worker processes open shards themselves
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}

    def example(self, index: int) -> Example:
        """The example at ``index``; its images are bytes.

        Raises:
            PolyptychError: For a bad record, naming shard and place.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number = int(np.searchsorted(self.ends, index, side="right"))
        row = index - (int(self.ends[number - 1]) if number else 0)
        where = f"{self.names[number]} example {row + 1}"
        record, images = self._open(number).row(row, where)
        return _with_bytes(parse_record(record, where, ""), images, where)

    def order(self, seed: int) -> np.ndarray:
        """Every place once: shards in random order, a few at a time mixed with each other."""
        rng = np.random.default_rng(seed)
        starts = np.concatenate([[0], self.ends])
        shards = rng.permutation(len(self.names))
        parts = []
        for first in range(0, len(shards), _WINDOW):
            window = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + _WINDOW]]
            parts.append(rng.permutation(np.concatenate(window)))
        return np.concatenate(parts)

    def _open(self, number: int) -> _Shard:
        shards: OrderedDict[int, _Shard] = self.__dict__.setdefault("_shards", OrderedDict())
        if number not in shards:
            while len(shards) >= _OPEN:
                shards.popitem(last=False)[1].close()
            name = self.names[number]
            shards[number] = shard = _open_shard(self.store.local(name), name)
            listed = self.store.sizes
            if listed is not None and listed[number] != len(shard):
                raise PolyptychError(
                    f"{name} holds {len(shard)} examples, {MANIFEST} says {listed[number]}"
                )
        shards.move_to_end(number)
        return shards[number]


def _with_bytes(example: Example, images: dict[str, bytes], where: str) -> Example:
    """The example with the bytes that its image names stand for, its shots' too."""
    refs = []
    for ref in example.images:
        data = images.get(str(ref.path))
        if data is None:
            raise PolyptychError(f"{where}: no image {ref.path!r} in the shard")
        refs.append(ImageRef(data=data, sha256=ref.sha256))
    shots = tuple(_with_bytes(shot, images, where) for shot in example.shots)
    return replace(example, images=tuple(refs), shots=shots)


class _Shard(Protocol):
    def __len__(self) -> int: ...

    def row(self, row: int, where: str) -> tuple[Any, dict[str, bytes]]:
        """A record, and its images by name."""

    def close(self) -> None: ...


class _Tar:
    """Members are read where they lie, without the ones before them."""

    def __init__(self, path: Path, name: str) -> None:
        self.file = open(path, "rb")  # noqa: SIM115  (open as long as the shard)
        self.examples: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(fileobj=self.file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    key = member.name.rpartition("/")[2].partition(".")[0]
                    place = member.offset_data, member.size
                    self.examples.setdefault(key, {})[member.name.rpartition("/")[2]] = place
        self.keys = list(self.examples)

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, row: int, where: str) -> tuple[Any, dict[str, bytes]]:
        """A record, and its images by name."""
        key = self.keys[row]
        parts = {name: self._read(*place) for name, place in self.examples[key].items()}
        if f"{key}.json" not in parts:
            raise PolyptychError(f"{where}: no {key}.json among {', '.join(parts)}")
        return parse_json(parts.pop(f"{key}.json"), where), parts

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, offset)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class _Parquet:
    """One row group is held in memory."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise PolyptychError(f"{name}: Parquet needs pyarrow: pip install pyarrow") from error
        self.file = parquet.ParquetFile(path, memory_map=True)
        missing = {"record", "images"} - set(self.file.schema_arrow.names)
        if missing:
            raise PolyptychError(f"{name}: no column {' and '.join(sorted(missing))}")
        groups = range(self.file.metadata.num_row_groups)
        self.ends = np.cumsum([self.file.metadata.row_group(g).num_rows for g in groups])
        self.group, self.table = -1, None

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def row(self, row: int, where: str) -> tuple[Any, dict[str, bytes]]:
        """A record, and its images by name."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        if group != self.group:
            self.group = group
            self.table = self.file.read_row_group(group, columns=["record", "images"])
        assert self.table is not None
        place = row - (int(self.ends[group - 1]) if group else 0)
        record = parse_json(self.table["record"][place].as_py(), where)
        images = self.table["images"][place].as_py() or []
        return record, {str(number): data for number, data in enumerate(images)}

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _open_shard(path: Path, name: str) -> _Shard:
    try:
        return _Tar(path, name) if name.endswith(".tar") else _Parquet(path, name)
    except (OSError, tarfile.TarError) as error:
        raise PolyptychError(f"{name}: cannot be read: {error}") from error
    except ValueError as error:  # pyarrow's own errors are of this kind
        raise PolyptychError(f"{name}: not a whole Parquet file: {error}") from error


class _Store:
    """Where shards lie, and what of them is here."""

    def __init__(self, path: str, cache: str | Path | None, cache_bytes: int | None) -> None:
        self.bytes = CACHE_BYTES if cache_bytes is None else cache_bytes
        self.folder = Path(cache or Path(tempfile.gettempdir(), f"polyptych-shards-{os.getuid()}"))
        try:
            fs, place = fsspec.core.url_to_fs(path)
            self.is_local = "file" in fs.protocol
            if path.endswith(ENDINGS):
                found, listed = sorted(fs.glob(place)), {}
            else:
                listed = json.loads(fs.cat_file(f"{place.rstrip('/')}/{MANIFEST}"))
                found = [f"{place.rstrip('/')}/{name}" for name in listed]
            self.names = [name if self.is_local else fs.unstrip_protocol(name) for name in found]
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise PolyptychError(f"{path}: no shards can be found here: {error}") from error
        if not self.names:
            raise PolyptychError(f"{path}: 0 shards; a pattern ends in .tar or .parquet")
        self.sizes, self.digests = None, {}
        if listed:
            self.sizes = [int(shard["examples"]) for shard in listed.values()]
            shas = (shard["sha256"] for shard in listed.values())
            self.digests = dict(zip(self.names, shas, strict=True))

    def local(self, name: str) -> Path:
        """A shard as a file of this machine, fetched if it lies elsewhere.

        Raises:
            PolyptychError: If it cannot be fetched.
        """
        if self.is_local:
            return Path(name)
        digest = hashlib.sha256(name.encode()).hexdigest()[:24]
        path = self.folder / f"{digest}{Path(name).suffix}"
        with self._locked(path):
            if path.exists():
                with suppress(OSError):
                    os.utime(path)
                return path
            partial = path.with_name(f"{path.name}.partial")
            try:
                fs, place = fsspec.core.url_to_fs(name)
                fs.get_file(place, str(partial))
            except Exception as error:  # each file system has errors of its own
                partial.unlink(missing_ok=True)
                raise PolyptychError(f"{name}: cannot be fetched: {error}") from error
            self._check(name, partial)
            os.replace(partial, path)
        self._make_room(path)
        return path

    def _check(self, name: str, partial: Path) -> None:
        """Refuse what is not the shard that the list speaks of."""
        if name not in self.digests:
            return
        with open(partial, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.digests[name]:
            partial.unlink()
            raise PolyptychError(f"{name}: sha256 {found} but {MANIFEST} says {self.digests[name]}")

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """One process fetches a shard, the others wait for it."""
        import fcntl  # not on every system, and for remote shards only

        self.folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, newest: Path) -> None:
        """Remove what was used longest ago; a process that has it open can still read it."""
        kept = []
        for path in self.folder.iterdir():
            with suppress(OSError):
                if path.suffix in ENDINGS:
                    status = path.stat()
                    kept.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.bytes:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size
