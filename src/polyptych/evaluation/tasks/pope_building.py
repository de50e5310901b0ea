"""Building POPE's questions (Li et al. 2023) from a table of which objects each image has.

    questions = build_questions({"1.jpg": {"dog", "car", "cat"}, ...}, "popular")
    write_questions("DATA/pope", table)         # all three files, which `pope_task` reads

Of each image with enough objects some are asked for, which is answered by yes, and beside each of
them one that the image does not have, chosen by category:

- ``random``: any object of the table;
- ``popular``: those that most images have;
- ``adversarial``: the one that most often occurs together with the object asked for before it.

A category that has no object left takes the next most popular one.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from polyptych.errors import PolyptychError
from polyptych.files import write_aside

Category = Literal["random", "popular", "adversarial"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

PER_IMAGE = 3
"""Objects of an image that are asked for; as many more that it does not have."""

ObjectTable = Mapping[str, Collection[str]]
"""Image to the names of its objects."""


def build_questions(
    table: ObjectTable, category: Category, *, per_image: int = PER_IMAGE, seed: int = 0
) -> list[dict[str, Any]]:
    """POPE's records: ``{"question_id", "image", "text", "label"}``, yes and no in turn.

    Args:
        table: Which objects each image has; the first images are asked about first. Popularity and
            co-occurrence are counted over all of it.
        category: How absent objects are chosen.
        per_image: Half the number of questions about an image; images with fewer objects are left
            out.
        seed: Another one asks for other objects.

    Raises:
        PolyptychError: If no image has enough objects, or all images have too many of them.
    """
    images = {image: objects for image, objects in table.items() if len(objects) >= per_image}
    if not images:
        raise PolyptychError(f"none of {len(table)} images has {per_image} or more objects")
    popular = _by_count(Counter(name for objects in table.values() for name in objects))
    together = _together(table) if category == "adversarial" else {}
    rows: list[dict[str, Any]] = []
    for image, objects in images.items():
        rng = random.Random(f"{seed}/{image}")
        present = rng.sample(sorted(objects), per_image)
        absent: list[str] = []
        for name in present:
            order: Iterable[str] = popular
            if category == "random":
                order = rng.sample(popular, len(popular))
            elif category == "adversarial":
                order = [*together[name], *popular]
            absent.append(_first_absent(order, objects, absent, image))
        for one, other in zip(present, absent, strict=True):
            rows += [
                _row(len(rows) + 1, image, one, "yes"),
                _row(len(rows) + 2, image, other, "no"),
            ]
    return rows


def write_questions(
    root: str | Path, table: ObjectTable, *, per_image: int = PER_IMAGE, seed: int = 0
) -> dict[Category, int]:
    """Write ``ROOT/coco/coco_pope_{random,popular,adversarial}.json``.

    Returns:
        How many questions each category has.
    """
    counts: dict[Category, int] = {}
    for category in CATEGORIES:
        rows = build_questions(table, category, per_image=per_image, seed=seed)
        with write_aside(Path(root, "coco", f"coco_pope_{category}.json")) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        counts[category] = len(rows)
    return counts


def _by_count(counts: Counter[str]) -> list[str]:
    """Names, the most frequent first; equals by their letters."""
    return sorted(counts, key=lambda name: (-counts[name], name))


def _together(table: ObjectTable) -> dict[str, list[str]]:
    """Each object to the others, most often seen together with it first."""
    counts: dict[str, Counter[str]] = {}
    for objects in table.values():
        for name in objects:
            counts.setdefault(name, Counter()).update(set(objects) - {name})
    return {name: _by_count(others) for name, others in counts.items()}


def _first_absent(
    order: Iterable[str], objects: Collection[str], used: Sequence[str], image: str
) -> str:
    for name in order:
        if name not in objects and name not in used:
            return name
    raise PolyptychError(
        f"image {image!r} has {len(objects)} of all objects; no {len(used) + 1} others are left"
    )


def _row(number: int, image: str, name: str, label: str) -> dict[str, Any]:
    article = "an" if name[0].lower() in "aeiou" else "a"
    text = f"Is there {article} {name} in the image?"
    return {"question_id": number, "image": image, "text": text, "label": label}
