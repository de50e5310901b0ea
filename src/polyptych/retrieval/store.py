"""An index on disk: keys and what they stand for, bound to each other by content.

    INDEX/
      index.json               encoder, kind, and the files below; written last, replaced at once
      keys-<digest>.f32        one unit vector per entry, row by row, memory-mapped
      entries-<digest>.arrow   the entries in the same order: id, text, image hashes, native record
      hnsw-<digest>.faiss      the graph or the inverted lists, where the kind has one

Each build or addition writes one pair of keys and entries and never touches an older one. Files are
named by the digest of their content and opened by the names in ``index.json`` alone, after their
digests have been checked: keys and entries of different builds cannot meet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polyptych.data.records import parse_json, parse_record
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.retrieval.optional import OptionalModule
from polyptych.schema import Example

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = OptionalModule("pyarrow")

INDEX_FILE = "index.json"
FORMAT = 1

Key = Literal["image", "text", "both"]
"""What of an entry becomes its key; ``both`` is the sum of the two unit vectors, made unit."""

Kind = Literal["flat", "hnsw", "ivfpq"]
"""How keys are searched: all of them, by a graph, by compressed inverted lists."""

_DIGEST_BLOCK = 1 << 16
_DIGEST_BLOCKS = 1024
"""Of a file larger than 64 MiB (blocks x block) the digest reads that many blocks, evenly spaced:
checking takes a fraction of a second at any size."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The entries of one build or addition."""

    count: int
    keys: str
    entries: str


@dataclass(frozen=True, slots=True)
class Recall:
    """How much of the exact result an approximate kind finds, measured when it was built."""

    value: float
    """Mean share of the exact first ``top_k`` that was found."""
    top_k: int
    queries: int
    """Stored keys that asked; their own entry does not count."""


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What ``index.json`` says."""

    encoder: str
    encoder_fingerprint: str
    key: Key
    dimension: int
    kind: Kind = "flat"
    segments: tuple[Segment, ...] = ()
    structure: str | None = None
    """File of the graph or lists; None where the kind has none."""
    recall: Recall | None = None
    format: int = FORMAT

    @property
    def count(self) -> int:
        """Entries of all segments."""
        return sum(segment.count for segment in self.segments)

    @property
    def fingerprint(self) -> str:
        """Equal for two indexes exactly when they hold the same: 16 hexadecimal digits."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("encoder", "recall")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The keys and entries of an index, memory-mapped.

    Args:
        folder: Of a finished index.

    Raises:
        PolyptychError: If there is none, a file is gone, or one is not of this build.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        for segment in self.info.segments:
            check_file(self.folder / segment.keys)
            check_file(self.folder / segment.entries)
        self.keys = [map_keys(self.folder, s, self.info.dimension) for s in self.info.segments]
        self.table = pa.concat_tables(
            [pa.ipc.open_file(self._map(s.entries)).read_all() for s in self.info.segments]
        )
        keys = sum(map(len, self.keys))
        if not keys == self.table.num_rows == len(self):
            raise PolyptychError(
                f"{self.folder}: {keys} keys and {self.table.num_rows} entries, not {len(self)}"
            )

    def __len__(self) -> int:
        return self.info.count

    def __getstate__(self) -> dict[str, Any]:  # worker processes map the files themselves
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def _map(self, name: str) -> pa.MemoryMappedFile:
        return pa.memory_map(str(self.folder / name))

    def column(self, name: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Values of some entries."""
        return self.table.column(name).take(pa.array(rows, pa.int64())).to_pylist()

    def example(self, row: int) -> Example:
        """An entry as the example it was made of; its images are checked when they are loaded."""
        where = f"{self.folder} entry {row}"
        record = parse_json(self.column("record", [row])[0], where)
        return parse_record(record, where, self.folder)

    @cached_property
    def digests(self) -> set[bytes]:
        """One per entry: what an addition compares to know what is there already."""
        columns = (self.table.column(name) for name in ("id", "text", "image_hashes"))
        values = (column.to_pylist() for column in columns)
        return {entry_digest(*entry) for entry in zip(*values, strict=True)}


def map_keys(folder: Path, segment: Segment, dimension: int) -> np.ndarray:
    """The keys of a segment (n, D), memory-mapped."""
    return np.memmap(folder / segment.keys, np.float32, "r").reshape(-1, dimension)


def entry_digest(identity: str, text: str, image_hashes: Iterable[str]) -> bytes:
    """What makes an entry the same as another."""
    return hashlib.sha256("\0".join([identity, text, *image_hashes]).encode()).digest()


def read_info(folder: str | Path) -> IndexInfo:
    """Read ``index.json``.

    Raises:
        PolyptychError: If there is none, or it is of another format.
    """
    path = Path(folder, INDEX_FILE)
    if not path.exists():
        hint = "; the build was interrupted, run it again" if Path(folder, "work").exists() else ""
        raise PolyptychError(f"{folder}: no index here (no {INDEX_FILE}){hint}")
    fields = parse_json(path.read_bytes(), str(path))
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else None
        raise PolyptychError(f"{path}: index format {found}, this version reads {FORMAT}")
    try:
        checksum = fields.pop("fingerprint")
        segments = tuple(Segment(**segment) for segment in fields.pop("segments"))
        recall = fields.pop("recall")
        info = IndexInfo(**fields, segments=segments, recall=recall and Recall(**recall))
    except (KeyError, TypeError) as error:
        raise PolyptychError(f"{path}: not an index of this version: {error}") from error
    if info.fingerprint != checksum:
        raise PolyptychError(f"{path}: checksum {checksum}, but its content has {info.fingerprint}")
    return info


def write_info(folder: Path, info: IndexInfo) -> None:
    """Write ``index.json``: from now on this is what the folder holds."""
    with write_aside(folder / INDEX_FILE) as file:
        json.dump({**asdict(info), "fingerprint": info.fingerprint}, file, indent=1)


def sweep(folder: Path, info: IndexInfo) -> None:
    """Remove files that the index does not name: of a killed run, or replaced by it."""
    named = {name for segment in info.segments for name in (segment.keys, segment.entries)}
    for pattern in ("keys-*.f32", "entries-*.arrow", "*-*.faiss"):
        for path in folder.glob(pattern):
            if path.name not in named and path.name != info.structure:
                path.unlink()


def adopt(temporary: Path, folder: Path, kind: str) -> str:
    """Move a finished file into the index under the name of its content; returns that name."""
    name = f"{kind}-{digest(temporary)}{temporary.suffix}"
    temporary.replace(folder / name)
    return name


def digest(path: Path, *, whole: bool = False) -> str:
    """16 hexadecimal digits of a file's size and content (of large files: evenly spaced blocks)."""
    size = path.stat().st_size
    result = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if whole or size <= _DIGEST_BLOCK * _DIGEST_BLOCKS:
            while block := file.read(1 << 22):
                result.update(block)
        else:
            for number in range(_DIGEST_BLOCKS):
                file.seek((size - _DIGEST_BLOCK) * number // (_DIGEST_BLOCKS - 1))
                result.update(file.read(_DIGEST_BLOCK))
    return result.hexdigest()[:16]


def check_file(path: Path) -> None:
    """Refuse a file whose content is not what its name says.

    Raises:
        PolyptychError: If it is gone or of another build, naming both digests.
    """
    if not path.exists():
        raise PolyptychError(f"{path} is gone: the index is not whole; build it again")
    expected, found = path.stem.rsplit("-", 1)[-1], digest(path)
    if expected != found:
        raise PolyptychError(
            f"{path}: content {found}, not {expected}: of another build, or damaged"
        )


def entry_schema() -> pa.Schema:
    """Columns of an entries file."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("image_hashes", pa.list_(pa.string())),
            ("record", pa.string()),
        ]
    )


def write_entries(path: Path, rows: Iterator[dict[str, Any]], batch: int = 4096) -> int:
    """Write entries as Arrow, a batch at a time; returns their number."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = entry_schema()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        waiting: list[dict[str, Any]] = []
        for row in rows:
            waiting.append(row)
            count += 1
            if len(waiting) == batch:
                writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=schema))
                waiting = []
        if waiting:
            writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=schema))
    return count


def with_segment(info: IndexInfo, segment: Segment) -> IndexInfo:
    """The index with one more segment."""
    return replace(info, segments=(*info.segments, segment))
