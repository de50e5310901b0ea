"""Rows of published Parquet files, read batch by batch; pictures stay as their encoded bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyptych.errors import PolyptychError
from polyptych.evaluation.tasks.llava_files import fail
from polyptych.schema import ImageRef

_ROWS_AT_ONCE = 64


def parquet_parts(folder: str | Path, split: str) -> list[Path]:
    """The files of one split, ``SPLIT-00000-of-00003.parquet`` and so on, in order.

    Raises:
        PolyptychError: If there is none.
    """
    parts = sorted(Path(folder).glob(f"{split}-*.parquet"))
    if not parts:
        raise PolyptychError(f"{folder}: no {split}-*.parquet there")
    return parts


def read_parquet(
    paths: Sequence[Path], columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("FILE row N", row)`` for every row.

    Args:
        paths: The files, in order.
        columns: What is read of them; all must be there.

    Raises:
        PolyptychError: For a file that cannot be read or lacks a column, or without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise PolyptychError(
            f"reading {paths[0]} needs pyarrow: pip install 'polyptych[eval]'"
        ) from error
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            missing = set(columns).difference(file.schema_arrow.names)
            if missing:
                fail(str(path), f"missing column(s) {', '.join(sorted(missing))}")
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
        except (OSError, pa.ArrowException) as error:
            raise PolyptychError(f"cannot read {path}: {error}") from error


def image_of(value: Any, where: str) -> ImageRef:
    """A picture as such files keep it: ``{"bytes": ..., "path": ...}``.

    Raises:
        PolyptychError: If there are no bytes.
    """
    data = value.get("bytes") if isinstance(value, Mapping) else None
    if not data:
        fail(where, "an image without bytes")
    return ImageRef(data=data)
