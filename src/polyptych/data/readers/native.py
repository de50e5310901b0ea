"""Native records in a folder: ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, or others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyptych.data.records import OnError, read_records
from polyptych.errors import PolyptychError
from polyptych.schema import Example


def read_native(
    path: str | Path, *, split: str | None = None, on_error: OnError | None = None
) -> Iterator[Example]:
    """Read a native JSONL file, or the one of a folder.

    Args:
        path: The file, or a folder with one JSONL file or one for each split.
        split: Which file of a folder: ``split="test"`` reads ``test.jsonl``.
        on_error: Called for each bad line, which is then skipped.

    Raises:
        PolyptychError: At the first bad line, or when a folder leaves open which file is meant.
    """
    file = Path(path)
    if file.is_dir():
        file = _choose(file, split)
    elif split is not None:
        raise PolyptychError(f"{file} is one file; a split can be chosen only in a folder")
    yield from read_records(file, on_error=on_error)


def native_files(folder: Path) -> list[Path]:
    """All JSONL files of a folder, by name."""
    return sorted(folder.glob("*.jsonl"))


def _choose(folder: Path, split: str | None) -> Path:
    files = native_files(folder)
    if split is not None:
        files = [file for file in files if file.stem == split]
    if len(files) == 1:
        return files[0]
    found = ", ".join(file.name for file in native_files(folder)) or "no JSONL file"
    wanted = "one file or a split" if split is None else f"{split}.jsonl"
    raise PolyptychError(f"{folder}: wanted {wanted}, found {found}")
