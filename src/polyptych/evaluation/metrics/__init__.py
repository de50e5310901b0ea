"""Scores of generated text against references, each named with its flavor.

A metric's name alone does not fix its value: CIDEr of the same captions differs by a quarter with
and without tokenization. So every result carries a flavor: ``[coco]`` is the COCO caption
evaluation (PTB tokens, then its scorers), ``[sam]`` the scoring script of SAM (its own
normalization), ``[rouge]`` the PyPI package ``rouge`` on the text as it is. A plain name means
``[coco]``; ``bleu`` alone means BLEU-1 to BLEU-4.

Definitions stand in the heads of ``bleu``, ``cider`` and ``rouge_l``. Values are fractions as the
papers define them, never percentages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyptych.errors import PolyptychError
from polyptych.evaluation.metrics.bleu import bleu
from polyptych.evaluation.metrics.cider import cider
from polyptych.evaluation.metrics.ngrams import MAX_ORDER, Corpus
from polyptych.evaluation.metrics.ptb_tokenizer import ptb_tokenize
from polyptych.evaluation.metrics.rouge_l import rouge_l_coco, rouge_l_package, split_sentences
from polyptych.evaluation.metrics.sam_normalization import sam_normalize
from polyptych.schema import Score

__all__ = ["METRICS", "Metric", "compute", "prepare", "resolve"]


@dataclass(frozen=True)
class Metric:
    """How a text is split, what gives corpus value and items' values, what is done to it before."""

    split: Callable[[str], list[Any]]
    score: Callable[[Corpus], tuple[float, NDArray[np.float64]]]
    normalize: Callable[[str], str] | None = None


METRICS: dict[str, Metric] = {
    "cider[coco]": Metric(ptb_tokenize, cider),
    **{
        f"bleu_{n}[coco]": Metric(ptb_tokenize, partial(bleu, order=n))
        for n in range(1, MAX_ORDER + 1)
    },
    "rouge_l[coco]": Metric(ptb_tokenize, rouge_l_coco),
    "rouge_l[rouge]": Metric(split_sentences, rouge_l_package),
    "cider[sam]": Metric(str.split, cider, sam_normalize),
    "bleu_4[sam]": Metric(str.split, partial(bleu, order=4), sam_normalize),
    "rouge_l[sam]": Metric(split_sentences, rouge_l_package, sam_normalize),
}
"""Every metric by its full name."""

_DEFAULT_FLAVOR = "[coco]"


def resolve(name: str) -> list[str]:
    """Full names behind a name that a user gives.

    Raises:
        PolyptychError: No such metric.

    Example:
        >>> resolve("cider"), resolve("rouge_l[sam]")
        (['cider[coco]'], ['rouge_l[sam]'])
    """
    if name == "bleu":
        return [f"bleu_{n}{_DEFAULT_FLAVOR}" for n in range(1, MAX_ORDER + 1)]
    full = name if "[" in name else name + _DEFAULT_FLAVOR
    if full not in METRICS:
        raise PolyptychError(f"unknown metric {name!r}; known are bleu, {', '.join(METRICS)}")
    return [full]


def compute(
    names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    ids: Sequence[str] | None = None,
) -> list[Score]:
    """Score predictions against references.

    Args:
        names: Metrics, as ``resolve`` understands them.
        predictions: One text per item; may be empty.
        references: One or more texts per item, none of them empty.
        ids: The items' ids, by which the per-item values are kept; default "0", "1", ...

    Returns:
        One score per full name, in the order asked for, each with a value per item.

    Raises:
        PolyptychError: Unknown metric, no items, different numbers of items, an id that occurs
            twice, no or empty references.
    """
    ids = [str(number) for number in range(len(predictions))] if ids is None else ids
    scores = []
    for name, corpus in prepare(names, predictions, references, ids).items():
        value, per_item = METRICS[name].score(corpus)
        per_id = dict(zip(ids, per_item.tolist(), strict=True))
        scores.append(Score(name=name, value=value, count=len(ids), per_item=per_id))
    return scores


def prepare(
    names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    ids: Sequence[str],
) -> dict[str, Corpus]:
    """Full name of every metric to its texts; a flavor's texts and n-gram counts are shared.

    Raises:
        PolyptychError: As :func:`compute`.
    """
    full_names = [full for name in names for full in resolve(name)]
    _check(ids, predictions, references)
    normalized: dict[object, tuple[Sequence[str], Sequence[Sequence[str]]]] = {
        None: (predictions, references)
    }
    corpora: dict[object, Corpus] = {}
    for metric in (METRICS[name] for name in full_names):
        if metric.normalize is not None and metric.normalize not in normalized:
            normalized[metric.normalize] = (
                [metric.normalize(text) for text in predictions],
                [[metric.normalize(text) for text in texts] for texts in references],
            )
        if (metric.normalize, metric.split) not in corpora:
            candidates, truths = normalized[metric.normalize]
            corpora[metric.normalize, metric.split] = Corpus(
                [metric.split(text) for text in candidates],
                [[metric.split(text) for text in texts] for texts in truths],
            )
    return {name: corpora[METRICS[name].normalize, METRICS[name].split] for name in full_names}


def _check(
    ids: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> None:
    if not len(ids) == len(predictions) == len(references):
        raise PolyptychError(
            f"{len(predictions)} predictions for {len(references)} items with references"
            f" and {len(ids)} ids"
        )
    if not ids:
        raise PolyptychError("there are no predictions to score")
    if len(set(ids)) != len(ids):
        item, times = Counter(ids).most_common(1)[0]
        raise PolyptychError(f"id {item!r} occurs {times} times among {len(ids)} items")
    for item, texts in zip(ids, references, strict=True):
        if not texts:
            raise PolyptychError(f"item {item!r} has 0 references, at least 1 is needed")
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise PolyptychError(f"item {item!r}: reference {number} of {len(texts)} is empty")
