"""Making an index and adding to one. Killed at any moment, it goes on; it is never half there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from polyptych.data.records import ImageStore, dump_json, record_of
from polyptych.errors import PolyptychError
from polyptych.retrieval.index import (
    build_structure,
    choose_kind,
    extend_structure,
    measure_recall,
    read_structure,
    write_structure,
)
from polyptych.retrieval.inputs import (
    Embedding,
    Inputs,
    image_hashes,
    key_text,
    modalities_of,
)
from polyptych.retrieval.protocol import Encoder, require
from polyptych.retrieval.store import (
    INDEX_FILE,
    IndexInfo,
    Key,
    Kind,
    Segment,
    Store,
    adopt,
    entry_digest,
    map_keys,
    sweep,
    with_segment,
    write_entries,
    write_info,
)
from polyptych.schema import Example

WORK = "work"
"""Folder inside an index for what is not finished yet."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What became of the examples that were given."""

    info: IndexInfo
    added: int
    present: int
    """Already in the index with the same id, text and images."""
    without_key: int
    """Without the picture or text that keys are made of."""


def build_index(
    examples: Iterable[Example],
    folder: str | Path,
    encoder: Encoder,
    *,
    key: Key = "image",
    kind: Kind | Literal["auto"] = "auto",
    settings: Embedding = Embedding(),  # noqa: B008 - frozen
) -> BuildReport:
    """Embed examples and write an index of them.

    Args:
        examples: Its entries; one that comes twice is taken once.
        folder: Of the index; a run that was killed there is continued.
        encoder: Makes the keys.
        key: What of an entry becomes its key.
        kind: How it is searched; ``auto`` chooses by the number of entries.
        settings: How vectors are computed.

    Raises:
        PolyptychError: If an index is there already, the encoder lacks a side, an image cannot be
            read, or no example has a key.
    """
    folder = Path(folder)
    if (folder / INDEX_FILE).exists():
        raise PolyptychError(f"{folder} holds an index already; index add extends it")
    for modality in modalities_of(key):
        require(encoder, modality)
    empty = IndexInfo(encoder.name, encoder.fingerprint, key, encoder.dimension)
    report = _write_segment(examples, folder, encoder, empty, set(), settings)
    if not report.info.count:
        raise PolyptychError(f"{folder}: none of {report.without_key} examples has a {key} key")
    info = replace(report.info, kind=choose_kind(report.info.count) if kind == "auto" else kind)
    return replace(report, info=_finish(folder, info))


def add_to_index(
    examples: Iterable[Example],
    folder: str | Path,
    encoder: Encoder,
    *,
    settings: Embedding = Embedding(),  # noqa: B008 - frozen
) -> BuildReport:
    """Put more entries behind those of an index; nothing of it is computed again.

    Raises:
        PolyptychError: If there is no index, or the encoder is not the one that made it.
    """
    store = Store(folder)
    check_encoder(store, encoder)
    report = _write_segment(examples, store.folder, encoder, store.info, store.digests, settings)
    if not report.added:
        shutil.rmtree(store.folder / WORK)
        return report
    return replace(report, info=_finish(store.folder, report.info))


def check_encoder(store: Store, encoder: Encoder) -> None:
    """Refuse an encoder whose vectors mean nothing to this index.

    Raises:
        PolyptychError: Naming both fingerprints or both widths.
    """
    info = store.info
    if encoder.dimension != info.dimension:
        raise PolyptychError(
            f"{store.folder}: keys of {info.dimension} numbers, "
            f"but {encoder.name} makes {encoder.dimension}"
        )
    if encoder.fingerprint != info.encoder_fingerprint:
        raise PolyptychError(
            f"{store.folder}: keys of encoder {info.encoder} ({info.encoder_fingerprint}), "
            f"not of {encoder.name} ({encoder.fingerprint})"
        )


def _write_segment(
    examples: Iterable[Example],
    folder: Path,
    encoder: Encoder,
    info: IndexInfo,
    known: set[bytes],
    settings: Embedding,
) -> BuildReport:
    """Entries, then keys; the index does not name them yet."""
    work = folder / WORK
    inputs = Inputs(info.key)
    counts = {"present": 0, "without_key": 0}
    with ImageStore(folder) as images:
        rows = _entries((images.with_paths(e) for e in examples), folder, inputs, known, counts)
        count = write_entries(work / "entries.arrow", rows)
    if not count:
        return BuildReport(info, 0, **counts)
    with open(work / "keys.f32", "wb") as file:
        for vectors in inputs.vectors(encoder, work, settings):
            file.write(vectors.tobytes())
    segment = Segment(
        count,
        keys=adopt(work / "keys.f32", folder, "keys"),
        entries=adopt(work / "entries.arrow", folder, "entries"),
    )
    return BuildReport(with_segment(info, segment), count, **counts)


def _entries(
    examples: Iterable[Example],
    folder: Path,
    inputs: Inputs,
    known: set[bytes],
    counts: dict[str, int],
) -> Iterator[dict[str, Any]]:
    for example in examples:
        hashes, text = image_hashes(example), key_text(example)
        same = entry_digest(example.id, text, hashes)
        if same in known:
            counts["present"] += 1
        elif not inputs.takes(len(hashes), text):
            counts["without_key"] += 1
        else:
            known.add(same)
            inputs.add(example.images, hashes, text)
            # With its hash, an image that changes after this is noticed when it is loaded.
            images = tuple(
                replace(ref, sha256=found)
                for ref, found in zip(example.images, hashes, strict=True)
            )
            record = record_of(replace(example, images=images, shots=()), folder)
            yield {
                "id": example.id,
                "text": text,
                "image_hashes": list(hashes),
                "record": dump_json(record, f"example {example.id!r}"),
            }


def _finish(folder: Path, info: IndexInfo) -> IndexInfo:
    """Build or extend what the kind searches with, and make the index official."""
    before = info.structure
    if info.kind != "flat":
        keys = [map_keys(folder, segment, info.dimension) for segment in info.segments]
        if before is None:
            structure = build_structure(info.kind, keys)
        else:
            structure = read_structure(folder / before, memory_mapped=False)
            extend_structure(structure, keys[-1:])
        name = write_structure(structure, info.kind, folder / WORK, folder)
        info = replace(info, structure=name, recall=measure_recall(structure, keys))
    write_info(folder, info)
    shutil.rmtree(folder / WORK)
    sweep(folder, info)
    return info
