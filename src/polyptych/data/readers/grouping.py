"""What the group captioning sets share: label files, and one conversation over a group."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyptych.data.records import OnError, parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

GROUP_SIZES = (3, 4, 5, 6)
"""How many pictures a group has."""


def read_labels(
    path: Path, keys: Sequence[str], on_error: OnError | None = None
) -> Iterator[dict[str, str]]:
    """Read a JSONL label file whose objects have strings under ``keys``."""
    for where, line in read_lines(path):
        try:
            item = parse_json(line, where)
            for key in keys:
                if not isinstance(item, dict) or not isinstance(item.get(key), str):
                    raise PolyptychError(f"{where}: missing or wrong {key!r}")
        except PolyptychError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield item


def group_example(
    *,
    identity: str,
    images: Sequence[Path],
    instructions: Sequence[str],
    references: Sequence[str],
    metadata: Mapping[str, Any],
    rng: random.Random,
) -> Example:
    """A group of pictures, then the question; one of the references, by chance, is the answer."""
    question = TextBlock(rng.choice(instructions))
    answer = TextBlock(rng.choice(references))
    return Example(
        id=identity,
        messages=(
            Message("user", (*(ImageBlock() for _ in images), question)),
            Message("assistant", (answer,)),
        ),
        images=tuple(ImageRef(path=str(image)) for image in images),
        references=tuple(references),
        metadata={"task": "group_captioning", **metadata},
    )
