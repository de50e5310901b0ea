"""Messages of other harnesses to examples: texts and images in exactly the order they came in."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from polyptych.data.records import IMAGE_TOKEN
from polyptych.errors import PolyptychError
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, Role, TextBlock

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


def chat_example(identity: str, messages: Sequence[Mapping[str, Any]]) -> Example:
    """A conversation of blocks ``{"type": "text", "text"}`` and ``{"type": "image", "url"}``.

    ``[{"role": "user", "content": [image A, "and", image B, "differ how?"]}]`` becomes
    ``user: <A>and<B>differ how?``; nothing is moved to the front. Tasks that write no messages of
    their own send all images, then a text with a mark ``<image>`` for each (lmms-eval's
    ``muirbench``): there the images go to their marks, in order.

    Args:
        identity: Names the example in errors.
        messages: Turns; ``content`` may be a single text. An image's ``url`` is a decoded image or
            a path.

    Raises:
        PolyptychError: For videos, audio, or another role.
    """
    images: list[ImageRef] = []
    turns = [_turn(identity, message, images) for message in messages]
    return Example(identity, tuple(turns), tuple(images))


def parts_example(identity: str, parts: Iterable[Mapping[str, Any]]) -> Example:
    """One question whose parts are ``{"type": "text" | "image", "value": TEXT_OR_PATH}``.

    Raises:
        PolyptychError: For a part of another type.
    """
    blocks = [
        {"type": part["type"], "text" if part["type"] == "text" else "url": part["value"]}
        for part in parts
    ]
    return chat_example(identity, [{"role": "user", "content": blocks}])


def _turn(identity: str, message: Mapping[str, Any], images: list[ImageRef]) -> Message:
    if message["role"] not in _ROLES:
        raise PolyptychError(f"{identity}: no role {message['role']!r}; {', '.join(_ROLES)}")
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    blocks: list[Block] = []
    for block in content:
        if block["type"] == "text":
            blocks.append(TextBlock(block["text"]))
        elif block["type"] == "image":
            blocks.append(ImageBlock())
            images.append(_reference(block["url"]))
        else:
            raise PolyptychError(f"{identity}: images and text only, got {block['type']!r}")
    return Message(message["role"], tuple(_at_marks(blocks)))


def _at_marks(blocks: list[Block]) -> list[Block]:
    """Images that stand before a text which marks a place for each of them, at these places.

    Other marks become the word "image": to many models the mark itself is an image.
    """
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    number = len(blocks) - len(texts)
    marks = sum(block.text.count(IMAGE_TOKEN) for block in texts)
    if marks == 0:
        return blocks
    if marks != number or texts != blocks[number:]:
        return [
            TextBlock(block.text.replace(IMAGE_TOKEN, "image"))
            if isinstance(block, TextBlock)
            else block
            for block in blocks
        ]
    placed: list[Block] = []
    for block in texts:
        for index, piece in enumerate(block.text.split(IMAGE_TOKEN)):
            placed += [ImageBlock()] if index else []
            placed += [TextBlock(piece)] if piece else []
    return placed


def _reference(image: Image.Image | str | Path) -> ImageRef:
    if not isinstance(image, Image.Image):
        return ImageRef(path=str(image))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())
