r"""Text normalization of the scoring script of SAM (Semantic Alignment for multimodal LLMs).

The script's own variant of the VQA evaluation's punctuation pass, with its quirks, since published
numbers rest on it: no tokenizer, no handling of articles or number words, and

- a mark is deleted everywhere if it stands beside a space anywhere in the text, or if the text has
  a comma between digits anywhere; otherwise it becomes a space;
- of the periods not followed by a digit only the first 32 go (a flag is passed as a count there).
"""

from __future__ import annotations

import re

_MARKS = frozenset(';/[]"{}()=+\\_-><@`,?!')
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32


def sam_normalize(text: str) -> str:
    """Lower-case text without most punctuation; words are separated by one or more spaces.

    Example:
        >>> sam_normalize("A well-known brand (logo), 1 of 2.")
        'a well known brand logo 1 of 2'
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    result = text
    if marks := _MARKS.intersection(text):
        delete_all = _DIGIT_COMMA.search(text) is not None
        for mark in marks:
            beside_space = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if delete_all or beside_space else " ")
    result = _PERIOD.sub("", result, count=_MOST_PERIODS)
    return result.strip("'").strip('"').strip().lower()
