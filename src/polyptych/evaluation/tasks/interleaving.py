"""Questions over several images, as multi-image benchmarks write them: text with ``<image>``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from polyptych.data.records import IMAGE_TOKEN, check_example
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.choice import LETTERS
from polyptych.evaluation.tasks.llava_files import fail
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock

Row = TypeVar("Row")


def interleaved_example(
    identity: str,
    text: str,
    images: Sequence[ImageRef],
    where: str,
    *,
    references: Sequence[str] = (),
    choices: Sequence[str] = (),
    metadata: Mapping[str, Any],
) -> Example:
    """One question over several images, each where its ``<image>`` stands, in their order.

    Images for which the text has no place stand first, before a line of its own.

    Raises:
        PolyptychError: For an empty question, or more places than images.
    """
    example = Example(
        id=identity,
        messages=(Message("user", _blocks(text, len(images), where)),),
        images=tuple(images),
        references=tuple(references),
        choices=tuple(choices),
        metadata=metadata,
    )
    check_example(example, where)
    return example


def _blocks(text: str, images: int, where: str) -> tuple[Block, ...]:
    parts = text.split(IMAGE_TOKEN)
    places = len(parts) - 1
    if places > images:
        fail(where, f"{places} {IMAGE_TOKEN} in the text but {images} image(s)")
    if images and not places:
        parts[0] = "\n" + parts[0]
    blocks: list[Block] = [ImageBlock()] * (images - places)
    for number, part in enumerate(parts):
        if number:
            blocks.append(ImageBlock())
        if part:
            blocks.append(TextBlock(part))
    return tuple(blocks)


def unique_examples(
    rows: Iterable[tuple[str, Row]], parse: Callable[[Row, str], Example], key: str
) -> list[Example]:
    """The examples of all rows, of which no two may have the same id.

    Args:
        rows: Where each row stands, and the row.
        parse: From a row and its place to the example.
        key: What its id is called there.

    Raises:
        PolyptychError: At the first bad row, or id that occurs again.
    """
    found: dict[str, Example] = {}
    for where, row in rows:
        with item():
            example = parse(row, where)
            if example.id in found:
                fail(where, f"{key} {example.id!r} occurs twice")
            found[example.id] = example
    return list(found.values())


def lettered(choices: Sequence[str]) -> str:
    r"""Options on lines of their own.

    Example:
        >>> lettered(["red", "blue"])
        '\nA. red\nB. blue'
    """
    return "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
