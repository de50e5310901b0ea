"""One generator per source format, each named ``read_*``, and the choice of one by looking.

Every reader yields checked `Example`s, raises `PolyptychError` at the first bad record, or hands it
to ``on_error`` and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polyptych.data.readers.african_storybook import read_african_storybook
from polyptych.data.readers.llava import read_llava
from polyptych.data.readers.native import native_files, read_native
from polyptych.data.readers.noto_emoji import read_noto_emoji
from polyptych.data.readers.sam import ANNOTATIONS, read_sam, sam_folders
from polyptych.data.readers.trashnet import read_trashnet
from polyptych.errors import PolyptychError
from polyptych.schema import Example

Reader = Callable[..., Iterator[Example]]

READERS: dict[str, Reader] = {
    "native": read_native,
    "llava": read_llava,
    "sam": read_sam,
    "african_storybook": read_african_storybook,
    "trashnet": read_trashnet,
    "noto_emoji": read_noto_emoji,
}
"""Every source format by name."""

_MARKS = {
    "stories.jsonl": "african_storybook",
    "labels.jsonl": "trashnet",
    "emoji.jsonl": "noto_emoji",
    ANNOTATIONS: "sam",
}


def read_examples(
    path: str | Path, source_format: str | None = None, **options: Any
) -> Iterator[Example]:
    """Read examples of any known format.

    Args:
        path: A file or folder.
        source_format: A name of `READERS`; by default found with `detect_format`.
        options: Passed to the reader (``split``, ``count``, ``window``, ``interleaved`` ...).

    Raises:
        PolyptychError: For an unknown format, an option the reader does not have, or bad records.
    """
    name = source_format or detect_format(path)
    if name not in READERS:
        raise PolyptychError(f"no format {name!r}; the formats are {', '.join(READERS)}")
    try:
        return READERS[name](path, **options)
    except TypeError as error:  # generators bind their arguments at the call
        raise PolyptychError(f"{path}: reader of {name}: {error}") from error


def detect_format(path: str | Path) -> str:
    """Name the format of a file or folder by its name and its first record.

    Raises:
        PolyptychError: When nothing fits.
    """
    path = Path(path)
    if path.is_dir():
        for mark, name in _MARKS.items():
            if (path / mark).is_file():
                return name
        if sam_folders(path):
            return "sam"
        if native_files(path):
            return "native"
        raise PolyptychError(
            f"{path}: no data found; expected *.jsonl, {', '.join(_MARKS)} or folders of SAM's sets"
        )
    if not path.exists():
        raise PolyptychError(f"{path} does not exist")
    if path.suffix == ".json":
        return "llava"
    if path.suffix == ".jsonl":
        return "llava" if _is_llava_line(path) else "native"
    raise PolyptychError(f"{path}: unknown kind of file; expected .jsonl or .json")


def _is_llava_line(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False  # the native reader names the broken line
    return isinstance(first, dict) and "conversations" in first
