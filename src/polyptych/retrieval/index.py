"""Searching keys by inner product through FAISS: all of them, or fewer with a measured recall.

``flat`` looks at every key, straight from the memory-mapped files. ``hnsw`` (a graph over 8-bit
keys, arXiv 1603.09320) and ``ivfpq`` (inverted lists of product-quantized keys) propose candidates,
whose exact inner products then decide: their scores are exact, only their recall is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyptych.errors import PolyptychError
from polyptych.retrieval.optional import OptionalModule
from polyptych.retrieval.store import IndexInfo, Kind, Recall, Store, adopt, check_file

if TYPE_CHECKING:
    import faiss
else:
    faiss = OptionalModule("faiss")

FLAT_UP_TO = 200_000
"""Entries up to which ``auto`` looks at every key."""
HNSW_UP_TO = 2_000_000
"""Entries up to which ``auto`` builds a graph; it takes D + 280 bytes of memory per entry."""

HNSW_LINKS = 32
HNSW_BUILD_WIDTH = 80
HNSW_SEARCH_WIDTH = 128
IVF_PROBES = 32
IVF_TRAINING_KEYS = 64
"""Keys per list that training the lists reads."""
IVF_SMALLEST = 1_000
"""Entries below which there is nothing to learn lists and codes of 256 values from."""
CANDIDATES = 10
"""Candidates per wanted result whose exact inner products are computed."""
RECALL_QUERIES = 256
RECALL_TOP_K = 10
_RERANK_QUERIES = 256
"""Queries whose candidates are gathered together: 256 x 100 x 1,024 numbers are 100 MB."""

Hits = tuple[np.ndarray, np.ndarray]
"""Scores (n, k) float32, descending, and rows (n, k) int64; -1 and -inf where there are fewer."""


def choose_kind(count: int) -> Kind:
    """The kind that ``auto`` stands for at this many entries."""
    if count <= FLAT_UP_TO:
        return "flat"
    return "hnsw" if count <= HNSW_UP_TO else "ivfpq"


class VectorIndex:
    """The keys of a store, ready to be asked.

    Args:
        store: Where they lie.

    Raises:
        PolyptychError: If the graph or lists are gone or of another build.
    """

    def __init__(self, store: Store) -> None:
        self.keys = store.keys
        self.structure: Any = None
        if store.info.structure is not None:
            path = store.folder / store.info.structure
            check_file(path)
            self.structure = read_structure(path, memory_mapped=True)
            if self.structure.ntotal != len(store):
                raise PolyptychError(
                    f"{path}: {self.structure.ntotal} keys, but the index has {len(store)}"
                )

    def search(self, queries: np.ndarray, top_k: int) -> Hits:
        """The best ``top_k`` rows of each query (n, D)."""
        if self.structure is None:
            return exact_search(self.keys, queries, top_k)
        return approximate_search(self.structure, self.keys, queries, top_k)


def exact_search(keys: Sequence[np.ndarray], queries: np.ndarray, top_k: int) -> Hits:
    """Every key of every segment."""
    queries = np.ascontiguousarray(queries, np.float32)
    parts, offset = [], 0
    for part in keys:
        k = min(top_k, len(part))
        if k:
            scores, rows = faiss.knn(queries, part, k, metric=faiss.METRIC_INNER_PRODUCT)
            parts.append((scores, rows + offset))
        offset += len(part)
    scores = np.concatenate([scores for scores, _ in parts], axis=1)
    rows = np.concatenate([rows for _, rows in parts], axis=1)
    return _best(scores, rows, top_k)


def approximate_search(
    structure: Any, keys: Sequence[np.ndarray], queries: np.ndarray, top_k: int
) -> Hits:
    """Candidates of a graph or of lists, ordered by their exact inner products."""
    queries = np.ascontiguousarray(queries, np.float32)
    wanted = min(top_k * CANDIDATES, structure.ntotal)
    if isinstance(structure, faiss.IndexHNSW):
        structure.hnsw.efSearch = max(HNSW_SEARCH_WIDTH, wanted)
    _, candidates = structure.search(queries, wanted)
    scores = np.full(candidates.shape, -np.inf, np.float32)
    for start in range(0, len(queries), _RERANK_QUERIES):
        some = slice(start, start + _RERANK_QUERIES)
        gathered = _gather(keys, candidates[some])
        scores[some] = np.einsum("qd,qkd->qk", queries[some], gathered)
    scores[candidates < 0] = -np.inf
    return _best(scores, candidates, top_k)


def _gather(keys: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    if len(keys) == 1:
        return keys[0][np.maximum(rows, 0)]
    gathered = np.empty((*rows.shape, keys[0].shape[1]), np.float32)
    offset = 0
    for part in keys:
        here = (rows >= offset) & (rows < offset + len(part))
        gathered[here] = part[rows[here] - offset]
        offset += len(part)
    return gathered


def _best(scores: np.ndarray, rows: np.ndarray, top_k: int) -> Hits:
    """The best ``top_k`` of each query; equal scores in the order of the rows."""
    order = np.lexsort((rows, -scores), axis=-1)[:, :top_k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def build_structure(kind: Kind, keys: Sequence[np.ndarray]) -> Any:
    """The graph or lists over all keys.

    Raises:
        PolyptychError: If there are too few keys to learn how to compress them.
    """
    count, dimension = sum(map(len, keys)), keys[0].shape[1]
    if kind == "hnsw":
        structure, training = _empty_graph(dimension), 65_536
    else:
        if count < IVF_SMALLEST:
            raise PolyptychError(f"ivfpq needs {IVF_SMALLEST} entries or more, got {count}")
        lists = int(4 * count**0.5)
        structure, training = _empty_lists(dimension, lists), lists * IVF_TRAINING_KEYS
    structure.train(_sample(keys, training))
    extend_structure(structure, keys)
    return structure


def _empty_graph(dimension: int) -> Any:
    eight_bits: Any = faiss.ScalarQuantizer.QT_8bit  # the stubs want an object here
    graph = faiss.IndexHNSWSQ(dimension, eight_bits, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = HNSW_BUILD_WIDTH
    return graph


def _empty_lists(dimension: int, lists: int) -> Any:
    kind = f"IVF{lists},PQ{_code_bytes(dimension)}"
    structure: Any = faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)
    structure.nprobe = IVF_PROBES
    for clustering in (structure.cp, structure.pq.cp):
        clustering.min_points_per_centroid = 1  # no warnings; recall is measured anyway
    return structure


def extend_structure(structure: Any, keys: Sequence[np.ndarray], batch: int = 65_536) -> None:
    """Add keys behind those that are there, without training again."""
    for part in keys:
        for start in range(0, len(part), batch):
            structure.add(np.ascontiguousarray(part[start : start + batch]))


def read_structure(path: Path, *, memory_mapped: bool) -> Any:
    """Read a graph or lists; memory-mapped ones cannot be extended."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_mapped else 0)


def write_structure(structure: Any, kind: Kind, work: Path, folder: Path) -> str:
    """Write a graph or lists into an index; returns the file's name."""
    temporary = work / "structure.faiss"
    faiss.write_index(structure, str(temporary))
    return adopt(temporary, folder, kind)


def measure_recall(structure: Any, keys: Sequence[np.ndarray]) -> Recall:
    """Share of the exact neighbors of some keys that is found, their own row left out."""
    count = sum(map(len, keys))
    top_k = min(RECALL_TOP_K, count - 1)
    asked = np.linspace(0, count - 1, min(RECALL_QUERIES, count)).astype(np.int64)
    queries = _gather(keys, asked[:, None])[:, 0]
    _, exact = exact_search(keys, queries, top_k + 1)
    _, found = approximate_search(structure, keys, queries, top_k + 1)
    shares = []
    for row, wanted, got in zip(asked.tolist(), exact.tolist(), found.tolist(), strict=True):
        truth = [other for other in wanted if other != row][:top_k]
        ours = [other for other in got if other != row][:top_k]
        shares.append(len(set(truth) & set(ours)) / max(1, top_k))
    return Recall(round(float(np.mean(shares)), 4), top_k, len(asked))


def describe(info: IndexInfo) -> str:
    """How exact a search of this index is, in words."""
    if info.recall is None:
        return "exact"
    recall = info.recall
    return (
        f"recall@{recall.top_k} {recall.value:.3f} against the exact search ({recall.queries} keys)"
    )


def _sample(keys: Sequence[np.ndarray], wanted: int) -> np.ndarray:
    count = sum(map(len, keys))
    rows = np.linspace(0, count - 1, min(wanted, count)).astype(np.int64)
    return _gather(keys, rows[:, None])[:, 0]


def _code_bytes(dimension: int) -> int:
    """Bytes per key: one for eight dimensions, or the next finer split that divides them."""
    return next(m for m in range(max(1, dimension // 8), dimension + 1) if dimension % m == 0)
