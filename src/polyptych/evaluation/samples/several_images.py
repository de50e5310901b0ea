"""Samples of the benchmarks that ask about several images."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from PIL import Image

from polyptych.evaluation.samples.album import (
    PICTURES,
    SIZE,
    persons,
    picture,
    scenes,
    shuffled,
)
from polyptych.evaluation.samples.writing import (
    cell,
    write_image,
    write_json,
    write_lines,
    write_parquet,
)
from polyptych.evaluation.scoring.choice import LETTERS
from polyptych.evaluation.tasks import blink
from polyptych.storybook.graph import Scene, kinds_in
from polyptych.storybook.rendering import draw
from polyptych.storybook.scenes import second_view
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import COLORS, PLACES

COUNT = 12
SETS = 3
"""Sentences of NLVR2, each beside four pairs."""

FEW = 4
"""Questions of each part of a benchmark of parts."""


def sample_nlvr2(root: Path) -> None:
    """Each sentence is true of two of its four pairs."""
    rows = []
    for number in range(SETS):
        rng = random.Random(f"nlvr2/{number}")
        kind, showing = rng.choice(_common_kinds())
        others = [n for n in range(PICTURES) if n not in showing]
        for pair in range(4):
            truth = pair % 2 == 0
            shown = [rng.choice(showing if truth else others), rng.choice(others)]
            for side, image in enumerate(shuffled(rng, shown)):
                name = f"test1-{number}-{pair}-img{side}.png"
                write_image(root / "images" / "test1" / name, picture(image))
            rows.append(
                {
                    "sentence": f"One of the images shows {with_article(kind)}.",
                    "left_url": "",
                    "right_url": "",
                    "label": str(truth),
                    "identifier": f"test1-{number}-{pair}-0",
                    "synset": kind,
                }
            )
    write_lines(root / "data" / "test1.json", rows)


@cache
def _common_kinds() -> list[tuple[str, list[int]]]:
    """Kinds that at least three pictures show, with these pictures."""
    showing: dict[str, list[int]] = {}
    for number, scene in enumerate(scenes()):
        for kind in kinds_in(scene):
            showing.setdefault(kind, []).append(number)
    return sorted((kind, found) for kind, found in showing.items() if len(found) > 2)


# BLINK.

Part = Callable[[random.Random], tuple[str, list[str], int, list[Image.Image]]]
"""Draws a question, its options, the index of the right one, and the pictures."""


def _counting(rng: random.Random) -> tuple[str, list[str], int, list[Image.Image]]:
    number = rng.randrange(PICTURES)
    options = [str(count) for count in range(4)]
    return "How many persons are in the image?", options, persons(number), [picture(number)]


def _relation(rng: random.Random) -> tuple[str, list[str], int, list[Image.Image]]:
    number = rng.randrange(PICTURES)
    things = scenes()[number].things
    pairs = [(a, b) for a in things for b in things if a.kind != b.kind and a.x != b.x]
    left, right = rng.choice(pairs)
    question = f"Is the {left.kind} further to the left than the {right.kind}?"
    return question, ["yes", "no"], int(left.x > right.x), [picture(number)]


def _similar(rng: random.Random) -> tuple[str, list[str], int, list[Image.Image]]:
    """The same things seen again, beside another picture."""
    number, other = rng.sample(range(PICTURES), 2)
    options = ["the second image", "the third image"]
    again = draw(second_view(rng, scenes()[number]), SIZE)
    index = rng.randrange(2)
    pair = [again, picture(other)] if index == 0 else [picture(other), again]
    question = "Which image is most similar to the first one?"
    return question, options, index, [picture(number), *pair]


def _jigsaw(rng: random.Random) -> tuple[str, list[str], int, list[Image.Image]]:
    """The lower right quarter is missing; the second or the third image is it."""
    number, other = rng.sample(range(PICTURES), 2)
    half = SIZE // 2
    corner = (half, half, SIZE, SIZE)
    open_picture = picture(number).copy()
    open_picture.paste("black", corner)
    index = rng.randrange(2)
    right, wrong = picture(number).crop(corner), picture(other).crop(corner)
    pieces = [right, wrong] if index == 0 else [wrong, right]
    question = "Which image is the missing part of the first one?"
    return question, ["the second image", "the third image"], index, [open_picture, *pieces]


BLINK_PARTS: dict[str, Part] = {
    "Counting": _counting,
    "Jigsaw": _jigsaw,
    "Spatial_Relation": _relation,
    "Visual_Similarity": _similar,
}


def sample_blink(name: blink.Name, root: Path) -> None:
    """Four of the fourteen tasks; answers of the test split are hidden."""
    split = blink.SPLITS[name]
    for part, make in BLINK_PARTS.items():
        rows = []
        for number in range(1, FEW + 1):
            question, options, answer, images = make(random.Random(f"{name}/{part}/{number}"))
            listed = "".join(f"\n({x}) {o}" for x, o in zip(LETTERS, options, strict=False))
            cells = [cell(image) for image in images]
            rows.append(
                {
                    "idx": f"{split}_{part}_{number}",
                    "question": question,
                    "sub_task": part,
                    **{f"image_{k}": (cells + [None] * 4)[k - 1] for k in range(1, 5)},
                    "choices": options,
                    "answer": f"({LETTERS[answer]})" if name == "blink" else "hidden",
                    "prompt": f"{question}\nSelect from the following choices.{listed}",
                    "explanation": "",
                }
            )
        write_parquet(root / part / f"{split}-00000-of-00001.parquet", rows)


# MuirBench and Mantis-Eval.


def sample_muirbench(root: Path) -> None:
    """Images before the question and as options; every second question cannot be answered."""
    none = "None of the choices provided"
    rows = []
    for number in range(COUNT):
        rng = random.Random(f"muirbench/{number}")
        answerable = number % 2 == 0
        place = rng.choice(sorted({scene.place for scene in scenes()}))
        there = [n for n, scene in enumerate(scenes()) if scene.place == place]
        elsewhere = [n for n in range(PICTURES) if n not in there]
        shown = rng.sample(elsewhere, 3)
        if answerable:
            shown[rng.randrange(3)] = rng.choice(there)
        right = next((i for i, n in enumerate(shown) if n in there), len(shown))
        rows.append(
            {
                "idx": str(number),
                "task": "Visual Retrieval" if number % 4 < 2 else "Image-Text Matching",
                "image_relation": "Independent",
                "image_type": "Drawing",
                "question": f"Which image was made {PLACES[place].phrase}?",
                "options": [*["<image>"] * len(shown), none],
                "answer": LETTERS[right],
                "image_list": [cell(picture(n)) for n in shown],
                "counterpart_idx": str(number ^ 1),
            }
        )
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)


def sample_mantis_eval(root: Path) -> None:
    """What changed between two pictures, by options and in short answers."""
    rows = []
    for number in range(COUNT):
        rng = random.Random(f"mantis/{number}")
        one, two = rng.sample(range(PICTURES), 2)
        people = [persons(one), persons(two)]
        options: list[str] = []
        if number % 3:
            kind = "multi-choice"
            question = "<image> <image> Which image shows more persons?"
            options = ["(A) the first", "(B) the second", "(C) both show as many"]
            answer = "CAB"[0 if people[0] == people[1] else 1 if people[0] > people[1] else 2]
        else:
            kind = "short-answer"
            question = "<image> <image> How many persons do both images show together?"
            answer = str(sum(people))
        rows.append(
            {
                "id": f"drawn_{number}",
                "question_type": kind,
                "question": question,
                "images": [cell(picture(one)), cell(picture(two))],
                "options": options,
                "answer": answer,
                "data_source": "storybook",
                "category": "counting",
            }
        )
    write_parquet(root / "mantis_eval" / "test-00000-of-00001.parquet", rows)


# MIRB.


def sample_mirb(root: Path) -> None:
    """Six of the eleven sets, at least one of each group."""
    makers = {
        "count": _mirb_count,
        "visual_chain": _mirb_count,
        "attribute": _mirb_attribute,
        "analogy": _mirb_attribute,
        "sightseeing": _mirb_place,
        "food": _mirb_option,
    }
    for name, make in makers.items():
        records = []
        for number in range(FEW):
            question, answer, shown = make(random.Random(f"mirb/{name}/{number}"))
            paths = [f"images/{name}/{number}_{turn}.jpg" for turn in range(len(shown))]
            for path, image in zip(paths, shown, strict=True):
                write_image(root / path, picture(image))
            records.append({"questions": question, "answers": answer, "images": paths})
        write_json(root / f"{name}.json", records)


def _mirb_count(rng: random.Random) -> tuple[str, str | int, list[int]]:
    shown = rng.sample(range(PICTURES), 3)
    return "How many persons are in all images together?", sum(map(persons, shown)), shown


def _mirb_attribute(rng: random.Random) -> tuple[str, str | int, list[int]]:
    color, shown = rng.choice(sorted(COLORS)), rng.sample(range(PICTURES), 2)
    everywhere = all(color in _colors(scenes()[number]) for number in shown)
    question = f"Is there something {color} in both images?"
    return question, "Yes" if everywhere else "No", shown


def _colors(scene: Scene) -> set[str]:
    return {thing.color for thing in scene.things}


def _mirb_place(rng: random.Random) -> tuple[str, str | int, list[int]]:
    shown = rng.sample(range(PICTURES), 2)
    return "What is the place of the second image called?", scenes()[shown[1]].place, shown


def _mirb_option(rng: random.Random) -> tuple[str, str | int, list[int]]:
    kind, showing = rng.choice(_common_kinds())
    others = [n for n in range(PICTURES) if n not in showing]
    shown = shuffled(rng, [rng.choice(showing), *rng.sample(others, 2)])
    right = next(i for i, n in enumerate(shown) if n in showing)
    question = f"Which image shows {with_article(kind)}? A: the first, B: the second, C: the third."
    return question, LETTERS[right], shown
