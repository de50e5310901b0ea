"""Neighbor tables: which entries each example of a dataset gets as shots, computed once.

What is retrieved depends on nothing but the example and the index, so nothing is searched while a
model trains. In training, the example itself is left out, and entries that show one of its images:
they hold its own answer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.retrieval.inputs import (
    Embedding,
    Query,
    image_hashes,
    query_text,
)
from polyptych.retrieval.optional import OptionalModule
from polyptych.retrieval.retriever import Hit, LeftOut, Retriever
from polyptych.retrieval.store import Store
from polyptych.schema import Example

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = OptionalModule("pyarrow")

_SEARCHED_TOGETHER = 4096


@dataclass(frozen=True, slots=True)
class NeighborSettings:
    """What a table holds."""

    top_k: int = 10
    """Neighbors of each example: the most shots it can be given later."""
    query: Query = "image"
    """What of an example asks."""
    exclude_self: bool = True
    """Leave out entries with the example's own id."""
    exclude_same_image: bool = True
    """Leave out entries that show one of the example's images."""
    unique_images: bool = True
    """Of entries with the same images keep the nearest only."""


class NeighborTable:
    """The neighbors of a dataset's examples, by example id.

    Args:
        path: Of a table that :func:`build_neighbors` has written.

    Raises:
        PolyptychError: If there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
            described = json.loads(self._table.schema.metadata[b"polyptych"])
            self.index_fingerprint: str = described["index"]
            self.data_fingerprint: str = described["data"]
            self.settings = NeighborSettings(**described["settings"])
        except FileNotFoundError as error:
            raise PolyptychError(f"{self.path}: no neighbor table here") from error
        except (pa.ArrowException, TypeError, KeyError, ValueError) as error:
            raise PolyptychError(f"{self.path}: not a neighbor table: {error}") from error
        self._places = {key: n for n, key in enumerate(self._table.column("key").to_pylist())}

    def __len__(self) -> int:
        return self._table.num_rows

    @property
    def mean_count(self) -> float:
        """Neighbors per example; below ``top_k`` where too many were left out."""
        return len(self._table.column("ids").combine_chunks().flatten()) / max(1, len(self))

    def hits(self, example: Example) -> list[Hit]:
        """An example's neighbors, best first.

        Raises:
            PolyptychError: If the example, as it is now, was not there when the table was made.
        """
        place = self._places.get(_example_key(example))
        if place is None:
            raise PolyptychError(
                f"{self.path}: no neighbors of example {example.id!r}; the data have changed or "
                "are others, make the table again"
            )
        row = self._table.slice(place, 1).to_pylist()[0]
        found = zip(row["rows"], row["ids"], row["scores"], strict=True)
        return [Hit(*hit) for hit in found]


def build_neighbors(
    examples: Iterable[Example],
    retriever: Retriever,
    path: str | Path,
    *,
    settings: NeighborSettings = NeighborSettings(),
    embedding: Embedding = Embedding(),  # noqa: B008 - frozen
) -> NeighborTable:
    """Search the neighbors of every example, unless the file holds just these already.

    Args:
        examples: The dataset.
        retriever: Of the index.
        path: The table's file; a killed run goes on in ``PATH.work``.
        settings: What is searched and what is left out.
        embedding: How the examples' vectors are computed.

    Raises:
        PolyptychError: If the encoder cannot read what asks, more neighbors are wanted than the
            index has entries, or an image cannot be read.
    """
    path, examples = Path(path), list(examples)
    described = {
        "index": retriever.store.info.fingerprint,
        "data": data_fingerprint(examples),
        "settings": asdict(settings),
    }
    if path.exists() and _described(path) == described:
        return NeighborTable(path)
    work = path.with_name(path.name + ".work")
    vectors, asking = retriever.encode(examples, settings.query, work=work, settings=embedding)
    found: list[list[Hit]] = [[] for _ in examples]
    for start in range(0, len(asking), _SEARCHED_TOGETHER):
        some = asking[start : start + _SEARCHED_TOGETHER]
        results = retriever.search(
            vectors[start : start + _SEARCHED_TOGETHER],
            settings.top_k,
            left_out=[_left_out(examples[number], settings) for number in some],
            unique_images=settings.unique_images,
        )
        for number, hits in zip(some, results, strict=True):
            found[number] = hits
    _write(path, examples, found, described)
    shutil.rmtree(work)
    return NeighborTable(path)


def with_shots(
    example: Example, table: NeighborTable, store: Store, count: int | None = None
) -> Example:
    """The example with its nearest entries as shots.

    Args:
        example: One of the table's dataset.
        table: Its neighbors.
        store: Of the index that the table was made with.
        count: How many; None for all that the table has.

    Raises:
        PolyptychError: If the table is of another index or does not know the example.
    """
    found = store.info.fingerprint
    if found != table.index_fingerprint:
        raise PolyptychError(
            f"{table.path}: neighbors in index {table.index_fingerprint}, not in "
            f"{store.folder} ({found}); make the table again"
        )
    hits = table.hits(example)[:count]
    return replace(example, shots=tuple(store.example(hit.row) for hit in hits))


def data_fingerprint(examples: Sequence[Example]) -> str:
    """A hash of what can ask in a dataset, in order: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_example_key(example).encode())
    return digest.hexdigest()[:16]


def _example_key(example: Example) -> str:
    """Changes with an example's id, question or images."""
    parts = [example.id, query_text(example), *image_hashes(example)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _left_out(example: Example, settings: NeighborSettings) -> LeftOut:
    return LeftOut(
        ids={example.id} if settings.exclude_self else (),
        image_hashes=set(image_hashes(example)) if settings.exclude_same_image else (),
    )


def _described(path: Path) -> Any:
    try:
        with pa.memory_map(str(path)) as file:
            return json.loads(pa.ipc.open_file(file).schema.metadata[b"polyptych"])
    except (pa.ArrowException, TypeError, KeyError, ValueError):
        return None


def _write(
    path: Path, examples: Sequence[Example], found: list[list[Hit]], described: dict[str, Any]
) -> None:
    columns = {
        "key": pa.array([_example_key(example) for example in examples], pa.string()),
        "id": pa.array([example.id for example in examples], pa.string()),
        "rows": pa.array([[hit.row for hit in hits] for hits in found], pa.list_(pa.int64())),
        "ids": pa.array([[hit.id for hit in hits] for hits in found], pa.list_(pa.string())),
        "scores": pa.array([[hit.score for hit in hits] for hits in found], pa.list_(pa.float32())),
    }
    table = pa.table(columns).replace_schema_metadata({"polyptych": json.dumps(described)})
    with write_aside(path, binary=True) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
