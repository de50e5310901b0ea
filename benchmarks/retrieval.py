"""How fast and how exact the retriever is: ``python benchmarks/retrieval.py --help``.

Keys are unit vectors around random centers, as embeddings of pictures are; queries are drawn around
the same centers and are no keys. Of each kind: seconds to build and to search (wall clock, and CPU
seconds of all threads, which other load on the machine does not stretch), size on disk, queries per
second, recall@10 against ``flat``, and the recall that the index states about itself.
``--overhead`` times an index build of drawn pictures next to the encoder alone, in one process.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from measuring import machine, write_json
from polyptych.data.images import load_image
from polyptych.data.records import read_records
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.index import (
    approximate_search,
    build_structure,
    exact_search,
    measure_recall,
    read_structure,
)
from polyptych.storybook.generation import write_dataset

TOP_K = 10


@contextmanager
def timed(row: dict[str, Any], name: str) -> Iterator[None]:
    """Wall-clock and CPU seconds of what is done inside."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    row[f"{name}_seconds"] = time.perf_counter() - wall
    row[f"{name}_cpu_seconds"] = time.process_time() - cpu


def clustered(rng: np.random.Generator, centers: np.ndarray, count: int, spread: float) -> Any:
    """Unit vectors (count, D) around centers."""
    vectors = centers[rng.integers(len(centers), size=count)]
    vectors += spread * rng.standard_normal(vectors.shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_keys(folder: Path, count: int, queries: int, width: int, spread: float) -> Any:
    """Keys, memory-mapped as those of an index are, and queries."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((max(1, count // 50), width), dtype=np.float32)
    path = folder / "keys.f32"
    with open(path, "wb") as file:
        for start in range(0, count, 65_536):
            part = clustered(rng, centers, min(65_536, count - start), spread)
            file.write(part.tobytes())
    keys = np.memmap(path, np.float32, "r", shape=(count, width))
    return keys, clustered(rng, centers, queries, spread)


def measure_kind(kind: Any, keys: Any, queries: Any, truth: Any, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"kind": kind, "megabytes": keys.nbytes / 1e6}
    search = exact_search
    if kind != "flat":
        with timed(row, "build"):
            structure = build_structure(kind, [keys])
        path = folder / f"{kind}.faiss"
        faiss.write_index(structure, str(path))
        row["megabytes"] += path.stat().st_size / 1e6
        row["stated_recall"] = measure_recall(structure, [keys]).value
        structure = read_structure(path, memory_mapped=True)

        def search(keys: Any, queries: Any, top_k: int) -> Any:
            return approximate_search(structure, keys, queries, top_k)

    with timed(row, "search"):
        _, rows = search([keys], queries, TOP_K)
    row["queries_per_second"] = len(queries) / row["search_seconds"]
    if truth is not None:
        shares = [len(set(a) & set(b)) / TOP_K for a, b in zip(truth, rows, strict=True)]
        row["recall_at_10"] = float(np.mean(shares))
    row["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    row["rows"] = rows
    return row


def measure_overhead(count: int) -> dict[str, float]:
    """An index build next to decoding and encoding the same pictures."""
    encoder = load_encoder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_dataset("knowledge_qa", folder / "data", count=count, split="train", seed=0)
        examples = list(read_records(path))
        refs = [ref for example in examples for ref in example.images]
        build_index(examples[:2], folder / "warm", encoder)
        row: dict[str, float] = {}
        with timed(row, "encoder"):
            for start in range(0, len(refs), 64):
                encoder.encode_images([load_image(ref) for ref in refs[start : start + 64]])
        with timed(row, "build"):
            build_index(examples, folder / "index", encoder)
    row["overhead"] = row["build_cpu_seconds"] / row["encoder_cpu_seconds"] - 1
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--spread", type=float, default=0.7)
    parser.add_argument("--kinds", nargs="+", default=["flat", "hnsw", "ivfpq"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--overhead", type=int, default=0, metavar="PICTURES")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    load = [os.getloadavg()[0]]
    results: dict[str, Any] = {"rows": []}
    results["options"] = {k: v for k, v in vars(options).items() if k != "json"}
    if options.overhead:
        results["overhead"] = measure_overhead(options.overhead)
        print(results["overhead"], flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys, queries = make_keys(
            folder, options.keys, options.queries, options.width, options.spread
        )
        truth = None
        for kind in options.kinds:
            row = measure_kind(kind, keys, queries, truth, folder)
            found = row.pop("rows")
            truth = found if kind == "flat" else truth
            results["rows"].append(row)
            print(
                {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True
            )
    results["machine"] = machine("cpu", [*load, os.getloadavg()[0]])
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
