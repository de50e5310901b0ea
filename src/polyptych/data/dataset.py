"""A torch map dataset over examples, read and decoded where and when an item is asked for.

Images are decoded inside the worker process that serves the item, in the order of the example, each
file once per item. A native JSONL file is indexed by byte offsets, so it may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from polyptych.data.images import load_image
from polyptych.data.readers import detect_format, read_examples
from polyptych.data.records import parse_json, parse_record, read_lines
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageRef


class LoadedExample(NamedTuple):
    """An example and its decoded images, in order."""

    example: Example
    images: tuple[Image.Image, ...]


Transform = Callable[[LoadedExample], Any]
"""What turns a loaded example into the item a collator takes; runs in the worker process."""


class Examples(Protocol):
    """Random access to a set of examples: what mixtures and training take."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> Any:
        """The item that a collator takes."""

    def example(self, index: int) -> Example:
        """The example at ``index``, without its pixels."""


class ExampleDataset(Dataset[Any]):
    """Random access to examples; picklable, so every ``DataLoader`` start method works.

    Args:
        examples: Examples, or a path of any known format. Of a native JSONL file only the line
            positions are held in memory; other formats are read into memory (without pixels).
        transform: Applied to each `LoadedExample`; without it the item is the loaded example.
        load_images: Decode the images; False when features come from a cache instead.

    Raises:
        PolyptychError: For data that cannot be read. A bad line of an indexed file is reported
            when its item is asked for; ``polyptych data check`` finds it beforehand.
    """

    def __init__(
        self,
        examples: Sequence[Example] | str | Path,
        transform: Transform | None = None,
        *,
        load_images: bool = True,
    ) -> None:
        self.transform = transform
        self.load_images = load_images
        self._source: _Lines | Sequence[Example] = (
            _open_source(Path(examples)) if isinstance(examples, str | Path) else examples
        )

    def __len__(self) -> int:
        return len(self._source)

    def example(self, index: int) -> Example:
        """The example at ``index``, without its pixels."""
        return self._source[index]

    def __getitem__(self, index: int) -> Any:
        example = self._source[index]
        images = load_all(example) if self.load_images else ()
        loaded = LoadedExample(example, images)
        return loaded if self.transform is None else self.transform(loaded)


class Selection(Dataset[Any]):
    """Some examples of a set, in the order given."""

    def __init__(self, examples: Examples, indices: Sequence[int]) -> None:
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.examples[self.indices[index]]

    def example(self, index: int) -> Example:
        """The example at ``index``, without its pixels."""
        return self.examples.example(self.indices[index])


class _Lines:
    """A native JSONL file as a sequence of examples.

    The file is opened for each access: nothing is shared between processes or threads, and opening
    costs microseconds next to decoding an image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lengths = [len(line) for _, line in read_lines(path)]
        self.ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: item {index} of {len(self)}")
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        where = f"{self.path} line {index + 1}"
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                line = file.read(int(self.ends[index]) - start)
        except OSError as error:
            raise PolyptychError(f"cannot read {self.path}: {error.strerror or error}") from error
        return parse_record(parse_json(line, where), where, self.path.parent)


def _open_source(path: Path) -> _Lines | Sequence[Example]:
    source_format = detect_format(path)
    if source_format == "native" and path.is_file():
        return _Lines(path)
    return list(read_examples(path, source_format))


def load_all(example: Example) -> tuple[Image.Image, ...]:
    """Decode each different image once, also where an example shows it several times."""
    decoded: dict[ImageRef, Image.Image] = {}
    for ref in example.images:
        if ref not in decoded:
            decoded[ref] = load_image(ref, where=f"example {example.id!r}")
    return tuple(decoded[ref] for ref in example.images)
