"""CLIP's byte-pair tokenizer with the text cleaning it was trained with (ftfy, HTML escapes).

The fast tokenizer of transformers skips that cleaning, so curly quotes, HTML escapes, ligatures and
broken encodings get other ids. The vocabulary is a file of the user's: CLIP's
``bpe_simple_vocab_16e6.txt.gz``, or the same merges as a CLIP folder's ``merges.txt``.
"""

from __future__ import annotations

import gzip
import html
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

from polyptych.errors import PolyptychError

VOCABULARY_FILES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt")
MERGES = 48_894
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

_PIECES = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def byte_characters() -> dict[int, str]:
    """A printable character for each byte: its own where it has one (GPT-2's table)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    table = {byte: chr(byte) for byte in own}
    return table | {byte: chr(256 + number) for number, byte in enumerate(others)}


class ClipTokenizer:
    """Texts to ids.

    Args:
        merges: Pairs of parts, most frequent first.
    """

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self._bytes = byte_characters()
        characters = list(self._bytes.values())
        parts = [*characters, *(c + WORD_END for c in characters), *map("".join, merges)]
        self.ids = {part: number for number, part in enumerate([*parts, START, END])}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._merged = lru_cache(maxsize=1 << 16)(self._merge)

    @classmethod
    def beside(cls, weights: Path) -> ClipTokenizer:
        """Read the vocabulary file that lies in the folder of some weights.

        Raises:
            PolyptychError: If there is none, or it is cut short.
        """
        for name in VOCABULARY_FILES:
            path = weights.with_name(name)
            if path.exists():
                return cls(read_merges(path))
        raise PolyptychError(
            f"{weights.parent}: no {' or '.join(VOCABULARY_FILES)} beside the weights; "
            "it comes with CLIP (MIT)"
        )

    def encode(self, text: str) -> list[int]:
        """Ids without start and end; special tokens in the text are honored."""
        ids: list[int] = []
        for piece in _PIECES.findall(clean(text)):
            ids += [self.ids[part] for part in self._merged(piece)]
        return ids

    def row(self, text: str, length: int, *, keep_end: bool) -> list[int]:
        """Start, ids, end, then zeros; cut to ``length`` with or without the end token."""
        start, end = self.ids[START], self.ids[END]
        ids = self.encode(text)
        if keep_end:
            ids = ids[: length - 2]
        ids = [start, *ids, end][:length]
        return ids + [0] * (length - len(ids))

    def _merge(self, piece: str) -> tuple[str, ...]:
        if piece in (START, END):
            return (piece,)
        parts = [self._bytes[byte] for byte in piece.encode()]
        parts[-1] += WORD_END
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, MERGES))
            if best not in self._ranks:
                break
            parts = _join_pairs(parts, best)
        return tuple(parts)


def _join_pairs(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, from left to right."""
    joined, place = [], 0
    while place < len(parts):
        if tuple(parts[place : place + 2]) == pair:
            joined.append("".join(pair))
            place += 2
        else:
            joined.append(parts[place])
            place += 1
    return joined


def clean(text: str) -> str:
    """Mend the encoding, resolve HTML escapes (twice), one blank for white space, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


def read_merges(path: Path) -> list[tuple[str, str]]:
    """CLIP's merges of a vocabulary file: the lines after its header.

    Raises:
        PolyptychError: If it has fewer, naming both numbers.
    """
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise PolyptychError(f"{path}: not a vocabulary file: {error}") from error
    merges = [tuple(line.split()) for line in text.split("\n")[1 : MERGES + 1]]
    pairs = [(pair[0], pair[1]) for pair in merges if len(pair) == 2]
    if len(pairs) != MERGES:
        raise PolyptychError(f"{path}: {len(pairs)} merges, CLIP has {MERGES}")
    return pairs
