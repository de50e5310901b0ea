"""CHAIR (Rohrbach et al. 2018): which objects of a caption are not in the image?

Objects are found by a synonym list, one line per object with its name first. Public functions:

- :func:`read_synonyms`, :func:`storybook_words`: the list, as :class:`ObjectWords`.
- :class:`ObjectFinder`: a caption to its tokens and :class:`Mention` of objects, in one flavor.
- :meth:`ObjectFinder.truth`: the objects of an image, from its categories and human captions.
- :func:`chair`: a caption and the truth to :class:`CaptionChair` (CHAIR_i, CHAIR_s, recall).
- :func:`overall`: many of them to the four numbers of a set.
- :func:`chair_scorer`: the same as a scorer of a task.

Flavors:

- ``reference``: the metric's own script with the recall that is often added to it. Every mention of
  a hallucinated object counts.
- ``released``: the script that SIMA ships. It has another lemmatizer, counts a hallucinated *word*
  once per caption, and leaves empty answers out.
- ``fixed``: ``reference`` with what both miss: plurals ("men", "vases", "ties"), "bus", names of
  three words, entries with stray blanks or capitals; indices are those of the tokens.

CHAIR_i is hallucinated mentions / mentions, CHAIR_s the share of captions with any, recall found
objects / true objects over all captions, coverage the mean of each caption's own recall.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from polyptych.data.records import read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.scoring.nouns import READINGS, Reading, singular_of, tokens
from polyptych.schema import Example, Prediction
from polyptych.storybook.vocabulary import KINDS

Flavor = Reading
FLAVORS: tuple[Flavor, ...] = READINGS

# Names of two words that are one object, or are none but would look like one ("train track").
_PAIRS = (
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "laptop computer",
    "home plate",
    "train track",
)
# "baby" and "passenger" alone are persons.
_YOUNG = (
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("animal", "cub"),
)
COCO_DOUBLE_WORDS: dict[str, str] = {
    **{pair: pair for pair in _PAIRS},
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _YOUNG},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",
}
"""Two words to what they are read as, for the public list of COCO's 80 objects.

The pairs are part of the metric's definition (github.com/LisaAnne/Hallucination, BSD-2-Clause).
"""


@dataclass(frozen=True, slots=True)
class ObjectWords:
    """The objects that can be found, and the words for them."""

    synonyms: tuple[tuple[str, ...], ...]
    """Per object: its name, then other words for it, as they stand in the list."""
    double_words: Mapping[str, str] = field(default_factory=lambda: COCO_DOUBLE_WORDS)
    """Two words to what they are read as."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' names."""
        return tuple(words[0] for words in self.synonyms)


def read_synonyms(path: str | Path) -> ObjectWords:
    """Read a synonym list: one object per line, words separated by a comma and a blank.

    Raises:
        PolyptychError: For an empty line or file.
    """
    rows = []
    for where, line in read_lines(path):
        try:
            words = tuple(line.decode().strip().split(", "))
        except UnicodeDecodeError as error:
            raise PolyptychError(f"{where}: not UTF-8 text: {error}") from error
        if not words[0]:
            raise PolyptychError(f"{where}: empty, expected an object and its synonyms")
        rows.append(words)
    if not rows:
        raise PolyptychError(f"{path}: no objects in it")
    return ObjectWords(tuple(rows))


def storybook_words() -> ObjectWords:
    """The kinds of Storybook's things, with no synonyms: its sentences have none."""
    return ObjectWords(tuple((name,) for name in KINDS), {})


@dataclass(frozen=True, slots=True)
class Mention:
    """One object in a caption."""

    word: str
    """The word that was found, in its singular."""
    name: str
    """The object's name."""
    index: int
    """Of the token; see the flavors for what ``reference`` and ``released`` make of it."""


@dataclass(frozen=True, slots=True)
class CaptionChair:
    """One caption against the objects of its image."""

    words: tuple[str, ...]
    """Singulars of its tokens, double words as one."""
    mentions: tuple[Mention, ...]
    hallucinated: tuple[Mention, ...]
    truth: frozenset[str]

    @property
    def chair_i(self) -> float:
        """Share of hallucinated mentions; 0 without any mention."""
        return len(self.hallucinated) / len(self.mentions) if self.mentions else 0.0

    @property
    def chair_s(self) -> int:
        """1 if anything is hallucinated."""
        return int(bool(self.hallucinated))

    @property
    def found(self) -> frozenset[str]:
        """True objects that are mentioned."""
        return self.truth.intersection(mention.name for mention in self.mentions)

    @property
    def recall(self) -> float:
        """Share of the true objects that are mentioned; 0 where there is none."""
        return len(self.found) / len(self.truth) if self.truth else 0.0


class ObjectFinder:
    """Finds a list's objects in captions.

    Args:
        words: The list.
        flavor: See the head of this module.
    """

    def __init__(self, words: ObjectWords, flavor: Flavor) -> None:
        self.flavor = flavor
        self._singular = singular_of(flavor)
        self._names = _name_of_each_word(words, flavor)
        self._merged = dict(words.double_words)
        if flavor == "fixed":
            several = {word: word for word in self._names if " " in word}
            self._merged = {**several, **self._merged}
        self._longest: dict[str, int] = {}  # by first word
        for name in self._merged:
            first, length = name.split(" ")[0], name.count(" ") + 1
            self._longest[first] = max(length, self._longest.get(first, 1))

    def find(self, caption: str) -> tuple[tuple[str, ...], tuple[Mention, ...]]:
        """The caption's words, and the mentions of objects among them.

        Example:
            >>> finder = ObjectFinder(ObjectWords((("person", "man"), ("wine glass",))), "fixed")
            >>> [m.name for m in finder.find("Two men with wine glasses.")[1]]
            ['person', 'wine glass']
        """
        singulars = [self._singular(token) for token in tokens(caption)]
        words, indices = self._merge(singulars)
        kept = list(zip(words, indices, strict=True))
        if "toilet" in words:  # "the seat of the toilet" is no chair
            seatless = [pair for pair in kept if pair[0] != "seat"]
            if self.flavor != "fixed":  # their words move up, their indices stay
                seatless = [(word, indices[row]) for row, (word, _) in enumerate(seatless)]
            kept = seatless
        names = self._names
        mentions = tuple(Mention(w, names[w], index) for w, index in kept if w in names)
        return tuple(words), mentions

    def truth(self, categories: Iterable[str], captions: Iterable[str] = ()) -> frozenset[str]:
        """Objects of an image: its annotated categories and what human captions mention.

        Args:
            categories: Words of the list.
            captions: Written by humans.

        Raises:
            PolyptychError: For a category that the list does not have.
        """
        found: set[str] = set()
        for category in categories:
            if category not in self._names:
                raise PolyptychError(f"category {category!r} is no word of the synonym list")
            found.add(self._names[category])
        for caption in captions:
            found.update(mention.name for mention in self.find(caption)[1])
        return frozenset(found)

    def _merge(self, singulars: Sequence[str]) -> tuple[list[str], list[int]]:
        """Words with neighbors made one, left to right, and the index of each one's first token."""
        words, indices, place = [], [], 0
        while place < len(singulars):
            word, length = singulars[place], self._longest.get(singulars[place], 1)
            while length > 1:
                merged = self._merged.get(" ".join(singulars[place : place + length]))
                if merged is not None:
                    word = merged
                    break
                length -= 1
            words.append(word)
            indices.append(place)
            place += length
        return words, indices


def _name_of_each_word(words: ObjectWords, flavor: Flavor) -> dict[str, str]:
    """Each word to its object; a word of two objects belongs to the later one."""
    if flavor != "fixed":
        return {word: row[0] for row in words.synonyms for word in row}
    singular = singular_of(flavor)
    found = {word.strip().lower(): row[0] for row in words.synonyms for word in row}
    # The list has plurals, too ("skis", "scissors"), and captions are compared in the singular.
    for word, name in list(found.items()):
        found.setdefault(" ".join(singular(part) for part in word.split()), name)
    return found


def chair(finder: ObjectFinder, caption: str, truth: frozenset[str]) -> CaptionChair:
    """Judge one caption.

    Args:
        finder: Has the flavor.
        caption: What a model wrote.
        truth: Names of the image's objects, as :meth:`ObjectFinder.truth` makes them.
    """
    words, mentions = finder.find(caption)
    wrong = [mention for mention in mentions if mention.name not in truth]
    if finder.flavor == "released":
        first = {mention.word: mention for mention in reversed(wrong)}
        wrong = sorted(first.values(), key=lambda mention: mention.index)
    return CaptionChair(words, mentions, tuple(wrong), truth)


def overall(captions: Sequence[CaptionChair]) -> dict[str, float]:
    """``chair_i``, ``chair_s``, ``recall``, ``coverage`` of a set: fractions, NaN for 0 / 0."""
    names, rows = _rows(captions)
    sums = rows.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))


def _rows(captions: Sequence[CaptionChair]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the four numbers and their (n, 4, 2) numerators and denominators."""
    rows = [
        (
            (len(caption.hallucinated), len(caption.mentions)),
            (caption.chair_s, 1),
            (len(caption.found), len(caption.truth)),
            (caption.recall, bool(caption.truth)),
        )
        for caption in captions
    ]
    statistics = np.asarray(rows, dtype=np.float64).reshape(-1, 4, 2)
    return ("chair_i", "chair_s", "recall", "coverage"), statistics


def chair_scorer(words: ObjectWords, flavor: Flavor) -> Scorer:
    """The four numbers as ``chair_i[FLAVOR]`` and so on, and ``length[FLAVOR]`` in words.

    The truth of an example is in its metadata as ``objects`` (words of the list), together with
    what its references, human captions, mention.

    Args:
        words: The list of objects.
        flavor: See the head of this module.
    """
    finder = ObjectFinder(words, flavor)

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        judged, ids = [], []
        for example, prediction in zip(examples, predictions, strict=True):
            if flavor == "released" and not prediction.text:
                continue
            truth = finder.truth(objects_of(example), example.references)
            judged.append(chair(finder, prediction.text, truth))
            ids.append(example.id)
        names, rows = _rows(judged)
        measured = [
            Measurement(f"{name}[{flavor}]", tuple(ids), rows[:, place])
            for place, name in enumerate(names)
        ]
        lengths = [len(p.text.split()) for p in predictions]
        return [*measured, mean_of(f"length[{flavor}]", [e.id for e in examples], lengths)]

    return score


def objects_of(example: Example) -> Sequence[str]:
    """The annotated objects of an example's image.

    Raises:
        PolyptychError: If its metadata have no list of them.
    """
    objects = example.metadata.get("objects")
    if not isinstance(objects, list | tuple) or not all(isinstance(o, str) for o in objects):
        raise PolyptychError(f"example {example.id!r}: no list 'objects' in its metadata")
    return objects
