"""TrashNet (garythung/trashnet, MIT) as group captioning over photos of one waste item each.

In half of the groups all photos show one material; in the other half all but one do, and the answer
names the shared material and the place of the odd photo. No photo alone, and no count of materials
without their order, holds the answer: the pictures must be compared.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from polyptych.data.images import image_hash
from polyptych.data.readers.grouping import GROUP_SIZES, group_example, read_labels
from polyptych.data.readers.splitting import SplitName, split_keys, wanted_splits
from polyptych.data.records import OnError
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageRef

FRACTIONS: Mapping[SplitName, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Share of the photos of each material in each split."""

NEIGHBORS = 10
"""Photos with neighboring numbers may show one object twice: so many stay in one split."""

INSTRUCTIONS = (
    "Which material do these pictures share? Name the picture that differs, if there is one.",
    "What are these things made of, and is one picture different?",
    "Say which material the pictures have in common and which picture is the exception, if any.",
    "Compare the pictures: which material is shared, and does one not fit?",
    "Do all of these pictures show one material, or does one of them differ?",
)

ALL_SHARE = (
    "All of these pictures show {material}.",
    "Every picture shows {material}.",
    "Each of the {count} pictures shows {material}.",
    "The pictures all have {material} in common.",
    "What all of these pictures share is {material}.",
)

ALL_BUT_ONE = (
    "All but the {ordinal} picture show {material}.",
    "Every picture except the {ordinal} shows {material}.",
    "Apart from the {ordinal}, all of these pictures show {material}.",
    "The pictures have {material} in common, except for the {ordinal}.",
    "What all but the {ordinal} of these pictures share is {material}.",
)

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_KEYS = ("file", "label")
_NUMBERS = {3: "three", 4: "four", 5: "five", 6: "six"}


def read_trashnet(
    path: str | Path,
    *,
    split: SplitName | None = None,
    count: int = 1000,
    seed: int = 0,
    on_error: OnError | None = None,
) -> Iterator[Example]:
    """Draw groups of photos that share a material, with one exception in every second group.

    Args:
        path: The folder with ``labels.jsonl`` (``{"file", "label"}``) and the photos.
        split: Only this split; all of them, one after the other, by default.
        count: Groups in each split.
        seed: Decides the split and the groups.
        on_error: Called for each bad line of the label file, which is then skipped.

    Raises:
        PolyptychError: At the first bad line, naming file and line.
    """
    folder = Path(path)
    photos = _photos_by_split(folder, seed, on_error)
    for name in wanted_splits(split):
        rng = random.Random(f"trashnet:{seed}:{name}")
        pools = {material: files for (part, material), files in photos.items() if part == name}
        if len(pools) < 2 or min(len(files) for files in pools.values()) < max(GROUP_SIZES):
            raise PolyptychError(f"{folder}: too few photos in split {name!r} to form groups")
        for number in range(count):
            yield _group(f"trashnet-{name}-{number:05d}", pools, folder, name, rng)


def _photos_by_split(
    folder: Path, seed: int, on_error: OnError | None
) -> dict[tuple[SplitName, str], list[str]]:
    by_material: dict[str, list[str]] = defaultdict(list)
    for item in _consistent(folder, read_labels(folder / "labels.jsonl", _KEYS, on_error)):
        by_material[item["label"]].append(item["file"])
    photos: dict[tuple[SplitName, str], list[str]] = defaultdict(list)
    for material, files in sorted(by_material.items()):
        files.sort(key=_number)
        blocks = [f"{material}:{index // NEIGHBORS}" for index in range(len(files))]
        splits = split_keys(set(blocks), FRACTIONS, seed)
        for file, block in zip(files, blocks, strict=True):
            photos[splits[block], material].append(file)
    return photos


def _consistent(folder: Path, items: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Leave out every photo that the set holds under two labels."""
    by_photo = defaultdict(list)
    for item in items:
        path = folder / item["file"]
        key = image_hash(ImageRef(path=str(path))) if path.is_file() else item["file"]
        by_photo[key].append(item)
    for same in by_photo.values():
        if len({item["label"] for item in same}) == 1:
            yield same[0]


def _number(file: str) -> tuple[int, str]:
    digits = re.search(r"(\d+)\D*$", file)
    return (int(digits[1]) if digits else 0, file)


def _group(
    identity: str,
    pools: Mapping[str, list[str]],
    folder: Path,
    split: SplitName,
    rng: random.Random,
) -> Example:
    size = rng.choice(GROUP_SIZES)
    material, other = rng.sample(sorted(pools), 2)
    files = rng.sample(pools[material], size)
    odd = rng.randrange(size) if rng.random() < 0.5 else None
    if odd is not None:
        files[odd] = rng.choice(pools[other])
    templates = ALL_SHARE if odd is None else ALL_BUT_ONE
    ordinal = "" if odd is None else _ORDINALS[odd]
    return group_example(
        identity=identity,
        images=[folder / file for file in files],
        instructions=INSTRUCTIONS,
        references=[
            text.format(material=material, ordinal=ordinal, count=_NUMBERS[size])
            for text in templates
        ],
        metadata={
            "source": "TrashNet",
            "split": split,
            "shared": material,
            "odd": None if odd is None else odd + 1,
            "odd_material": None if odd is None else other,
        },
        rng=rng,
    )
