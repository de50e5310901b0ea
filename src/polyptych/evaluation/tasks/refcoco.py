"""RefCOCO, RefCOCO+ and RefCOCOg (Yu et al. 2016, Mao et al. 2016): where is what is described?

Either the question file of CaMML and the boxes of the original release,

    ROOT/llava_refcoco_val.jsonl    {"obj_id", "image", "text"}; refcocop and refcocog likewise
    ROOT/instances.json             {"annotations": [{"id", "image_id", "bbox": [x, y, w, h]}],
                                     "images": [{"id", "width", "height"}]}

where ``obj_id`` is an annotation's id, or the file that Qwen-VL and InternVL evaluate on:

    ROOT/refcoco_val.jsonl          {"image", "sent", "bbox": [x1, y1, x2, y2], "width", "height"};
                                    refcoco+_val.jsonl and refcocog_val.jsonl likewise

Boxes are pixels; answers are read in the frame of the square-padded image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from polyptych.data.records import parse_json, read_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.boxes import box_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    SHORT_SETTINGS,
    Question,
    fail,
    identity_of,
    image_path,
    make_example,
    objects_in,
    read_questions,
    required_file,
    text_of,
)
from polyptych.schema import Example

Name = Literal["refcoco", "refcoco_plus", "refcocog"]

QUESTIONS: dict[Name, str] = {
    "refcoco": "llava_refcoco_val.jsonl",
    "refcoco_plus": "llava_refcocop_val.jsonl",
    "refcocog": "llava_refcocog_val.jsonl",
}
"""CaMML's files."""

WHOLE: dict[Name, str] = {
    "refcoco": "refcoco_val.jsonl",
    "refcoco_plus": "refcoco+_val.jsonl",
    "refcocog": "refcocog_val.jsonl",
}
"""Files that hold questions and boxes together."""

IMAGES = "train2014"
REQUEST = "Please provide the bounding box coordinate of the region this sentence describes: {}."
"""How LLaVA 1.5 was trained to be asked; for files that have the bare description."""

Truth = tuple[tuple[float, ...], float, float]
"""Box (x1, y1, x2, y2), width and height of the image, in pixels."""

Row = tuple[str, str, str, Truth]
"""Id, description, name of the image, and where what is described is."""

_SIDES = ("width", "height")


def refcoco_task(name: Name, root: str | Path) -> Task:
    """One of the three sets: accuracy at an overlap of one half.

    Raises:
        PolyptychError: For an unknown name.
    """
    if name not in QUESTIONS:
        raise PolyptychError(f"no RefCOCO set {name!r}; known: {', '.join(QUESTIONS)}")
    return Task(name, lambda: read_refcoco(name, root), (box_scorer(),), SHORT_SETTINGS)


def read_refcoco(name: Name, root: str | Path) -> list[Example]:
    """Read descriptions and boxes; a thing that is described twice has the ids ``7`` and ``7#2``.

    Raises:
        PolyptychError: For a description without a box, a box with NaN or outside its image, named
            with file and id.
    """
    path = required_file(root, QUESTIONS[name], WHOLE[name])
    rows = _camml_rows(path, root) if path.name == QUESTIONS[name] else _whole_rows(path)
    seen: Counter[str] = Counter()
    examples = []
    for where, read in rows:
        with item():
            identity, text, image, (box, width, height) = read()
            seen[identity] += 1
            own = identity if seen[identity] == 1 else f"{identity}#{seen[identity]}"
            example = make_example(
                own,
                text,
                image_path(Path(root, IMAGES), Path(image).name, where),
                where,
                metadata={
                    "task": name,
                    "image": image,
                    "object": identity,
                    "box": _inside(box, width, height, where),
                    "width": width,
                    "height": height,
                },
            )
            examples.append(example)
    if not examples:
        fail(str(path), "no questions in it")
    return examples


def _camml_rows(path: Path, root: str | Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    boxes_path = required_file(root, "instances.json")
    content = read_json(boxes_path)
    images = _by_id(content, "images", boxes_path)
    annotations = _by_id(content, "annotations", boxes_path)

    def row(question: Question) -> Row:
        if question.id not in annotations:
            fail(question.where, f"no annotation with this id in {boxes_path}")
        image = question.image or fail(question.where, "no 'image'")
        where = f"{boxes_path} annotation {question.id!r}"
        truth = _instance(annotations[question.id], images, where)
        return question.id, question.text, image, truth

    for question in read_questions(path, unique=False, key="obj_id"):
        yield question.where, partial(row, question)


def _by_id(content: Any, key: str, path: Path) -> dict[str, dict[str, Any]]:
    return {
        identity_of(record, "id", f"{path} {key} {number}"): record
        for number, record in enumerate(objects_in(content, key, str(path)))
    }


def _instance(
    record: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]], where: str
) -> Truth:
    image = identity_of(record, "image_id", where)
    if image not in images:
        fail(where, f"its image {image!r} is not in the file")
    image_width, image_height = (
        _number(images[image].get(side), f"{where}, its image {image!r}") for side in _SIDES
    )
    x, y, width, height = _four(record, where)
    return (x, y, x + width, y + height), image_width, image_height


def _whole_rows(path: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for number, (where, line) in enumerate(read_lines(path)):
        yield where, partial(_whole_row, number, where, line)


def _whole_row(number: int, where: str, line: bytes) -> Row:
    record = parse_json(line, where)
    if not isinstance(record, dict):
        fail(where, f"expected an object, got {type(record).__name__}")
    identity = str(record.get("id", number))
    width, height = (_number(record.get(side), where) for side in _SIDES)
    text = REQUEST.format(text_of(record, "sent", where))
    return identity, text, text_of(record, "image", where), (_four(record, where), width, height)


def _four(record: Mapping[str, Any], where: str) -> tuple[float, ...]:
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        fail(where, f"'bbox' must have 4 numbers, got {box!r}")
    return tuple(_number(value, where) for value in box)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        fail(where, f"expected a number, got {value!r}")
    return float(value)


def _inside(
    box: tuple[float, ...], width: float, height: float, where: str
) -> tuple[float, float, float, float]:
    """The box, cut at the border: by rounding, released ones reach up to a pixel over it."""
    x1, y1, x2, y2 = box
    if not (-1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1):
        fail(where, f"box {box} is not inside an image of {width:g} x {height:g}")
    return max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
