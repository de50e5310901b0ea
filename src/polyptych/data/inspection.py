"""One record made visible: its pictures, its messages, and what a model reads and learns of it.

Most training bugs of multimodal models are plain to see in one printed record: a picture in the
wrong order, a label on the prompt, an answer that was cut. This is behind ``polyptych data show``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageOps

from polyptych.data.images import load_image
from polyptych.data.readers import read_examples
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import IGNORE_INDEX, Example, ImageBlock, Message

if TYPE_CHECKING:  # tokens are optional: pictures and messages show without torch
    from polyptych.data.tokenization import EncodedExample

TILE = 192
"""Longest side of a picture on the contact sheet, in pixels."""

COLUMNS = 4
"""Pictures in a row of the contact sheet."""

METADATA_WIDTH = 160
"""Letters of a metadata value that are shown."""

_GAP = 8
_CAPTION = 16


def find_example(path: str | Path, *, example_id: str | None = None, line: int = 1) -> Example:
    """One example of a file or folder of any known format; bad records before it are passed over.

    Args:
        path: What to read.
        example_id: Which one, by id.
        line: Which one, by position from 1, where no id is given.

    Raises:
        PolyptychError: If there is no such record, or the one at ``line`` is bad.
    """
    position = 0

    def pass_over(error: PolyptychError) -> None:
        nonlocal position
        position += 1
        if example_id is None and position == line:
            raise error

    for example in read_examples(path, on_error=pass_over):
        position += 1
        if position == line if example_id is None else example.id == example_id:
            return example
    wanted = f"record {line}" if example_id is None else f"record with id {example_id!r}"
    raise PolyptychError(f"{path}: no {wanted} among {position}")


def describe(example: Example, processor: Any = None) -> str:
    """The example as text for people.

    Args:
        example: What to show.
        processor: A model's processor; with it, token ids and labels are shown too.

    Raises:
        PolyptychError: If an image cannot be decoded or the example cannot be encoded.
    """
    lines = [f"id         {example.id}", *_image_lines(example)]
    lines += [f"{message.role:<10} {_content(message)}" for message in example.messages]
    lines += [f"reference  {reference}" for reference in example.references]
    lines += [f"choice     {choice}" for choice in example.choices]
    lines += [f"shot       {shot.id}: {len(shot.images)} image(s)" for shot in example.shots]
    lines += [
        f"metadata   {key}: {_shortened(json.dumps(value, ensure_ascii=False, default=str))}"
        for key, value in example.metadata.items()
    ]
    if processor is not None:
        encoded = processor.encode(example, with_target=example.target is not None)
        lines += ["", *_token_lines(encoded, processor)]
    return "\n".join(lines)


def _image_lines(example: Example) -> Iterator[str]:
    for number, ref in enumerate(example.images, start=1):
        image = load_image(ref, where=f"example {example.id!r}")
        source = ref.path or f"{len(ref.data or b'')} bytes in the record"
        yield f"image {number:<4} {image.width} x {image.height}  {source}"


def _shortened(text: str) -> str:
    """Scene graphs are long; what they are can be told from their beginning."""
    return (
        text if len(text) <= METADATA_WIDTH else f"{text[:METADATA_WIDTH]} … ({len(text)} letters)"
    )


def _content(message: Message) -> str:
    return "".join("<image>" if isinstance(b, ImageBlock) else b.text for b in message.content)


def _token_lines(encoded: EncodedExample, processor: Any) -> Iterator[str]:
    """Runs of tokens of one kind: ``first-last  kind  tokens``."""
    ids, labels = encoded.input_ids, encoded.labels
    learned = sum(label != IGNORE_INDEX for label in labels)
    yield f"{len(ids)} tokens: {encoded.image_count} image(s), {learned} learned"
    if encoded.cut:
        yield encoded.cut

    def kind(index: int) -> str:
        if ids[index] == processor.image_token_id:
            return "image"
        if ids[index] == processor.context_token_id:
            return "context"
        return "prompt" if labels[index] == IGNORE_INDEX else "learned"

    for name, run in groupby(range(len(ids)), key=kind):
        positions = list(run)
        place = f"{positions[0]}-{positions[-1]}"
        tokens = [ids[index] for index in positions]
        yield f"{place:>9}  {name:<8} {_words(name, tokens, processor)}"
    if learned:
        yield f"{'labels':>9}  {' '.join(str(x) for x in labels if x != IGNORE_INDEX)}"
        yield f"{'':>9}  {IGNORE_INDEX} on the other {len(labels) - learned}"


def _words(kind: str, tokens: Sequence[int], processor: Any) -> str:
    if kind == "image":  # its id may lie outside the vocabulary
        return f"{processor.image_token} x {len(tokens)}"
    if kind == "context":
        return f"<context> x {len(tokens)}"
    return " ".join(processor.tokenizer.convert_ids_to_tokens(list(tokens)))


def contact_sheet(example: Example) -> Image.Image:
    """The example's pictures side by side, numbered in their order.

    Raises:
        PolyptychError: If there is no image, or one cannot be decoded.
    """
    if not example.images:
        raise PolyptychError(f"example {example.id!r} has 0 images: no contact sheet to draw")
    columns = min(COLUMNS, len(example.images))
    rows = -(-len(example.images) // columns)
    width, height = TILE + _GAP, TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, ref in enumerate(example.images):
        left, top = index % columns * width + _GAP, index // columns * height + _GAP
        picture = load_image(ref, where=f"example {example.id!r}")
        sheet.paste(ImageOps.pad(picture, (TILE, TILE), color="white"), (left, top))
        draw.text((left, top + TILE + 2), str(index + 1), fill="black")
    return sheet


def write_contact_sheet(example: Example, path: str | Path) -> None:
    """Write `contact_sheet` as a PNG file."""
    sheet = contact_sheet(example)
    with write_aside(path, binary=True) as file:
        sheet.save(file, format="PNG")
