"""BLEU-1 to BLEU-4, Papineni et al. 2002 ("BLEU: a Method for Automatic Evaluation of MT").

For n-grams of order k, with clipped matches c_k and candidate n-grams g_k (Eq. 1)

    p_k = c_k / g_k,    BLEU-n = BP * (p_1 * ... * p_n)^(1/n),    BP = min(1, exp(1 - r/c))

where c is the length of the candidate and r that of the reference closest in length (the shorter
one on a tie). The corpus value sums c_k, g_k, c and r over all items before dividing.

Two constants of the COCO caption evaluation keep the fractions finite and make the single values:
p_k = (c_k + 1e-15) / (g_k + 1e-9), c/r = (c + 1e-15) / (r + 1e-9).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyptych.evaluation.metrics.ngrams import MAX_ORDER, Corpus, Ints

_SMALL = 1e-9
_TINY = 1e-15

Floats = NDArray[np.float64]


def bleu(corpus: Corpus, order: int) -> tuple[float, Floats]:
    """BLEU-``order`` of the corpus and of each item ``(items,)``, between 0 and 1."""
    correct, guesses = clipped_matches(corpus), candidate_ngrams(corpus)
    length, closest = corpus.candidate_lengths, closest_reference_lengths(corpus)
    per_item = bleu_of_counts(correct[:order], guesses[:order], length, closest)
    whole = bleu_of_counts(
        correct[:order].sum(1, keepdims=True),
        guesses[:order].sum(1, keepdims=True),
        length.sum(keepdims=True),
        closest.sum(keepdims=True),
    )
    return float(whole[0]), per_item


def bleu_of_counts(correct: Ints, guesses: Ints, length: Ints, reference_length: Ints) -> Floats:
    """Precisions ``(order, items)`` and lengths ``(items,)`` to BLEU ``(items,)``."""
    precision = (correct + _TINY) / (guesses + _SMALL)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity_penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.prod(precision, axis=0) ** (1.0 / len(correct)) * brevity_penalty


def clipped_matches(corpus: Corpus) -> Ints:
    """Candidate n-grams also found in a reference, at most as often as in one ``(4, items)``."""
    rows = []
    for counts in corpus.orders:
        best = np.zeros(len(counts.candidate_count), dtype=np.int64)
        found = counts.match >= 0
        np.maximum.at(best, counts.match[found], counts.reference_count[found])
        clipped = np.minimum(best, counts.candidate_count)
        rows.append(np.bincount(counts.candidate_item, clipped, minlength=len(corpus)))
    return np.stack(rows)


def candidate_ngrams(corpus: Corpus) -> Ints:
    """N-grams in each candidate ``(4, items)``."""
    return np.stack([np.maximum(0, corpus.candidate_lengths - k) for k in range(MAX_ORDER)])


def closest_reference_lengths(corpus: Corpus) -> Ints:
    """Words of each item's reference closest in length, the shorter one on a tie ``(items,)``."""
    lengths = corpus.reference_lengths
    distance = np.abs(lengths - corpus.candidate_lengths[corpus.item_of_reference])
    scale = int(lengths.max(initial=0)) + 1
    starts = np.cumsum(corpus.reference_counts) - corpus.reference_counts
    return np.minimum.reduceat(distance * scale + lengths, starts) % scale
