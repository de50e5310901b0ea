"""AMBER on its own files (Wang et al. 2023): objects of descriptions, and questions of yes or no.

Descriptions, flavor ``words``: every noun of a description that is a word of the benchmark's table
is a mention. It covers the true object that it names or stands beside in the table; else it is
invented, unless it is one of the safe words. With sums over all descriptions,

    chair = invented / mentions    cover = covered / true objects
    hal = share of descriptions with anything invented
    cog = imagined objects mentioned / objects that annotators expect to be imagined

The benchmark's script (``inference.py``) counts in the same way, but lets a noun also stand for
whatever is near it by spaCy's word vectors, and takes nouns with a tagger. Here words are compared
as they are, in lower case and the singular: more counts as invented and less as covered, and
numbers are not those of papers.

Questions: No is what is looked for, so that precision and recall are those of the answer No.
``official`` reads "Yes" and "No" exactly, as the script does; ``fixed`` takes any answer that
starts with one of them. The script's F1 adds 0.0001 to its denominator; ours does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.scoring.groups import by_group
from polyptych.evaluation.scoring.nouns import singular_of, tokens
from polyptych.evaluation.scoring.yes_no import (
    YesNo,
    f1,
    precision,
    read_first_word,
    recall,
    truth_of,
)
from polyptych.schema import Example, Prediction

WORDS = "words"

QuestionFlavor = Literal["official", "fixed"]
QUESTION_FLAVORS: tuple[QuestionFlavor, ...] = get_args(QuestionFlavor)

_SELDOM_NOUNS = frozenset({"can", "hot", "leave"})  # objects of the table behind an article only
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, slots=True)
class AmberWords:
    """What is looked for in descriptions."""

    associated: Mapping[str, Sequence[str]]
    """Object to what may be said of it, such as "tree" of a forest."""
    safe: AbstractSet[str] = frozenset()
    """Words that are never counted as invented."""

    @property
    def known(self) -> frozenset[str]:
        """Objects and what may be said of them."""
        return frozenset(self.associated).union(*self.associated.values())


class Told(NamedTuple):
    """Counts of one description."""

    invented: int
    mentions: int
    covered: int
    objects: int
    imagined: int
    likely: int


def mentions(text: str, known: AbstractSet[str]) -> Iterator[str]:
    """Every word of a text that is known, or whose singular is.

    Example:
        >>> list(mentions("Two dogs can see the can.", {"dog", "can"}))
        ['dog', 'can']
    """
    singular, before = singular_of("fixed"), ""
    for token in tokens(text):
        word = token if token in known else singular(token)
        if word in known and (token not in _SELDOM_NOUNS or before in _ARTICLES):
            yield word
        before = token


def told(
    said: Sequence[str], objects: Sequence[str], likely: Sequence[str], words: AmberWords
) -> Told:
    """Count what one description tells.

    Args:
        said: Its mentions.
        objects: Those of the image; of two with the same name the first is covered.
        likely: Objects that annotators expect to be imagined there.
        words: The benchmark's table.
    """
    true, imagined = _places(objects, words), _places(likely, words)
    counted = [word for word in said if word not in words.safe]
    invented = [word for word in counted if word not in true]
    return Told(
        invented=len(invented),
        mentions=len(said),
        covered=len({true[word] for word in counted if word in true}),
        objects=len(objects),
        imagined=len({imagined[word] for word in invented if word in imagined}),
        likely=len(likely),
    )


def _places(objects: Sequence[str], words: AmberWords) -> dict[str, int]:
    """What is said to the object it stands for; the first, and associations before names."""
    places: dict[str, int] = {}
    for place, name in enumerate(objects):
        for word in words.associated[name]:
            places.setdefault(word, place)
    for place, name in enumerate(objects):
        places.setdefault(name, place)
    return places


def description_scorer(words: AmberWords) -> Scorer:
    """``chair[words]``, ``cover[words]``, ``hal[words]`` and ``cog[words]`` of the descriptions.

    They have ``objects`` and ``likely`` in their metadata; other examples are passed over.
    """
    known = words.known

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids, counts = [], []
        for example, prediction in zip(examples, predictions, strict=True):
            if "objects" in example.metadata:
                data, said = example.metadata, list(mentions(prediction.text, known))
                ids.append(example.id)
                counts.append(told(said, data["objects"], data["likely"], words))
        if not ids:
            return []
        rows = np.asarray(counts, dtype=np.float64)
        return [
            Measurement(f"chair[{WORDS}]", tuple(ids), rows[:, 0:2]),
            Measurement(f"cover[{WORDS}]", tuple(ids), rows[:, 2:4]),
            mean_of(f"hal[{WORDS}]", ids, rows[:, 0] > 0),
            Measurement(f"cog[{WORDS}]", tuple(ids), rows[:, 4:6]),
        ]

    return score


_EXACT: Mapping[str, YesNo] = {"Yes": "yes", "No": "no"}
_READERS: dict[QuestionFlavor, Callable[[str], YesNo | None]] = {
    "official": _EXACT.get,
    "fixed": read_first_word,
}


def question_scorer(flavor: QuestionFlavor) -> Scorer:
    """Accuracy, precision, recall and F1 of the questions, and accuracy and F1 by ``kind``.

    They have a yes or a no as reference and ``kind`` in their metadata; examples with ``objects``
    are passed over. Where every truth of a kind is No, its recall is its accuracy.
    """
    read = _READERS[flavor]

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        asked = [
            (example, read(prediction.text))
            for example, prediction in zip(examples, predictions, strict=True)
            if "objects" not in example.metadata
        ]
        if not asked:
            return []
        ids = tuple(example.id for example, _ in asked)
        kinds = [str(example.metadata["kind"]) for example, _ in asked]
        right = [said == truth_of(example) for example, said in asked]
        counts = np.asarray([_no_counts(s, truth_of(e)) for e, s in asked], dtype=np.float64)
        measured = [
            mean_of(f"accuracy[{flavor}]", ids, right),
            Measurement(f"precision[{flavor}]", ids, counts, precision, per_item=False),
            Measurement(f"recall[{flavor}]", ids, counts, recall, per_item=False),
            Measurement(f"f1[{flavor}]", ids, counts, f1, per_item=False),
            *by_group("accuracy", flavor, ids, right, kinds),
        ]
        for kind in dict.fromkeys(kinds):
            places = [place for place, own in enumerate(kinds) if own == kind]
            own_ids = tuple(ids[place] for place in places)
            name = f"f1.{kind}[{flavor}]"
            measured.append(Measurement(name, own_ids, counts[places], f1, per_item=False))
        return measured

    return score


def _no_counts(said: YesNo | None, truth: YesNo) -> tuple[int, int, int, int]:
    """One item's (TP, FP, TN, FN) with no as positive; an answer that is neither says no No."""
    if truth == "no":
        return (1, 0, 0, 0) if said == "no" else (0, 0, 0, 1)
    return (0, 1, 0, 0) if said == "no" else (0, 0, 1, 0)
