"""Examples to shards, see :mod:`polyptych.data.shards`."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from polyptych.data.images import read_image_bytes
from polyptych.data.records import dump_json, record_of
from polyptych.data.shards import MANIFEST
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import Example, ImageRef

_ROW_GROUP = 64
"""Examples of a Parquet row group: what is read to get at one of them."""


def write_shards(
    folder: str | Path, examples: Iterable[Example], kind: str = "parquet", per_shard: int = 1000
) -> int:
    """Write shards and, when all are there, the list of them.

    Args:
        folder: Gets ``00000.KIND`` ... and ``shards.json``.
        examples: Consumed one at a time.
        kind: ``tar`` or ``parquet``.
        per_shard: Examples of a shard; the last one may hold fewer.

    Returns:
        The number of examples.

    Raises:
        PolyptychError: For a bad example, a missing image, an unknown kind, or when the system
            refuses.
    """
    if kind not in _WRITERS:
        raise PolyptychError(f"shards are {' or '.join(_WRITERS)}, not {kind!r}")
    folder, rest = Path(folder), iter(examples)
    listed: dict[str, dict[str, Any]] = {}
    for number in count():
        part = [example for _, example in zip(range(per_shard), rest, strict=False)]
        if not part:
            break
        name = f"{number:05d}.{kind}"
        with write_aside(folder / name, binary=True) as file:
            _WRITERS[kind](file, part)
        with open(folder / name, "rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        listed[name] = {"examples": len(part), "sha256": digest}
    with write_aside(folder / MANIFEST) as file:
        json.dump(listed, file, indent=1)
    return sum(shard["examples"] for shard in listed.values())


def _named(example: Example, prefix: str) -> tuple[Example, list[bytes]]:
    """The example with its images (its shots', too) named by number, and their bytes in order."""
    data: list[bytes] = []

    def name(part: Example) -> Example:
        refs = []
        for ref in part.images:
            refs.append(ImageRef(path=f"{prefix}{len(data)}", sha256=ref.sha256))
            data.append(read_image_bytes(ref, where=f"example {part.id!r}"))
        return replace(part, images=tuple(refs), shots=tuple(name(shot) for shot in part.shots))

    return name(example), data


def _write_tar(file: Any, examples: Sequence[Example]) -> None:
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in _members(examples):
            member = tarfile.TarInfo(name)  # neither time nor owner: equal examples, equal bytes
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _members(examples: Sequence[Example]) -> Iterator[tuple[str, bytes]]:
    for number, example in enumerate(examples):
        key = f"{number:06d}"
        named, images = _named(example, f"{key}.")
        yield f"{key}.json", dump_json(record_of(named, ""), f"example {example.id!r}").encode()
        for place, data in enumerate(images):
            yield f"{key}.{place}", data


def _write_parquet(file: Any, examples: Sequence[Example]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise PolyptychError("Parquet shards need pyarrow: pip install pyarrow") from error
    pairs = [_named(example, "") for example in examples]
    records = [dump_json(record_of(named, ""), f"example {named.id!r}") for named, _ in pairs]
    table = pyarrow.table(
        {
            "record": pyarrow.array(records, pyarrow.string()),
            "images": pyarrow.array(
                [images for _, images in pairs], pyarrow.list_(pyarrow.large_binary())
            ),
        }
    )
    parquet.write_table(table, file, row_group_size=_ROW_GROUP)


_WRITERS = {"tar": _write_tar, "parquet": _write_parquet}
