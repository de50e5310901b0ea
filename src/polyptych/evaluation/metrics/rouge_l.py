"""ROUGE-L, Lin 2004 ("ROUGE: A Package for Automatic Evaluation of Summaries"), in two flavors.

``rouge_l[coco]``, the COCO caption evaluation's: with LCS the length of the longest common
subsequence of words, P = max over references LCS / |candidate|, R = max over references
LCS / |reference| (the two maxima may come from different references), and

    F = (1 + b^2) P R / (R + b^2 P),    b = 1.2

``rouge_l[rouge]``, the PyPI package ``rouge`` 1.0.1's F of "rouge-l" (summary level): texts are cut
into sentences at every period; u is the number of *distinct* words in the longest common
subsequences of all sentence pairs, and with the numbers of distinct words m of the reference and n
of the candidate

    P = u / n,    R = u / m,    F = 2 P R / (P + R + 1e-8)

A set of words is not unique when several subsequences are longest, so ties in the backtrace are
broken as the package does: a candidate word is given up before a reference word. The package knows
one reference; with several, the best one counts. An empty candidate scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polyptych.errors import PolyptychError
from polyptych.evaluation.metrics.ngrams import Corpus

_BETA = 1.2
_EPSILON = 1e-8
_NO_WORDS = [""]  # both originals see a text without words as one empty word

Floats = NDArray[np.float64]


def rouge_l_coco(corpus: Corpus) -> tuple[float, Floats]:
    """Mean and ``(items,)`` values of the COCO flavor, between 0 and 1; texts are word lists."""
    values = map(_coco_f, corpus.candidates, corpus.references)
    per_item = np.fromiter(values, dtype=np.float64, count=len(corpus))
    return float(per_item.mean()), per_item


def rouge_l_package(corpus: Corpus) -> tuple[float, Floats]:
    """Mean and ``(items,)`` values of the ``rouge`` package's flavor, between 0 and 1.

    Texts are what ``split_sentences`` makes of them.

    Raises:
        PolyptychError: A reference without words.
    """
    values = map(_package_f, corpus.candidates, corpus.references)
    per_item = np.fromiter(values, dtype=np.float64, count=len(corpus))
    return float(per_item.mean()), per_item


def _coco_f(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    words = words or _NO_WORDS
    places = places_of_words(words)
    precision = recall = 0.0
    for reference in references:
        reference_words = reference or _NO_WORDS
        common = lcs_length(places, len(words), reference_words)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference_words))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def places_of_words(words: Sequence[str]) -> dict[str, int]:
    """For each word a bit mask of the positions where it stands."""
    places: dict[str, int] = {}
    bit = 1
    for word in words:
        places[word] = places.get(word, 0) | bit
        bit <<= 1
    return places


def lcs_length(places: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table per word as one integer.

    Bit-parallel recurrence of Hyyrö 2004 ("Bit-parallel LCS-length computation revisited").
    """
    full = (1 << length) - 1
    row = full
    for word in other:
        matches = places.get(word)
        if matches is not None:
            common = row & matches
            row = ((row + common) | (row - common)) & full
    return length - row.bit_count()


def split_sentences(text: str) -> list[list[str]]:
    """Words of each sentence, for ``rouge_l_package``; every period ends a sentence."""
    return [part.split() or _NO_WORDS for part in text.split(".") if part]


def _package_f(
    candidate: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    """The best of several references; all are sentences of words."""
    distinct = len(set().union(*candidate))
    best = 0.0
    for reference in references:
        if not reference:
            raise PolyptychError("ROUGE-L of the rouge package needs words in every reference")
        known = set().union(*reference)
        shared: set[str] = set()
        for candidate_words in candidate:
            # A word that no reference sentence has is stepped over wherever it stands.
            common = [word for word in candidate_words if word in known]
            for reference_words in reference if common else ():
                shared |= _lcs_words(reference_words, common)
        if shared:
            recall, precision = len(shared) / len(known), len(shared) / distinct
            best = max(best, 2.0 * (precision * recall / (precision + recall + _EPSILON)))
    return best


def _lcs_words(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence (which one: see the head of this module)."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first):
        for j, other in enumerate(second):
            longest = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if word == other else longest
    words = set()
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            words.add(first[i])
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
