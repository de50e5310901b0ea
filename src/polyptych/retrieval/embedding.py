"""Embedding many pictures or texts: batched, resumable, and on several machines when asked.

Vectors are written to their place in one file, and the number of each finished batch to a log after
it. What a batch holds depends on nothing but the list, so a run that was killed goes on with the
batches that are missing and ends with the same file as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data.cluster import Cluster, Compute, on_ray
from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.protocol import Encoder, Modality, require

Work = tuple[int, Sequence[Any]]
"""A batch: its number and its items (image references or texts)."""

Runner = Callable[[Iterable[Work]], Iterator[tuple[int, np.ndarray]]]
"""What turns batches into vectors, in any order."""

BATCH_SIZE = 64
"""Items encoded together."""


def embed(
    items: Sequence[Any],
    run: Runner,
    path: Path,
    *,
    dimension: int,
    fingerprint: str,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Embed all items into one file, or what an earlier run has left over of them.

    Args:
        items: Image references or texts.
        run: :func:`serially` or :func:`through_ray`.
        path: The file; ``.json`` and ``.done`` beside it say what is in it.
        dimension: Width D.
        fingerprint: Of encoder and items: a file of others is started again.
        batch_size: Items encoded together.
        on_batch: Told how many items are finished.

    Returns:
        (n, D) float32, memory-mapped.
    """
    plan = {
        "fingerprint": fingerprint,
        "count": len(items),
        "dimension": dimension,
        "batch_size": batch_size,
    }
    done = _resume(path, plan)
    if not items:
        return np.empty((0, dimension), np.float32)
    shape = (len(items), dimension)
    vectors = np.memmap(path, np.float32, "r+" if path.exists() else "w+", shape=shape)
    batches = range(0, len(items), batch_size)
    missing = (
        (number, items[start : start + batch_size])
        for number, start in enumerate(batches)
        if number not in done
    )
    finished = len(done)
    with open(path.with_suffix(".done"), "a") as log:
        for number, rows in run(missing):
            start = number * batch_size
            vectors[start : start + len(rows)] = rows
            vectors.flush()
            log.write(f"{number}\n")
            log.flush()
            finished += 1
            if on_batch is not None:
                on_batch(min(finished * batch_size, len(items)))
    return np.memmap(path, np.float32, "r", shape=shape)


def serially(encoder: Encoder, modality: Modality) -> Runner:
    """Batches one by one in this process; the next one's pictures are decoded meanwhile.

    Raises:
        PolyptychError: If the encoder has no such side, or a picture cannot be read.
    """
    require(encoder, modality)
    encode = encoder.encode_images if modality == "image" else encoder.encode_texts

    def run(batches: Iterable[Work]) -> Iterator[tuple[int, np.ndarray]]:
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting = None
            for number, items in batches:
                loaded = number, pool.submit(_load, items, modality)
                if waiting is not None:
                    yield waiting[0], encode(waiting[1].result())
                waiting = loaded
            if waiting is not None:
                yield waiting[0], encode(waiting[1].result())

    return run


def through_ray(encoder: Encoder, modality: Modality, cluster: Cluster) -> Runner:
    """Batches on the processes of a Ray cluster, each of which loads the encoder by its name once.

    Pictures are read by the workers, which have to see the same files.

    Raises:
        PolyptychError: If the encoder has no such side.
    """
    require(encoder, modality)
    arguments = (encoder.name, modality, encoder.fingerprint)

    def run(batches: Iterable[Work]) -> Iterator[tuple[int, np.ndarray]]:
        return on_ray(batches, _encoder_there, arguments, cluster)

    return run


def _encoder_there(name: str, modality: Modality, fingerprint: str) -> Compute:
    """What a worker of :func:`through_ray` does with a batch."""
    encoder = load_encoder(name)
    if encoder.fingerprint != fingerprint:
        raise PolyptychError(
            f"{name} is encoder {encoder.fingerprint} on a worker, {fingerprint} at the start"
        )
    encode = encoder.encode_images if modality == "image" else encoder.encode_texts
    return lambda items: np.asarray(encode(_load(items, modality)), dtype=np.float32)


def _load(items: Sequence[Any], modality: Modality) -> Sequence[Any]:
    return [load_image(ref) for ref in items] if modality == "image" else items


def _resume(path: Path, plan: dict[str, Any]) -> set[int]:
    """Numbers of the batches that an equal run has finished; a different run's file is removed."""
    description, log = path.with_suffix(".json"), path.with_suffix(".done")
    try:
        if json.loads(description.read_text()) == plan and path.exists():
            lines = log.read_text().split("\n")[:-1]  # a torn last line was not finished
            with open(log, "w") as file:
                file.writelines(f"{line}\n" for line in lines)
            return {int(line) for line in lines}
    except (OSError, ValueError):
        pass  # nothing to go on with
    for old in (path, log):
        old.unlink(missing_ok=True)
    with write_aside(description) as file:
        json.dump(plan, file)
    return set()
