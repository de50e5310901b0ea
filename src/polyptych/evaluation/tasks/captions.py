"""Captions of COCO and Flickr30k, the test sets of Karpathy's split, by CIDEr.

    ROOT/llava_coco_cap_karpathy_test.jsonl    {"image_id", "image", "text"}, CaMML's
    ROOT/coco_karpathy_test_gt.json            references, five or more an image
    ROOT/val2014/COCO_val2014_000000391895.jpg

References are read from COCO's form, ``{"annotations": [{"image_id", "caption"}]}``, or from
Karpathy's, ``{"images": [{"filename", "sentences": [{"raw"}]}]}``; images are found by their id or
by their file name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scorers import caption_scorer
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


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """Where the files of one benchmark lie, relative to its folder."""

    name: str
    questions: str
    images: str
    references: tuple[str, ...]
    """Files that may hold the references; the first that exists is read."""


SETS = {
    found.name: found
    for found in (
        CaptionSet(
            "coco_caption",
            "llava_coco_cap_karpathy_test.jsonl",
            "val2014",
            ("coco_karpathy_test_gt.json", "dataset_coco.json", "captions_val2014.json"),
        ),
        CaptionSet(
            "flickr30k_caption",
            "llava_flickr30k_test.jsonl",
            "flickr30k-images",
            ("flickr30k_test_karpathy.json", "dataset_flickr30k.json"),
        ),
    )
}


def caption_task(name: str, root: str | Path) -> Task:
    """One of the two sets.

    Args:
        name: Key of :data:`SETS`.
        root: Its folder, with the files that :data:`SETS` names.

    Raises:
        PolyptychError: For an unknown name.
    """
    if name not in SETS:
        raise PolyptychError(f"no caption set {name!r}; known: {', '.join(SETS)}")
    layout = SETS[name]
    scorers = (caption_scorer("cider", "bleu", "rouge_l"),)
    return Task(name, lambda: read_captions(layout, root), scorers, SHORT_SETTINGS)


def read_captions(layout: CaptionSet, root: str | Path) -> list[Example]:
    """Read what is asked of each image, and its captions as references.

    Raises:
        PolyptychError: For a bad line, or an image without captions.
    """
    path = required_file(root, *layout.references)
    captions = _read_captions(path)
    examples = []
    for question in read_questions(required_file(root, layout.questions), key="image_id"):
        with item():
            references = next((captions[key] for key in _keys(question) if key in captions), None)
            if references is None:
                fail(question.where, f"no captions of it in {path}")
            for text in references:
                if not isinstance(text, str) or not text.strip():
                    fail(f"{path} image {question.id!r}", f"a caption must be a text, got {text!r}")
            example = make_example(
                question.id,
                question.text,
                image_path(Path(root, layout.images), question.image, question.where),
                question.where,
                references=references,
                metadata={"task": layout.name, "image": question.image},
            )
            examples.append(example)
    return examples


def _keys(question: Question) -> Iterator[str]:
    yield question.id
    if question.image is not None:
        yield PurePath(question.image).name


def _read_captions(path: Path) -> dict[str, list[Any]]:
    """Id or file name of an image to its captions as they stand."""
    content = read_json(path)
    if isinstance(content, Mapping) and "annotations" in content:
        return _of_coco(content, path)
    found: dict[str, list[Any]] = {}
    for number, image in enumerate(objects_in(content, "images", str(path))):
        with item():
            where = f"{path} image {number}"
            texts = [sentence.get("raw") for sentence in objects_in(image, "sentences", where)]
            if "cocoid" in image:
                found[identity_of(image, "cocoid", where)] = texts
            found[text_of(image, "filename", where)] = texts
    return found


def _of_coco(content: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for number, record in enumerate(objects_in(content, "annotations", str(path))):
        with item():
            identity = identity_of(record, "image_id", f"{path} annotation {number}")
            found.setdefault(identity, []).append(record.get("caption"))
    for image in content.get("images", ()):
        if isinstance(image, Mapping) and isinstance(image.get("file_name"), str):
            name = PurePath(image["file_name"]).name
            found.setdefault(name, found.get(str(image.get("id")), []))
    return {key: texts for key, texts in found.items() if texts}
