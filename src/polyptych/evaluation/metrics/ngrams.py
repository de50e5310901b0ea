"""Counts of n-grams in candidates and references, shared by BLEU and CIDEr.

Everything is kept in flat arrays, one entry per distinct n-gram of a sentence, so that scoring
100,000 captions is a handful of array operations. N-grams are numbered exactly, not hashed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 4
"""Longest n-gram that BLEU-4 and CIDEr look at."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class OrderCounts:
    """All n-grams of one order: C candidate entries and R reference entries.

    Entries are sorted by sentence. ``match (R,)`` is the candidate entry with the same n-gram in
    the same item, or -1.
    """

    ngram_kinds: int
    candidate_item: Ints  # (C,)
    candidate_ngram: Ints  # (C,)
    candidate_count: Ints  # (C,)
    reference_sentence: Ints  # (R,)
    reference_ngram: Ints  # (R,)
    reference_count: Ints  # (R,)
    match: Ints  # (R,)
    document_frequency: Ints  # (ngram_kinds,) items with the n-gram in any reference


class Corpus:
    """Candidates and references of the same items, as a flavor prepares them.

    Args:
        candidates: One prepared text per item. The counts here need lists of words; a word with
            no-break spaces inside (see the tokenizer) counts as several words.
        references: One or more prepared texts per item.
    """

    def __init__(self, candidates: Sequence[Any], references: Sequence[Sequence[Any]]) -> None:
        self.candidates = candidates
        self.references = references

    def __len__(self) -> int:
        return len(self.candidates)

    @cached_property
    def reference_counts(self) -> Ints:
        """References per item ``(items,)``."""
        return np.array([len(texts) for texts in self.references], dtype=np.int64)

    @cached_property
    def item_of_reference(self) -> Ints:
        """Item of each reference, references laid flat."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.reference_counts)

    @cached_property
    def _tokens(self) -> tuple[Ints, Ints]:
        """Token numbers of all candidates, then all references, and the length of each text."""
        texts: list[list[str]] = [*self.candidates, *chain.from_iterable(self.references)]
        tokens, lengths, words = _number(texts)
        if any("\xa0" in word for word in words):
            tokens, lengths, _ = _number([" ".join(words).split() for words in texts])
        return tokens, lengths

    @property
    def candidate_lengths(self) -> Ints:
        """Words per candidate ``(items,)``."""
        return self._tokens[1][: len(self)]

    @property
    def reference_lengths(self) -> Ints:
        """Words per reference, references laid flat."""
        return self._tokens[1][len(self) :]

    @cached_property
    def orders(self) -> tuple[OrderCounts, ...]:
        """Counts for n-grams of 1 to ``MAX_ORDER`` words."""
        tokens, lengths = self._tokens
        sentence = np.repeat(np.arange(len(lengths)), lengths)
        words_left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))
        vocabulary = int(tokens.max(initial=0)) + 1
        start, ngram, kinds = np.arange(len(tokens)), tokens, vocabulary
        orders = []
        for order in range(1, MAX_ORDER + 1):
            if order > 1:
                fits = words_left[start] >= order
                start = start[fits]
                distinct, ngram = np.unique(
                    ngram[fits] * vocabulary + tokens[start + order - 1], return_inverse=True
                )
                kinds = len(distinct)
            orders.append(self._count(sentence[start], ngram, max(kinds, 1)))
        return tuple(orders)

    def _count(self, sentence: Ints, ngram: Ints, kinds: int) -> OrderCounts:
        keys, counts = np.unique(sentence * kinds + ngram, return_counts=True)
        first_reference = int(np.searchsorted(keys, len(self) * kinds))
        candidate_keys, reference_keys = keys[:first_reference], keys[first_reference:]
        reference_sentence = reference_keys // kinds - len(self)
        reference_ngram = reference_keys % kinds
        wanted = self.item_of_reference[reference_sentence] * kinds + reference_ngram
        in_items = _sorted_unique(wanted) % kinds
        place = np.searchsorted(candidate_keys, wanted)
        place[place == len(candidate_keys)] = 0
        found = (
            candidate_keys[place] == wanted if len(candidate_keys) else np.zeros(len(wanted), bool)
        )
        return OrderCounts(
            ngram_kinds=kinds,
            candidate_item=candidate_keys // kinds,
            candidate_ngram=candidate_keys % kinds,
            candidate_count=counts[:first_reference],
            reference_sentence=reference_sentence,
            reference_ngram=reference_ngram,
            reference_count=counts[first_reference:],
            match=np.where(found, place, -1),
            document_frequency=np.bincount(in_items, minlength=kinds),
        )


def _sorted_unique(values: Ints) -> Ints:
    # np.unique would hash here, which takes ten times as long for millions of such keys.
    ordered = np.sort(values)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(ordered)]]


def _number(texts: Sequence[Sequence[str]]) -> tuple[Ints, Ints, Iterable[str]]:
    """Each word as a number, the same for the same word; lengths of the texts; all words."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    numbers: defaultdict[str, int] = defaultdict(count().__next__)
    words = map(numbers.__getitem__, chain.from_iterable(texts))
    return np.fromiter(words, dtype=np.int64, count=int(lengths.sum())), lengths, numbers
