"""Real sets of the CaMML comparison: photos to label by labelled photos, questions by questions.

TrashNet and Fashion-MNIST: some labels are never trained on; a few labelled photos of each stand in
the datastore. ScienceQA: text questions whose datastore is the training questions with lecture and
answer. Questions and facts have the form of :mod:`polyptych.reproduce.camml.knowledge`.
"""

from __future__ import annotations

import gzip
import io
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from polyptych.data.readers.splitting import SplitName, split_keys
from polyptych.data.records import parse_json, read_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

PHOTO_SETS = ("trashnet", "fashion_mnist")
SETS = (*PHOTO_SETS, "scienceqa")

LABELS: dict[str, tuple[str, ...]] = {
    "trashnet": ("cardboard", "glass", "metal", "paper", "plastic", "trash"),
    "fashion_mnist": (
        "shirt with short sleeves",
        "trousers",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ),
}
NEW = {
    "trashnet": ("metal", "paper"),
    "fashion_mnist": ("trousers", "dress", "sandal", "bag"),
}
"""Labels of no training question."""

SUPPORT = 20
"""Labelled photos of each label in a datastore."""

LETTERS = "ABCDE"
LECTURE = 240
"""Letters of a lecture that a shot tells."""

_ASKED = "What is this?"

Sets = dict[SplitName, tuple[list[Example], list[Example]]]
"""Split -> facts and questions."""


def read_set(name: str, source: Path, counts: Mapping[SplitName, int], seed: int) -> Sets:
    """Facts and questions of one set in all splits.

    Args:
        name: One of :data:`SETS`.
        source: Folder with the set's folder.
        counts: Most questions of each split.
        seed: Decides what becomes a fact and what is asked.

    Raises:
        PolyptychError: If a file of the set is missing or bad.
    """
    if name == "scienceqa":
        return _scienceqa(source / name / "problems_subset.json", counts, seed)
    photos = _trashnet(source / name) if name == "trashnet" else _fashion(source / name)
    return _few_shot(name, photos, counts, seed)


# --- Photos ---------------------------------------------------------------------------------------

Photos = dict[SplitName, dict[str, list[ImageRef]]]
"""Split -> label -> photos."""


def _trashnet(folder: Path) -> Photos:
    """Photos with neighboring numbers may show one object: ten of them stay in one split."""
    photos: Photos = {name: defaultdict(list) for name in ("train", "validation", "test")}
    seen: dict[str, int] = defaultdict(int)
    items = [parse_json(line, where) for where, line in read_lines(folder / "labels.jsonl")]
    blocks = []
    for item in items:
        blocks.append(f"{item['label']}:{seen[item['label']] // 10}")
        seen[item["label"]] += 1
    shares: Mapping[SplitName, float] = {"train": 0.6, "validation": 0.1, "test": 0.3}
    splits = split_keys(set(blocks), shares, 0)
    for item, block in zip(items, blocks, strict=True):
        photos[splits[block]][item["label"]].append(ImageRef(path=str(folder / item["file"])))
    return photos


def _fashion(folder: Path) -> Photos:
    """The first four fifths of the training file are ``train``, the rest ``validation``."""
    photos: Photos = {name: defaultdict(list) for name in ("train", "validation", "test")}
    for file in ("train", "test"):
        pixels = _idx(folder / f"{file}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = _idx(folder / f"{file}-labels-idx1-ubyte.gz", 8)
        for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            split: SplitName = "test" if file == "test" else "train"
            if file == "train" and number >= 0.8 * len(labels):
                split = "validation"
            name = LABELS["fashion_mnist"][label]
            if len(photos[split][name]) < 400:
                photos[split][name].append(_png(picture))
    return photos


def _idx(path: Path, header: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise PolyptychError(f"{path}: no readable IDX file: {error}") from error
    return np.frombuffer(data, np.uint8, offset=header)


def _png(picture: np.ndarray) -> ImageRef:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


def _few_shot(name: str, photos: Photos, counts: Mapping[SplitName, int], seed: int) -> Sets:
    """Of each split: some photos of each label as facts, others as questions.

    Facts of validation and test are of training photos, so that no question's object is among them.
    """
    rng = random.Random(f"{name}/{seed}")
    trained = [label for label in LABELS[name] if label not in NEW[name]]
    facts: list[Example] = []
    left: dict[str, list[ImageRef]] = {}
    for label in LABELS[name]:
        mixed = rng.sample(photos["train"][label], len(photos["train"][label]))
        facts += [
            _photo(name, f"fact-{label}-{n}", label, r) for n, r in enumerate(mixed[:SUPPORT])
        ]
        left[label] = mixed[SUPPORT:]
    sets: Sets = {}
    for split in ("train", "validation", "test"):
        asked = trained if split != "test" else LABELS[name]
        pool = left if split == "train" else photos[split]
        refs = [(label, ref) for label in asked for ref in pool[label]]
        refs = rng.sample(refs, min(counts[split], len(refs)))
        known = facts if split == "test" else [f for f in facts if f.metadata["answer"] in trained]
        questions = [
            _photo(name, f"{split}-{n}", label, ref) for n, (label, ref) in enumerate(refs)
        ]
        sets[split] = (known, questions)
    return sets


def _photo(name: str, identity: str, label: str, ref: ImageRef) -> Example:
    truth = {
        "fact_id": f"{name}/{label}",
        "entity": label,
        "attribute": name,
        "answer": label,
        "new": label in NEW[name],
    }
    messages = (
        Message("user", (ImageBlock(), TextBlock(f" {_ASKED}"))),
        Message("assistant", (TextBlock(f"{label}."),)),
    )
    return Example(f"{name}-{identity}", messages, (ref,), (f"{label}.",), metadata=truth)


# --- ScienceQA ------------------------------------------------------------------------------------


def _scienceqa(path: Path, counts: Mapping[SplitName, int], seed: int) -> Sets:
    """Text questions; the facts of every split are the training questions.

    A training question has its fact's id, so that retrieval leaves its own answer out.
    """
    problems = read_json(path)
    texts = {key: each for key, each in problems.items() if each["image"] is None}
    facts = [_told(k, p) for k, p in texts.items() if p["split"] == "train"]
    sets: Sets = {}
    for split, own in (("train", "train"), ("validation", "val"), ("test", "test")):
        name: SplitName = split  # type: ignore[assignment]
        questions = [_asked(k, p) for k, p in texts.items() if p["split"] == own]
        rng = random.Random(f"scienceqa/{seed}/{split}")
        sets[name] = (facts, rng.sample(questions, min(counts[name], len(questions))))
    return sets


def _question(problem: Mapping[str, object]) -> str:
    choices = problem["choices"]
    assert isinstance(choices, list)
    options = " ".join(f"({LETTERS[n]}) {choice}" for n, choice in enumerate(choices))
    context = f" {problem['hint']}" if problem["hint"] else ""
    return f"{problem['question']}{context} Options: {options}"


def _truth(problem: Mapping[str, object]) -> dict[str, object]:
    skill = str(problem["skill"])
    answer = LETTERS[int(str(problem["answer"]))]
    return {
        "fact_id": f"skill/{skill}",
        "entity": skill,
        "attribute": "scienceqa",
        "answer": answer,
        "new": False,
    }


def _asked(key: str, problem: Mapping[str, object]) -> Example:
    truth = _truth(problem)
    messages = (
        Message("user", (TextBlock(_question(problem)),)),
        Message("assistant", (TextBlock(f"{truth['answer']}."),)),
    )
    return Example(
        f"scienceqa-{key}", messages, references=(f"{truth['answer']}.",), metadata=truth
    )


def _told(key: str, problem: Mapping[str, object]) -> Example:
    """The question with its answer in letter and words, and the beginning of its lecture."""
    truth = _truth(problem)
    choices = problem["choices"]
    assert isinstance(choices, list)
    said = choices[int(str(problem["answer"]))]
    lecture = " ".join(str(problem["lecture"]).split())[:LECTURE]
    messages = (
        Message("user", (TextBlock(_question(problem)),)),
        Message("assistant", (TextBlock(f"{truth['answer']}. {said}. {lecture}".strip()),)),
    )
    return Example(f"scienceqa-{key}", messages, metadata=truth)


def set_correct(text: str, truth: Mapping[str, object]) -> bool:
    """Whether an answer is the label, or begins with the letter."""
    said, answer = text.strip().rstrip("."), str(truth["answer"])
    if truth["attribute"] == "scienceqa":
        return said[:1].upper() == answer and not said[1:2].isalpha()
    return said.lower() == answer


def base_questions(asked: Mapping[str, Sequence[Example]]) -> Iterator[Example]:
    """Questions of all sets without shots, as the base learns them."""
    for name, questions in asked.items():
        for question in questions:
            if not question.metadata["new"]:
                truth = {"sort": name, "answer": question.metadata["answer"]}
                yield replace(question, metadata=truth)
