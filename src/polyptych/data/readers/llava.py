"""LLaVA json: one list of ``{"id", "image": path or [paths], "conversations": [{from, value}]}``.

The literal ``<image>`` in a value is the place of the next image. Text is kept as it stands, also
the line break that usually follows ``<image>``, so that reading and writing again changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyptych.data.records import (
    IMAGE_TOKEN,
    OnError,
    check_example,
    parse_each,
    parse_json,
    read_json,
    read_lines,
)
from polyptych.errors import PolyptychError
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, Role, TextBlock

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Our role for each speaker that LLaVA-style files name."""

_OWN_KEYS = ("id", "image", "conversations", "references", "choices")


def read_llava(
    path: str | Path,
    *,
    image_folder: str | Path | None = None,
    on_error: OnError | None = None,
) -> Iterator[Example]:
    """Read a LLaVA json file, or the same records as JSONL.

    Args:
        path: The ``.json`` or ``.jsonl`` file.
        image_folder: What image paths are relative to; the file's own folder by default.
        on_error: Called for each bad record, which is then skipped.

    Raises:
        PolyptychError: At the first bad record, naming file and record.
    """
    folder = os.fspath(image_folder if image_folder is not None else Path(path).parent)
    if str(path).endswith(".jsonl"):
        yield from parse_each(
            read_lines(path),
            lambda line, where: parse_llava(parse_json(line, where), where, folder),
            on_error,
        )
    else:
        yield from parse_each(
            _items(path), lambda item, where: parse_llava(item, where, folder), on_error
        )


def parse_llava(item: Any, where: str, image_folder: str) -> Example:
    """Turn one LLaVA record into a checked `Example`; keys of no meaning here become metadata."""
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise PolyptychError(f"{where}: a LLaVA record must have a list 'conversations'")
    identity = item.get("id")
    if not isinstance(identity, str | int) or identity == "":
        raise PolyptychError(f"{where}: 'id' must be a string or a number, got {identity!r}")
    where = f"{where} (id {str(identity)!r})"
    example = Example(
        id=str(identity),
        messages=tuple(_message(turn, where) for turn in item["conversations"]),
        images=tuple(
            ImageRef(path=os.path.join(image_folder, name))
            for name in _strings(item.get("image"), "image", where)
        ),
        references=_strings(item.get("references"), "references", where),
        choices=_strings(item.get("choices"), "choices", where),
        metadata={key: value for key, value in item.items() if key not in _OWN_KEYS},
    )
    check_example(example, where)
    return example


def _items(path: str | Path) -> Iterator[tuple[str, Any]]:
    items = read_json(path)
    if not isinstance(items, list):
        raise PolyptychError(f"{path}: a LLaVA json file must be a list of records")
    for number, item in enumerate(items, start=1):
        yield f"{path} record {number}", item


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise PolyptychError(f"{where}: a turn must be {{'from', 'value'}}, got {turn!r:.80}")
    role = ROLES.get(str(turn.get("from")))
    if role is None:
        raise PolyptychError(
            f"{where}: 'from' must be one of {sorted(ROLES)}, got {turn.get('from')!r}"
        )
    parts = re.split(f"({re.escape(IMAGE_TOKEN)})", turn["value"])
    blocks: list[Block] = [
        ImageBlock() if part == IMAGE_TOKEN else TextBlock(part) for part in parts if part
    ]
    return Message(role, tuple(blocks))


def _strings(value: Any, key: str, where: str) -> tuple[str, ...]:
    """A missing value, one string or a list of strings, as a tuple."""
    values = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise PolyptychError(f"{where}: {key!r} must be a string or a list of strings")
    return tuple(values)
