"""CIDEr, Vedantam et al. 2015 ("CIDEr: Consensus-based Image Description Evaluation").

The variant is the one that the COCO caption evaluation computes under the name CIDEr (class
``Cider``): with the clipping and the length penalty of the paper's CIDEr-D, and without stemming.
With h(w) the count of n-gram w in a text, N the number of items and d(w) the number of items that
have w in any reference,

    g(w)  = h(w) * (log N - log max(1, d(w)))                                            (Eq. 1)
    sim_n = sum_w min(g_c(w), g_r(w)) g_r(w) / (|g_c| |g_r|) * exp(-(l_c - l_r)^2 / (2 * 6^2))
    CIDEr = 10 * mean over references of mean over n = 1..4 of sim_n                     (Eq. 3-4)

l is a text's number of bigrams. Document frequencies come from the references of exactly the items
that are scored, so a value belongs to its set: adding items changes it, and a single item scores 0
(log 1 = 0), however good.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyptych.evaluation.metrics.ngrams import MAX_ORDER, Corpus, OrderCounts

_SIGMA = 6.0
_SCALE = 10.0

Floats = NDArray[np.float64]


def cider(corpus: Corpus) -> tuple[float, Floats]:
    """CIDEr of the corpus (the mean) and of each item ``(items,)``, between 0 and 10."""
    item = corpus.item_of_reference
    candidate_bigrams = np.maximum(0, corpus.candidate_lengths - 1)
    reference_bigrams = np.maximum(0, corpus.reference_lengths - 1)
    delta = candidate_bigrams[item] - reference_bigrams
    similarity = sum(_cosine(corpus, counts) for counts in corpus.orders) / MAX_ORDER
    similarity = similarity * np.exp(-(delta**2) / (2 * _SIGMA**2))
    per_item = np.bincount(item, similarity, minlength=len(corpus)) / corpus.reference_counts
    return float(_SCALE * per_item.mean()), _SCALE * per_item


def _cosine(corpus: Corpus, counts: OrderCounts) -> Floats:
    """Clipped cosine of each reference with its candidate, for one order."""
    idf = np.log(len(corpus)) - np.log(np.maximum(1, counts.document_frequency))

    candidate = counts.candidate_count * idf[counts.candidate_ngram]
    reference = counts.reference_count * idf[counts.reference_ngram]
    references = len(corpus.item_of_reference)
    candidate_norm = np.sqrt(np.bincount(counts.candidate_item, candidate**2, len(corpus)))
    reference_norm = np.sqrt(np.bincount(counts.reference_sentence, reference**2, references))

    found = counts.match >= 0
    overlap = np.minimum(candidate[counts.match[found]], reference[found]) * reference[found]
    dot = np.bincount(counts.reference_sentence[found], overlap, references)
    norm = candidate_norm[corpus.item_of_reference] * reference_norm
    return np.divide(dot, norm, out=np.zeros(references), where=norm > 0)
