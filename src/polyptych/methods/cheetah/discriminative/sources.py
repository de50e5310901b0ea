"""Pictures to start from: drawn ones by their number, or those of a file of records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from polyptych.data.readers import read_examples
from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import SourcePicture
from polyptych.storybook.generation import IMAGE_SIZE, make_examples, to_example


@dataclass(frozen=True)
class StorybookPictures(Sequence[SourcePicture]):
    """Drawn pictures, each made when it is asked for, from its number alone.

    Args:
        number: How many.
        split: Whose compositions they show; training data comes from ``train``.
        seed: Another seed draws other pictures.
        size: Width and height in pixels.
        things: Least and greatest number of things in a picture.
    """

    number: int
    split: str = "train"
    seed: int = 0
    size: int = IMAGE_SIZE
    things: tuple[int, int] = (3, 8)

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, index: int) -> SourcePicture: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourcePicture]: ...
    def __getitem__(self, index: int | slice) -> SourcePicture | list[SourcePicture]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.number))]
        if not 0 <= index < self.number:
            raise IndexError(index)
        (story,) = make_examples(
            "description",
            count=1,
            split=self.split,
            seed=self.seed,
            start=index,
            things=self.things,
        )
        drawn = to_example(story, self.size)
        return SourcePicture(story.id, drawn.images[0], story.target, story.scenes[0], self.split)


def read_pictures(path: str | Path) -> list[SourcePicture]:
    """Pictures with captions: examples of one image each, in any known format.

    Raises:
        PolyptychError: At the first bad record, naming file and line; for a record with another
            number of images than 1 or without a caption, and for a repeated id.
    """
    pictures: dict[str, SourcePicture] = {}
    for example in read_examples(path):
        where = f"{path} id {example.id!r}"
        if len(example.images) != 1:
            raise PolyptychError(f"{where}: {len(example.images)} images, expected 1 to edit")
        caption = example.target or next(iter(example.references), None)
        if caption is None:
            raise PolyptychError(f"{where}: no caption, neither an answer nor a reference")
        if example.id in pictures:
            raise PolyptychError(f"{where}: this id occurs twice")
        split = example.metadata.get("split")
        pictures[example.id] = SourcePicture(
            example.id, example.images[0], caption, split=None if split is None else str(split)
        )
    if not pictures:
        raise PolyptychError(f"{path}: 0 pictures to edit")
    return list(pictures.values())
