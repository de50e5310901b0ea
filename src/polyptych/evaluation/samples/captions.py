"""Samples of captions, referring expressions and the six sets of SAM."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image

from polyptych.evaluation.samples.album import (
    PICTURES,
    SIZE,
    SPLIT,
    picture,
    scenes,
)
from polyptych.evaluation.samples.writing import write_image, write_json, write_lines
from polyptych.evaluation.tasks import captions, refcoco
from polyptych.schema import ImageBlock
from polyptych.storybook.graph import Scene, Thing, box_of, categories_in, kinds_in
from polyptych.storybook.rendering import draw
from polyptych.storybook.tasks import description, storytelling
from polyptych.storybook.tasks.base import StoryExample
from polyptych.storybook.tasks.phrasing import join_words, with_article
from polyptych.storybook.vocabulary import KINDS, PERSON, PLACES

COUNT = 12
STORIES = 6
"""Records of each of SAM's sets."""

_REQUEST = "Describe the image in one sentence."
_MARGIN = 24
"""Paper on the left and right of a picture in which something is to be found, in pixels."""


def sample_coco_caption(root: Path) -> None:
    """References in COCO's form, found by the image's id."""
    layout = captions.SETS["coco_caption"]
    rows, annotations = [], []
    for number in range(COUNT):
        identity, image = number + 1, f"COCO_val2014_{number + 1:012d}.jpg"
        rows.append({"image_id": identity, "image": image, "text": _REQUEST})
        annotations += [
            {"image_id": identity, "id": 10 * number + turn, "caption": text}
            for turn, text in enumerate(description.references_for(scenes()[number]))
        ]
        write_image(root / layout.images / image, picture(number))
    write_lines(root / layout.questions, rows)
    images = [{"id": row["image_id"]} for row in rows]
    write_json(root / layout.references[0], {"annotations": annotations, "images": images})


def sample_flickr30k_caption(root: Path) -> None:
    """References in Karpathy's form, found by the image's file name."""
    layout = captions.SETS["flickr30k_caption"]
    rows, images = [], []
    for number in range(COUNT):
        image = f"{1000 + number}.jpg"
        rows.append({"image_id": number, "image": image, "text": _REQUEST})
        texts = description.references_for(scenes()[number])
        images.append(
            {
                "filename": image,
                "imgid": 31_000 + number,
                "split": "test",
                "sentences": [{"raw": text} for text in texts],
            }
        )
        write_image(root / layout.images / image, picture(number))
    write_lines(root / layout.questions, rows)
    write_json(root / layout.references[1], {"images": images, "dataset": "flickr30k"})


# Boxes.


def sample_refcoco(name: refcoco.Name, root: Path) -> None:
    """Pictures wider than high; RefCOCO+ in the form of Qwen-VL, the others in CaMML's."""
    found = []
    for number in range(PICTURES):
        alone = _colored_alone(scenes()[number])
        if alone:
            found.append((number, random.Random(f"{name}/{number}").choice(alone)))
    width, height = SIZE + 2 * _MARGIN, SIZE
    rows: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    instances: dict[str, list[dict[str, Any]]] = {"annotations": [], "images": []}
    for number, thing in found[:COUNT]:
        identity, image = 100 + number, f"COCO_train2014_{number + 1:012d}.jpg"
        said = f"the {thing.color} {thing.kind}"
        left, top, right, bottom = _pixels(thing)
        rows.append({"obj_id": identity, "image": image, "text": refcoco.REQUEST.format(said)})
        corners = [left, top, right, bottom]
        size = {"width": width, "height": height}
        whole.append({"image": f"coco/train2014/{image}", "sent": said, "bbox": corners, **size})
        corner_and_size = [left, top, right - left, bottom - top]
        instances["annotations"].append(
            {"id": identity, "image_id": number + 1, "bbox": corner_and_size}
        )
        instances["images"].append({"id": number + 1, "file_name": image, **size})
        wide = Image.new("RGB", (width, height), "white")
        wide.paste(picture(number), (_MARGIN, 0))
        write_image(root / refcoco.IMAGES / image, wide)
    if name == "refcoco_plus":
        write_lines(root / refcoco.WHOLE[name], whole)
    else:
        write_lines(root / refcoco.QUESTIONS[name], rows)
        write_json(root / "instances.json", instances)


def _colored_alone(scene: Scene) -> list[Thing]:
    """Objects of whose kind there is no other."""
    kinds = [thing.kind for thing in scene.things]
    return [t for t in scene.things if t.kind != PERSON and kinds.count(t.kind) == 1]


def _pixels(thing: Thing) -> tuple[float, float, float, float]:
    """Its box in the widened picture."""
    x1, y1, x2, y2 = (round(SIZE * value, 1) for value in box_of(thing))
    return x1 + _MARGIN, y1, x2 + _MARGIN, y2


# SAM's sets.


def sample_sam(name: str, root: Path) -> None:
    """Storytelling for AESOP and VIST, what pictures share for the others."""
    stories = name in ("sam_aesop", "sam_vist")
    records = []
    for number in range(STORIES):
        rng = random.Random(f"{name}/{number}")
        instruction, output, images = (_story if stories else _shared)(name, rng)
        names = [f"images/{number}_{turn}.jpg" for turn in range(len(images))]
        for path, image in zip(names, images, strict=True):
            write_image(root / path, image)
        records.append(
            {"id": number, "img_list": names, "instruction": instruction, "output": output}
        )
    write_json(root / "annotations.json", records)


def _story(name: str, rng: random.Random) -> tuple[str, str, list[Image.Image]]:
    panels = 3 if name == "sam_aesop" else 4
    story = storytelling.make_example(rng, SPLIT, panels=(panels, panels))
    return _with_slots(story), story.target, [draw(scene, SIZE) for scene in story.scenes]


def _with_slots(story: StoryExample) -> str:
    parts, slot = [], 0
    for block in story.messages[0].content:
        if isinstance(block, ImageBlock):
            slot += 1
            parts.append(f"{{image#{slot}}}")
        else:
            parts.append(block.text)
    return "".join(parts)


def _shared(name: str, rng: random.Random) -> tuple[str, str, list[Image.Image]]:
    """Three pictures that share a category of things, or their place."""
    instruction = "Say in one sentence what these pictures have in common."
    category = {"sam_animal": "animal", "sam_vehicle": "vehicle"}.get(name)
    if category is None:
        by_place = {
            name: [n for n, scene in enumerate(scenes()) if scene.place == name] for name in PLACES
        }
        place = rng.choice([name for name, numbers in by_place.items() if len(numbers) > 2])
        chosen = rng.sample(by_place[place], 3)
        output = f"All of the pictures were made {PLACES[place].phrase}."
    else:
        members = [n for n, scene in enumerate(scenes()) if category in categories_in(scene)]
        chosen = rng.sample(members, 3)
        things = [
            min(kind for kind in kinds_in(scenes()[n]) if KINDS[kind].category == category)
            for n in chosen
        ]
        named = join_words([with_article(thing) for thing in things])
        output = f"All of the pictures show {with_article(category)}: {named}."
    return instruction, output, [picture(number) for number in chosen]
