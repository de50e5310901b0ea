"""Files of samples: made with their folders, written aside and renamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from polyptych.evaluation.samples.album import encoded
from polyptych.files import write_aside

DRAWN = "DRAWN.txt"
"""In the folder of a sample; a folder with it holds no data of the benchmark."""

_NOTICE = """\
Drawn by polyptych in the layout of a published benchmark, to try its tools offline. Nothing here is
of the benchmark, and numbers on it say nothing about the benchmark. Put the published files into a
folder of their own.
"""


def mark_drawn(folder: Path) -> None:
    """Say in a folder that its files are a drawn sample."""
    write_text(folder / DRAWN, _NOTICE)


def is_drawn(folder: Path) -> bool:
    """Whether a folder holds a drawn sample."""
    return (folder / DRAWN).is_file()


def write_json(path: Path, content: Any) -> None:
    """One JSON value."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """A text file."""
    with write_aside(path) as file:
        file.write(text)


def write_image(path: Path, image: Image.Image) -> None:
    """A picture, as JPEG or PNG by the file's name."""
    with write_aside(path, binary=True) as file:
        file.write(encoded(image, "PNG" if path.suffix == ".png" else "JPEG"))


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with pictures as :func:`cell` makes them; a column without values is one of these."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([dict(row) for row in rows])
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = [picture if pa.types.is_null(field.type) else field.type for field in table.schema]
    with write_aside(path, binary=True) as file:
        pq.write_table(table.cast(pa.schema(zip(table.column_names, types, strict=True))), file)


def cell(image: Image.Image) -> dict[str, Any]:
    """A picture in a table."""
    return {"bytes": encoded(image), "path": "drawn.png"}
