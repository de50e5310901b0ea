"""Writers: examples to files of other formats, as completely as the format can hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from polyptych.data.records import (
    IMAGE_TOKEN,
    ImageStore,
    dump_json,
    record_of,
    write_records,
)
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import Example, Message, Role, TextBlock

_SPEAKERS: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system"}


def write_llava(path: str | Path, examples: Iterable[Example]) -> int:
    """Write a LLaVA json file; images given as bytes go to ``images/`` beside it.

    Metadata becomes keys of the record beside LLaVA's own. Everything `read_llava` returns is
    written back as it was read. Like `write_records`, it leaves nothing behind when it fails.

    Args:
        path: The json file to write or replace; image paths in it are relative to its folder.
        examples: Consumed one at a time.

    Returns:
        The number of records written.

    Raises:
        PolyptychError: For an example that LLaVA json cannot hold, or when the system refuses.
    """
    path = Path(path)
    count = 0
    with ImageStore(path.parent) as store, write_aside(path) as file:
        for example in examples:
            record = llava_record(store.with_paths(example), path.parent)
            file.write(",\n" if count else "[\n")
            file.write(dump_json(record, f"example {example.id!r}"))
            count += 1
        file.write("\n]\n" if count else "[]\n")
    return count


def llava_record(example: Example, base: str | Path) -> dict[str, Any]:
    """Turn an example into a LLaVA record; the inverse of `parse_llava`.

    Raises:
        PolyptychError: For shots, or metadata whose keys LLaVA uses for something else.
    """
    native = record_of(example, base)
    if example.shots:
        raise PolyptychError(f"example {example.id!r}: LLaVA json has no place for shots")
    images = [image if isinstance(image, str) else image["path"] for image in native["images"]]
    record: dict[str, Any] = {"id": example.id}
    if images:
        record["image"] = images[0] if len(images) == 1 else images
    record["conversations"] = [_turn(message) for message in example.messages]
    for key in ("references", "choices"):
        if key in native:
            record[key] = native[key]
    taken = sorted({*record, "image", "references", "choices"} & example.metadata.keys())
    if taken:
        raise PolyptychError(f"example {example.id!r}: metadata keys {taken} belong to LLaVA json")
    return record | dict(example.metadata)


def _turn(message: Message) -> dict[str, str]:
    value = "".join(
        block.text if isinstance(block, TextBlock) else IMAGE_TOKEN for block in message.content
    )
    return {"from": _SPEAKERS[message.role], "value": value}


Writer = Callable[[str | Path, Iterable[Example]], int]

WRITERS: dict[str, Writer] = {"native": write_records, "llava": write_llava}
"""Every target format by name."""
