"""NLVR's boxes as pictures: cut out, captioned, edited, and asked about.

A picture of NLVR (Suhr et al., ACL 2017; CC BY 4.0) shows three boxes of 100 x 100 pixels with
shapes; a person wrote a statement about the three. Each box is an image here, so a statement is a
question about three images. The positions of all shapes are known.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import (
    DroppedError,
    Edit,
    EditKind,
    Mask,
    Region,
    Segmentation,
    SourcePicture,
)
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import Split

SIDE = 100
"""Width and height of a box in pixels."""
PITCH = 150
"""From one box to the next."""
GROUND = (211, 211, 211)
RGB = {"yellow": (255, 255, 0), "blue": (0, 153, 255), "black": (0, 0, 0)}
COLOR_WORDS = {"Yellow": "yellow", "#0099ff": "blue", "Black": "black"}
SIZE_WORDS = {10: "small", 20: "medium", 30: "large"}
KINDS = ("square", "triangle", "circle")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

_VALIDATION_DIRECTORY = "5"
"""Of the development set, about a sixth; the rest is for training. The test set is its own."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape; x and y are its upper left corner."""

    kind: str
    color: str
    size: int
    x: int
    y: int

    @property
    def phrase(self) -> str:
        """Without article: "small blue circle"."""
        return f"{SIZE_WORDS[self.size]} {self.color} {self.kind}"

    def pixels(self, image: Image.Image) -> Mask:
        """Its pixels in an image of its box."""
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        place = np.s_[max(0, self.y) : self.y + self.size, max(0, self.x) : self.x + self.size]
        near = np.abs(np.asarray(image.convert("RGB"), dtype=np.int16) - RGB[self.color]).max(-1)
        mask[place] = near[place] < 90  # edges are blended with the ground
        return mask


Box = tuple[Shape, ...]


@dataclass(frozen=True)
class Statements:
    """All statements of a split.

    Args:
        source: The folder with ``dev.jsonl``, ``test.jsonl`` and ``images``.
        split: ``train`` and ``validation`` are parts of the development set.
    """

    source: Path
    split: Split

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The set's lines."""
        path = self.source / ("test.jsonl" if self.split == "test" else "dev.jsonl")
        if not path.exists():
            raise PolyptychError(f"{path}: no such file; expected NLVR with images")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if self.split == "test":
            return lines
        held_out = self.split == "validation"
        return [e for e in lines if (e["directory"] == _VALIDATION_DIRECTORY) == held_out]

    def boxes(self) -> Iterator[tuple[str, Box, ImageRef]]:
        """Every box by itself: its id, its shapes, its picture."""
        for line in self.lines:
            for number, (box, image) in enumerate(_boxes(self.source, line)):
                yield f"nlvr-{line['identifier']}-{number}", box, image

    def examples(self) -> Iterator[Example]:
        """Statements about three boxes, true or false."""
        for line in self.lines:
            boxes = _boxes(self.source, line)
            asked: list[TextBlock | ImageBlock] = []
            for number in range(1, len(boxes) + 1):
                asked += [TextBlock(f"{' ' * (number > 1)}Picture {number}: "), ImageBlock()]
            sentence = " ".join(line["sentence"].lower().split())
            asked.append(TextBlock(f" True or false? {sentence}"))
            answer = f"{line['label']}."
            yield Example(
                id=f"nlvr-{self.split}-{line['identifier']}",
                messages=(
                    Message("user", tuple(asked)),
                    Message("assistant", (TextBlock(answer),)),
                ),
                images=tuple(image for _, image in boxes),
                references=(answer,),
                metadata={"answer": line["label"], "boxes": [_json(box) for box, _ in boxes]},
            )

    def captions(self) -> Iterator[Example]:
        """Single boxes with captions that name the number of shapes and the two largest."""
        for identity, box, image in self.boxes():
            yield Example(
                id=identity,
                messages=(
                    Message("user", (ImageBlock(), TextBlock(" Describe the picture."))),
                    Message("assistant", (TextBlock(caption_of(box)),)),
                ),
                images=(image,),
                references=(caption_of(box),),
                metadata={"boxes": [_json(box)]},
            )


def _boxes(source: Path, line: Mapping[str, Any]) -> list[tuple[Box, ImageRef]]:
    with Image.open(source / line["image"]) as file:
        picture = file.convert("RGB")
    found = []
    for number, shapes in enumerate(line["structured_rep"]):
        left = number * PITCH
        buffer = io.BytesIO()
        picture.crop((left, 0, left + SIDE, SIDE)).save(buffer, format="PNG")
        box = tuple(
            Shape(s["type"], COLOR_WORDS[s["color"]], s["size"], s["x_loc"], s["y_loc"])
            for s in shapes
        )
        found.append((box, ImageRef(data=buffer.getvalue())))
    return found


def _json(box: Box) -> list[dict[str, Any]]:
    return [asdict(shape) for shape in box]


def box_from_json(shapes: Sequence[Mapping[str, Any]]) -> Box:
    """The box whose shapes stand in a record's metadata."""
    return tuple(Shape(**shape) for shape in shapes)


def largest(box: Box) -> list[Shape]:
    """What a caption names: the two largest shapes; of equal ones the upper, then the left."""
    return sorted(box, key=lambda shape: (-shape.size, shape.y, shape.x))[:2]


def caption_of(box: Box) -> str:
    """A caption that leaves out all but number and the two largest."""
    named = " and ".join(with_article(shape.phrase) for shape in largest(box))
    shapes = "shape" if len(box) == 1 else "shapes"
    return f"{NUMBERS[len(box)]} {shapes}: {named}."


# The steps of the discriminative pipeline over boxes.


@dataclass(frozen=True)
class BoxMasks:
    """Every shape is an object."""

    boxes: Mapping[str, Box]
    name: str = "nlvr shapes"

    def __call__(self, picture: SourcePicture, image: Image.Image) -> Segmentation:
        """Masks from the known positions."""
        masks = [shape.pixels(image) for shape in self.boxes[picture.id]]
        objects = tuple(
            Region(mask, shape.phrase, index)
            for index, (mask, shape) in enumerate(zip(masks, self.boxes[picture.id], strict=True))
            if mask.any()
        )
        return Segmentation(objects, np.any(masks, axis=0))


@dataclass(frozen=True)
class BoxEdits:
    """A shape gets another color, or is taken away."""

    boxes: Mapping[str, Box]
    name: str = "nlvr edits"

    def __call__(
        self, picture: SourcePicture, region: Region, kind: EditKind, rng: random.Random
    ) -> Edit:
        """Both are painted inside the shape."""
        assert region.index is not None  # shapes come with it
        shape = self.boxes[picture.id][region.index]
        change = {"type": kind, "shape": shape.phrase}
        if kind == "delete":
            return Edit(kind, f"remove the {shape.phrase}", "ground", region, change=change)
        if kind != "modify":
            raise DroppedError("no fitting edit", f"{kind} of a shape")
        color = rng.choice([word for word in RGB if word != shape.color])
        told = f"change the color of the {shape.phrase} to {color}"
        return Edit(kind, told, color, region, change={**change, "new_color": color})


@dataclass(frozen=True)
class BoxEditor:
    """Fills the shape's pixels."""

    name: str = "nlvr paint"

    def __call__(self, image: Image.Image, edit: Edit, seed: int) -> Image.Image:
        """With the new color or the ground's."""
        pixels = np.array(image.convert("RGB"))
        pixels[edit.region.mask] = RGB.get(edit.change.get("new_color", ""), GROUND)
        return Image.fromarray(pixels)


@dataclass(frozen=True)
class BoxTargets:
    """Sentences that say the difference."""

    name: str = "nlvr sentences"

    def __call__(self, edit: Edit) -> tuple[str, ...]:
        """Shapes may look alike, so the article is indefinite."""
        shape = with_article(edit.change["shape"])
        if edit.kind == "delete":
            return (f"{shape} is gone.", f"{shape} was removed.", f"{shape} is missing.")
        color = edit.change["new_color"]
        return (f"{shape} is {color} now.", f"{shape} became {color}.")
