"""The six test sets of SAM: folders with ``annotations.json``.

A list of ``{"id": 7, "img_list": ["images/a.jpg", ...], "instruction": "...{image#1}Caption#1:...",
"output": "..."}``; paths are relative to the folder. The released evaluation puts all images first
and leaves ``{image#1}`` in the instruction as literal text; ``interleaved`` puts them in their
places.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyptych.data.records import OnError, check_example, parse_each, read_json
from polyptych.errors import PolyptychError
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock

SAM_SETS = ("AESOP", "VIST", "DM800K", "Conceptual", "Animal", "Vehicle")
"""Folder names of the sets, in the order in which the released evaluation visits them."""

ANNOTATIONS = "annotations.json"
"""File name of a set's records."""

_SLOT = re.compile(r"\{image#(\d+)\}")


def read_sam(
    path: str | Path, *, interleaved: bool = False, on_error: OnError | None = None
) -> Iterator[Example]:
    """Read one set, or all sets that lie in a folder.

    Args:
        path: A folder with ``annotations.json``, or one with folders named as in `SAM_SETS`.
        interleaved: Put each image where its ``{image#k}`` stands, if every image has exactly one
            such slot; otherwise, and by default, all images stand first (the released layout).
        on_error: Called for each bad record, which is then skipped.

    Raises:
        PolyptychError: At the first bad record, naming file and record.
    """
    root = Path(path)
    folders = [root] if (root / ANNOTATIONS).is_file() else sam_folders(root)
    if not folders:
        raise PolyptychError(f"{root}: no {ANNOTATIONS} here nor in folders {', '.join(SAM_SETS)}")
    for folder in folders:
        yield from parse_each(
            _items(folder),
            lambda item, where, folder=folder: _parse(  # type: ignore[misc]
                item, where, folder, interleaved
            ),
            on_error,
        )


def sam_folders(root: Path) -> list[Path]:
    """The sets that lie in ``root``, in the order of `SAM_SETS`."""
    return [root / name for name in SAM_SETS if (root / name / ANNOTATIONS).is_file()]


def _items(folder: Path) -> Iterator[tuple[str, Any]]:
    path = folder / ANNOTATIONS
    items = read_json(path)
    if not isinstance(items, list):
        raise PolyptychError(f"{path}: must be a list of records")
    for number, item in enumerate(items, start=1):
        yield f"{path} record {number}", item


def _parse(item: Any, where: str, folder: Path, interleaved: bool) -> Example:
    expected = {"id": (int, str), "img_list": list, "instruction": str, "output": str}
    for key, kind in expected.items():
        if not isinstance(item, dict) or not isinstance(item.get(key), kind):  # type: ignore[arg-type]
            raise PolyptychError(f"{where}: missing or wrong {key!r}")
    where = f"{where} (id {item['id']})"
    paths = item["img_list"]
    if not all(isinstance(path, str) and path for path in paths):
        raise PolyptychError(f"{where}: 'img_list' must be a list of paths")
    images = tuple(ImageRef(path=os.path.join(folder, path)) for path in paths)
    blocks: tuple[Block, ...] = (ImageBlock(),) * len(images) + (TextBlock(item["instruction"]),)
    if interleaved:
        blocks, images = _interleave(item["instruction"], images, where) or (blocks, images)
    example = Example(
        id=f"{folder.name}/{item['id']}",
        messages=(
            Message("user", blocks),
            Message("assistant", (TextBlock(item["output"]),)),
        ),
        images=images,
        references=(item["output"],),
        metadata={"dataset": folder.name, "sample_id": item["id"]},
    )
    check_example(example, where)
    return example


def _interleave(
    instruction: str, images: tuple[ImageRef, ...], where: str
) -> tuple[tuple[Block, ...], tuple[ImageRef, ...]] | None:
    """Blocks with images at their slots and the images in that order; None to keep them first."""
    parts = _SLOT.split(instruction)  # text, number, text, number, ..., text
    slots = [int(number) for number in parts[1::2]]
    if slots and not 1 <= min(slots) <= max(slots) <= len(images):
        wrong = next(slot for slot in slots if not 1 <= slot <= len(images))
        raise PolyptychError(f"{where}: slot {{image#{wrong}}} but {len(images)} image(s)")
    if sorted(slots) != list(range(1, len(images) + 1)):
        return None
    blocks: list[Block] = [
        TextBlock(part) if index % 2 == 0 else ImageBlock()
        for index, part in enumerate(parts)
        if part
    ]
    return tuple(blocks), tuple(images[slot - 1] for slot in slots)
