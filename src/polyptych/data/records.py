"""The native record: one strict JSON object per line, read into an `Example` and written from it.

    {"id": "g1",
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"},
                                               {"type": "text", "text": "What is shared?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A red ball."}]}],
     "images": ["images/1.png", {"path": "images/2.png", "sha256": "9f86..."}],
     "references": ["A red ball.", "Both show a red ball."],
     "metadata": {"task": "group_captioning"}}

``content`` is always a list, images are named by order, and the count of image blocks equals the
count of images: the most repeated multimodal training bug is a file where it silently does not.
``references``, ``choices``, ``shots`` (a list of records) and ``metadata`` may be left out; any
other key is an error. Image paths are relative to the folder of the JSONL file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args

from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import (
    Block,
    Example,
    ImageBlock,
    ImageRef,
    Message,
    Role,
    TextBlock,
)

IMAGE_TOKEN = "<image>"
"""The literal that other formats use for an image; never part of a native record's text."""

IMAGE_FOLDER = "images"
"""Where `write_records` puts images that are given as bytes, beside the JSONL file."""

_ROLES = frozenset(get_args(Role))
_REQUIRED = frozenset({"id", "messages", "images"})
_KEYS = _REQUIRED | {"references", "choices", "shots", "metadata"}
_IMAGE = ImageBlock()

Item = TypeVar("Item")


OnError = Callable[[PolyptychError], None]
"""What a reader calls for a bad record instead of raising, so that checking can list them all."""


def read_records(path: str | Path, *, on_error: OnError | None = None) -> Iterator[Example]:
    """Read a native JSONL file, one example at a time.

    Args:
        path: The file.
        on_error: Called for each bad line, which is then skipped; without it the first one raises.

    Raises:
        PolyptychError: At the first bad line, naming file, line and what is wrong.
    """
    base = Path(path).parent
    yield from parse_each(
        read_lines(path),
        lambda line, where: parse_record(parse_json(line, where), where, base),
        on_error,
    )


def parse_each(
    items: Iterable[tuple[str, Item]],
    parse: Callable[[Item, str], Example],
    on_error: OnError | None = None,
) -> Iterator[Example]:
    """Yield ``parse(item, where)`` of every ``(where, item)``: the loop of all readers."""
    for where, item in items:
        try:
            example = parse(item, where)
        except PolyptychError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield example


def read_lines(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield ``("FILE line N", bytes)`` for every line."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield f"{path} line {number}", line
    except OSError as error:
        raise PolyptychError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: str | Path) -> Any:
    """Read a whole JSON file."""
    try:
        return parse_json(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise PolyptychError(f"cannot read {path}: {error.strerror or error}") from error


def parse_json(text: bytes | str, where: str) -> Any:
    """Parse JSON; an error says where the text comes from."""
    if not text.strip():
        _fail(where, "empty, expected a JSON object")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PolyptychError(
            f"{where}: not valid JSON: {error.msg} at character {error.pos + 1}"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise PolyptychError(f"{where}: not valid JSON: {error}") from error


def parse_record(record: Any, where: str, base: str | Path) -> Example:
    """Turn one native record into a checked `Example`.

    Args:
        record: The JSON object.
        where: File and line, for the error message.
        base: Folder that image paths are relative to.

    Raises:
        PolyptychError: When the record breaks a rule of the format.
    """
    _check_keys(record, where)
    identity = record["id"]
    if not isinstance(identity, str) or not identity:
        _fail(where, f"'id' must be a non-empty string, got {identity!r}")
    where = f"{where} (id {identity!r})"
    folder = os.fspath(base)
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        _fail(where, f"'metadata' must be an object, got {_kind(metadata)}")
    example = Example(
        id=identity,
        messages=tuple(_parse_message(m, where) for m in _list_of(record, "messages", where)),
        images=tuple(_parse_image(i, where, folder) for i in _list_of(record, "images", where)),
        references=_strings(record, "references", where),
        choices=_strings(record, "choices", where),
        shots=tuple(
            parse_record(shot, f"{where} shot {number}", base)
            for number, shot in enumerate(_list_of(record, "shots", where), start=1)
        ),
        metadata=metadata,
    )
    check_example(example, where)
    return example


def check_example(example: Example, where: str) -> None:
    """Check what every source format must deliver: turns with text, and as many places as images.

    Args:
        example: The example; its shots are not looked into (each is checked when it is parsed).
        where: File and line or id, for the error message.

    Raises:
        PolyptychError: Naming ``where`` and, for images, both numbers.
    """
    places = 0
    asked = False
    for message in example.messages:
        spoken = False
        for block in message.content:
            if isinstance(block, TextBlock):
                if IMAGE_TOKEN in block.text:
                    _fail(where, f"literal {IMAGE_TOKEN} in a text; use an image block instead")
                spoken = spoken or not (not block.text or block.text.isspace())
            else:
                places += 1
        if message.role == "user":
            asked = asked or spoken
        elif not spoken:
            _fail(where, f"empty {message.role} message")
    if not asked:
        _fail(where, "empty instruction: no user message has text")
    if places != len(example.images):
        _fail(
            where,
            f"{places} image placeholder(s) in the messages but {len(example.images)} image(s)",
        )


def record_of(example: Example, base: str | Path) -> dict[str, Any]:
    """Turn an example into its native record; the inverse of `parse_record`.

    Args:
        example: Its images must have paths; `write_records` stores bytes first.
        base: Folder that the written image paths are relative to.

    Raises:
        PolyptychError: When the example breaks a rule of the format.
    """
    where = f"example {example.id!r}"
    check_example(example, where)
    folder = os.fspath(base)
    record: dict[str, Any] = {
        "id": example.id,
        "messages": [_message_record(message) for message in example.messages],
        "images": [_image_record(image, folder, where) for image in example.images],
    }
    if example.references:
        record["references"] = list(example.references)
    if example.choices:
        record["choices"] = list(example.choices)
    if example.shots:
        record["shots"] = [record_of(shot, base) for shot in example.shots]
    if example.metadata:
        record["metadata"] = dict(example.metadata)
    return record


def write_records(path: str | Path, examples: Iterable[Example]) -> int:
    """Write a native JSONL file; images given as bytes go to ``images/`` beside it.

    The file appears under its name only when complete; after any failure nothing of this call is
    left, neither a part of the file nor its new images.

    Args:
        path: The JSONL file to write or replace.
        examples: Consumed one at a time.

    Returns:
        The number of records written.

    Raises:
        PolyptychError: For a bad example, or when the system refuses (full disk), naming the file.
    """
    path = Path(path)
    count = 0
    with ImageStore(path.parent) as store, write_aside(path) as file:
        for example in examples:
            record = record_of(store.with_paths(example), path.parent)
            file.write(dump_json(record, f"example {example.id!r}") + "\n")
            count += 1
    return count


def dump_json(value: Any, where: str) -> str:
    """Write one line of JSON; an error says what the value belongs to."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise PolyptychError(f"{where}: cannot be written as JSON: {error}") from error


class ImageStore:
    """Puts images that are given as bytes into files named by their content.

    Equal images share one file. When its ``with`` block fails, the files it made are removed.
    """

    def __init__(self, base: Path) -> None:
        self.folder = base / IMAGE_FOLDER
        self._made: list[Path] = []
        self._known: set[Path] = set()

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self._discard()

    def with_paths(self, example: Example) -> Example:
        """The example with every image (also of its shots) as a path."""
        shots = tuple(self.with_paths(shot) for shot in example.shots)
        images = tuple(self._stored(image) for image in example.images)
        return replace(example, images=images, shots=shots)

    def _discard(self) -> None:
        for path in self._made:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if self._made:
            with suppress(OSError):
                self.folder.rmdir()  # only when empty

    def _stored(self, image: ImageRef) -> ImageRef:
        if image.data is None:
            return image
        digest = hashlib.sha256(image.data).hexdigest()
        path = self.folder / f"{digest[:32]}{_extension(image.data)}"
        if path not in self._known:
            if not path.exists():
                self._made.append(path)
                with write_aside(path, binary=True) as file:
                    file.write(image.data)
            self._known.add(path)
        return ImageRef(path=os.fspath(path), sha256=image.sha256)


def _extension(data: bytes) -> str:
    """File extension by the first bytes, so that viewers open the stored file."""
    if data.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if data.startswith(b"GIF8"):
        return ".gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return ".png"


def _check_keys(record: Any, where: str) -> None:
    if not isinstance(record, dict):
        _fail(where, f"a record must be an object, got {_kind(record)}")
    if not record.keys() <= _KEYS:
        _fail(where, f"unknown key(s) {sorted(record.keys() - _KEYS)}; known: {sorted(_KEYS)}")
    if not record.keys() >= _REQUIRED:
        _fail(where, f"missing key(s) {sorted(_REQUIRED - record.keys())}")


def _parse_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        _fail(where, f"a message must be {{'role', 'content'}}, got {_brief(message)}")
    role = message["role"]
    if not isinstance(role, str) or role not in _ROLES:
        _fail(where, f"role must be one of {sorted(_ROLES)}, got {role!r}")
    content = message["content"]
    if not isinstance(content, list):
        _fail(where, f"'content' must be a list of blocks, got {_kind(content)}")
    return Message(cast(Role, role), tuple(_parse_block(block, where) for block in content))


def _parse_block(block: Any, where: str) -> Block:
    if isinstance(block, dict):
        kind = block.get("type")
        if kind == "text" and len(block) == 2 and isinstance(block.get("text"), str):
            return TextBlock(block["text"])
        if kind == "image" and len(block) == 1:
            return _IMAGE
    return _fail(
        where,
        'a block must be {"type": "text", "text": ...} or {"type": "image"}, '
        f"got {_brief(block)}",
    )


def _parse_image(image: Any, where: str, folder: str) -> ImageRef:
    sha256 = None
    path = image
    if isinstance(image, dict):
        if not {"path"} <= image.keys() <= {"path", "sha256"}:
            _fail(where, f"an image must be a path or {{'path', 'sha256'}}, got {_brief(image)}")
        path, sha256 = image["path"], image.get("sha256")
        if sha256 is not None and not (isinstance(sha256, str) and len(sha256) == 64):
            _fail(where, f"'sha256' of an image must be 64 hexadecimal digits, got {sha256!r}")
    if not isinstance(path, str) or not path:
        _fail(where, f"an image must have a path (a non-empty string), got {_brief(image)}")
    return ImageRef(path=os.path.join(folder, path), sha256=sha256)


def _list_of(record: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key, [])
    if not isinstance(value, list):
        _fail(where, f"{key!r} must be a list, got {_kind(value)}")
    return value


def _strings(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _list_of(record, key, where)
    if not all(isinstance(value, str) for value in values):
        _fail(where, f"{key!r} must be a list of strings, got {_brief(values)}")
    return tuple(values)


def _message_record(message: Message) -> dict[str, Any]:
    content = [
        {"type": "text", "text": block.text} if isinstance(block, TextBlock) else {"type": "image"}
        for block in message.content
    ]
    return {"role": message.role, "content": content}


def _image_record(image: ImageRef, folder: str, where: str) -> str | dict[str, str]:
    if image.path is None:
        _fail(where, "an image given as bytes has no path; write_records stores it in a file")
    path = _relative(image.path, folder)
    return path if image.sha256 is None else {"path": path, "sha256": image.sha256}


def _relative(path: str, folder: str) -> str:
    prefix = os.path.join(folder, "")
    if path.startswith(prefix):  # the usual case, several times faster than relpath
        return path[len(prefix) :]
    return os.path.relpath(path, folder or ".")


def _kind(value: Any) -> str:
    return {str: "a string", list: "a list", dict: "an object", type(None): "null"}.get(
        type(value), repr(value)
    )


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _fail(where: str, problem: str) -> NoReturn:
    raise PolyptychError(f"{where}: {problem}")
