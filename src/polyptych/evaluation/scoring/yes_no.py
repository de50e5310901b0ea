"""Yes or no: POPE's precision, recall, F1 and yes ratio, and MME's accuracy and accuracy+.

Two flavors of POPE:

- ``reference``: the benchmark's own script, which LLaVA and CaMML ship. "no" if the text before the
  first period has one of the words No, not, no; everything else means yes, also "" and "NO".
- ``strict``: the first word must be yes or no. Any other answer is neither: it is wrong, and where
  the truth is yes a missed one.

MME's ``official`` calculation reads the first four characters; an answer without yes or no in them
is wrong. Its score of one sub-task is 100 * accuracy + 100 * accuracy+, where accuracy+ is the
share of images with both questions right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.scoring.groups import numbered
from polyptych.evaluation.statistics import Array, ratio
from polyptych.schema import Example, Prediction

YesNo = Literal["yes", "no"]
Flavor = Literal["reference", "strict"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_FIRST_JUDGEMENT = re.compile(r"\W*(?:(yes|true|correct)|no|false|incorrect)\b", re.IGNORECASE)


def read_reference(answer: str) -> YesNo:
    """POPE's own reading; see the head of this module."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"}.intersection(words) else "yes"


def read_first_word(answer: str) -> YesNo | None:
    """Yes or no if the answer starts with it, in any case."""
    found = _FIRST_WORD.match(answer)
    return _as_yes_no(found.group(1)) if found else None


def read_judgement(answer: str) -> YesNo | None:
    """Yes for an answer that starts with yes, true or correct, no for one with their opposites."""
    found = _FIRST_JUDGEMENT.match(answer)
    return None if found is None else "yes" if found.group(1) else "no"


def read_mme(answer: str) -> YesNo | None:
    """MME's own reading: the whole answer, or else yes before no in its first four characters."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


READERS: dict[Flavor, Callable[[str], YesNo | None]] = {
    "reference": read_reference,
    "strict": read_first_word,
}


def confusion(said: YesNo | None, truth: YesNo) -> tuple[int, int, int, int]:
    """One item's (TP, FP, TN, FN) with yes as positive.

    No reading of an answer is the opposite of the truth: FN where yes was right, and FP where no
    was, so that the four always add up to one.
    """
    if truth == "yes":
        return (1, 0, 0, 0) if said == "yes" else (0, 0, 0, 1)
    return (0, 0, 1, 0) if said == "no" else (0, 1, 0, 0)


def precision(counts: Array) -> Array:
    """(..., 4) counts TP, FP, TN, FN to TP / (TP + FP); NaN if nothing was called positive."""
    return ratio(np.stack([counts[..., 0], counts[..., 0] + counts[..., 1]], axis=-1))


def recall(counts: Array) -> Array:
    """(..., 4) counts to TP / (TP + FN); NaN if nothing is positive."""
    return ratio(np.stack([counts[..., 0], counts[..., 0] + counts[..., 3]], axis=-1))


def f1(counts: Array) -> Array:
    """(..., 4) counts to 2 TP / (2 TP + FP + FN); 0 without a true positive, NaN without any."""
    twice = 2 * counts[..., 0]
    return ratio(np.stack([twice, twice + counts[..., 1] + counts[..., 3]], axis=-1))


def pope_scorer(flavor: Flavor) -> Scorer:
    """POPE's numbers over all questions, and ``mean_f1``, the mean of F1 over its categories.

    An example has the truth as its reference and its ``category`` in the metadata.
    """
    read = READERS[flavor]

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = tuple(example.id for example in examples)
        said = [read(prediction.text) for prediction in predictions]
        truths = [truth_of(example) for example in examples]
        rows = [confusion(word, truth) for word, truth in zip(said, truths, strict=True)]
        counts = np.asarray(rows, dtype=np.float64).reshape(-1, 4)
        right = [word == truth for word, truth in zip(said, truths, strict=True)]
        return [
            mean_of(f"accuracy[{flavor}]", ids, right),
            Measurement(f"precision[{flavor}]", ids, counts, precision, per_item=False),
            Measurement(f"recall[{flavor}]", ids, counts, recall, per_item=False),
            Measurement(f"f1[{flavor}]", ids, counts, f1, per_item=False),
            _mean_f1(f"mean_f1[{flavor}]", examples, counts),
            mean_of(f"yes_ratio[{flavor}]", ids, [word == "yes" for word in said]),
        ]

    return score


def _mean_f1(name: str, examples: Sequence[Example], counts: Array) -> Measurement:
    """One block of four columns per category, so that resampling keeps categories apart."""
    places = numbered(str(example.metadata.get("category", "")) for example in examples)
    categories = len(set(places))
    columns = np.zeros((len(examples), categories, 4))
    columns[np.arange(len(examples)), places] = counts

    def aggregate(sums: Array) -> Array:
        return np.asarray(f1(sums.reshape(*sums.shape[:-1], categories, 4)).mean(axis=-1))

    ids = tuple(example.id for example in examples)
    return Measurement(name, ids, columns.reshape(len(ids), -1), aggregate, per_item=False)


def statement_scorer() -> Scorer:
    """NLVR2's ``accuracy[fixed]`` and ``consistency[fixed]``, and the share of answers unread.

    Consistency is the share of sentences that are judged rightly with every pair of pictures that
    they stand beside. An example has the truth as its reference and its ``sentence`` in the
    metadata; answers are read by :func:`read_judgement`.
    """

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        ids = [example.id for example in examples]
        said = [read_judgement(prediction.text) for prediction in predictions]
        right = [w == truth_of(example) for w, example in zip(said, examples, strict=True)]
        sentences: dict[str, bool] = {}
        for example, value in zip(examples, right, strict=True):
            sentence = str(example.metadata["sentence"])
            sentences[sentence] = sentences.get(sentence, True) and value
        return [
            mean_of("accuracy[fixed]", ids, right),
            mean_of("consistency[fixed]", list(sentences), list(sentences.values())),
            mean_of("unreadable[fixed]", ids, [word is None for word in said]),
        ]

    return score


def mme_scorer(parts: Mapping[str, Sequence[str]]) -> Scorer:
    """MME's scores; both questions of an image are drawn together for the intervals.

    Args:
        parts: Names of scores (``perception``) and the sub-tasks whose scores each adds up. A part
            without any example is left out.

    An example has the truth as its reference, the sub-task as ``category`` and the image as
    ``pair`` in its metadata.
    """

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        right = {
            example.id: read_mme(prediction.text) == truth_of(example)
            for example, prediction in zip(examples, predictions, strict=True)
        }
        pairs: dict[tuple[str, str], list[bool]] = {}
        for example in examples:
            key = (str(example.metadata["category"]), str(example.metadata["pair"]))
            pairs.setdefault(key, []).append(right[example.id])
        for (category, pair), answers in pairs.items():
            if len(answers) != 2:
                raise PolyptychError(
                    f"MME image {pair!r} of {category!r} has {len(answers)} question(s), not 2"
                )
        measured = [_mme_sum(name, names, pairs) for name, names in parts.items()]
        accuracy = mean_of("accuracy[official]", list(right), list(right.values()))
        return [item for item in measured if item is not None] + [accuracy]

    return score


def _mme_sum(
    name: str, categories: Sequence[str], pairs: Mapping[tuple[str, str], Sequence[bool]]
) -> Measurement | None:
    """Rows per image; columns (right answers / 2 + both right, 1) per sub-task that has images."""
    chosen = {key: answers for key, answers in pairs.items() if key[0] in categories}
    if not chosen:
        return None
    places = numbered(category for category, _ in chosen)
    columns = np.zeros((len(chosen), len(set(places)), 2))
    for row, (place, answers) in enumerate(zip(places, chosen.values(), strict=True)):
        columns[row, place] = sum(answers) / 2 + all(answers), 1

    def aggregate(sums: Array) -> Array:
        per_category = ratio(sums.reshape(*sums.shape[:-1], -1, 2))
        return np.asarray(100 * per_category.sum(axis=-1))

    ids = tuple(f"{category}/{pair}" for category, pair in chosen)
    rows = columns.reshape(len(ids), -1)
    return Measurement(f"{name}[official]", ids, rows, aggregate, per_item=False)


def truth_of(example: Example) -> YesNo:
    """The example's only reference as yes or no.

    Raises:
        PolyptychError: If it is neither.
    """
    truth = _as_yes_no(example.references[0]) if len(example.references) == 1 else None
    if truth is None:
        raise PolyptychError(
            f"question {example.id!r}: the truth must be yes or no, got {example.references!r}"
        )
    return truth


def _as_yes_no(text: str) -> YesNo | None:
    word = text.strip().lower()
    return "yes" if word == "yes" else "no" if word == "no" else None
