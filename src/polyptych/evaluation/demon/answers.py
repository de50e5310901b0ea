"""Which choice an answer means: letters, numbers, yes and no, and the order of words count.

An answer is read the way a fair examiner reads it. What is tried, in this order, until one reading
gives exactly one choice:

1. the answer, or what follows "the answer is", equals a choice;
2. it is the label of a choice ("B", "(b)", "option B", "B: oxygen"), or equals one but for marks,
   articles and the spelling of numbers;
3. where the choices are yes and no (or true and false), it says one of them;
4. it names exactly one choice, its words together and in order; "not X" does not name X;
5. it is a part of exactly one choice;
6. its words follow the order of one choice's more closely than all others', and at least half.

An answer that fits several choices alike, or none, means no choice: it is never given one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from polyptych.evaluation.metrics.rouge_l import lcs_length, places_of_words

Words = tuple[str, ...]

LEAST_AGREEMENT = 0.5
"""Harmonic mean of precision and recall that the sixth reading asks for."""

_CONTRADICTION = -1  # "A: oxygen" where B is oxygen: neither

_WORD = re.compile(r"(?<![\w-])-\d+(?:\.\d+)?|\d+(?:\.\d+)+|\w+")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_YES = frozenset({"yes", "yeah", "yep", "true", "correct"})
_NO = frozenset({"no", "nope", "false", "incorrect", "wrong", "untrue"})
_NEGATIONS = frozenset({"not", "isn", "aren", "doesn", "don", "didn", "wasn", "cannot", "never"})
_LITTLE_WORDS = (
    "a an the is are was were be of in on at to for and or it its this that i you they there "
    "with by as from not"
)
_FUNCTION_WORDS = frozenset(_LITTLE_WORDS.split())
_CONCLUSION = re.compile(
    r"\b(?:(?:answer|choice|option|image|picture|panel)\s*"
    r"(?:(?:is|would be|should be|must be)\b\s*:?|:)|(?:choose|pick|select)\b)\s*(?=\S)",
    re.IGNORECASE,
)
_LABEL_ALONE = re.compile(
    r"\s*(?:option|choice|answer)?\s*[(\[]?\s*([a-z])\s*[)\].:]*\s*", re.IGNORECASE
)
_LABEL_FIRST = re.compile(r"\s*(?:\(([a-z])\)|([a-z])\s*(?:[):]|\.\s))\s*(?=\S)", re.IGNORECASE)
_LABEL_IS = re.compile(
    r"\s*(?:option|choice|image|picture|panel)?\s*[(\[]?([a-z])[)\]]?\s+is\s+"
    r"(?:the\s+)?(?:correct|right|best|answer|choice)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_OWN_LABEL = re.compile(r"\s*[(\[]?([a-z])\s*[)\].:]\s+(?=\S)", re.IGNORECASE)
_IMAGE = re.compile(
    r"(?<!\w)(?:images?|pictures?|panels?|options?|choices?)[\s\-:#(\[]*([a-z])(?!\w)",
    re.IGNORECASE,
)


@lru_cache(maxsize=1 << 15)
def words_of(text: str) -> Words:
    """Lower-case words and numbers without marks: "It's 1,000.5!" → it, s, 1000.5."""
    text = unicodedata.normalize("NFKC", text).lower()
    return tuple(_WORD.findall(_GROUPED.sub("", text)))


@lru_cache(maxsize=1 << 15)
def normal_words(text: str) -> Words:
    """As :func:`words_of`, without articles and with numbers up to twenty as digits."""
    words = words_of(text)
    kept = tuple(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)
    return kept or words


def plain(text: str) -> str:
    """Lower case, single spaces, no marks at the end: two choices that differ here are two."""
    return " ".join(text.lower().split()).rstrip(".!?,;: ")


def match_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that an answer means, or None.

    Args:
        answer: What the model said.
        choices: At least one text; of equal ones the first index is given.

    Example:
        >>> match_choice("The answer is 4.", ["0", "4"]), match_choice("B", ["Sun", "Oxygen"])
        (1, 1)
        >>> match_choice("", ["Sun", "Oxygen"]) is None
        True
    """
    labels, texts = _own_labels(tuple(choices))
    conclusions = [answer[found.end() :] for found in _CONCLUSION.finditer(answer)]
    said = [part for part in (answer, *reversed(conclusions)) if words_of(part)]
    readings: list[Callable[[str, Sequence[str]], int | None]] = [
        _same,
        lambda part, texts: _labeled(part, labels, texts),
        _equal,
        _yes_or_no,
    ]
    for reading in readings:
        for part in said:
            found = reading(part, texts)
            if found is not None:
                return found if found != _CONTRADICTION else None
    for reading in (_named, _partial, _closest):
        for part in said[::-1]:  # what follows "the answer is" comes before the whole
            found = reading(part, texts)
            if found is not None:
                return found
    return None


@lru_cache(maxsize=1 << 12)
def _own_labels(choices: tuple[str, ...]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels of choices and texts without them: the choices' own ("A. Sun"), or a, b, c, ..."""
    found = [_OWN_LABEL.match(choice) for choice in choices]
    if all(found):
        letters = [match.group(1).lower() for match in found if match]
        if len(set(letters)) == len(choices):
            texts = tuple(c[m.end() :] for c, m in zip(choices, found, strict=True) if m)
            return {letter: index for index, letter in enumerate(letters)}, texts
    return {chr(ord("a") + index): index for index in range(min(26, len(choices)))}, choices


def _same(answer: str, choices: Sequence[str]) -> int | None:
    exact = plain(answer)
    return next((i for i, choice in enumerate(choices) if plain(choice) == exact), None)


def _equal(answer: str, choices: Sequence[str]) -> int | None:
    asked = normal_words(answer)
    return _only([i for i, choice in enumerate(choices) if normal_words(choice) == asked], choices)


def _labeled(answer: str, labels: dict[str, int], choices: Sequence[str]) -> int | None:
    alone = _LABEL_ALONE.fullmatch(answer) or _LABEL_IS.fullmatch(answer)
    if alone:
        return labels.get(alone.group(1).lower())
    first = _LABEL_FIRST.match(answer)
    index = first and labels.get((first.group(1) or first.group(2)).lower())
    if first is None or index is None:
        return None
    named = _named(answer[first.end() :], choices)
    return index if named in (None, index) else _CONTRADICTION


def _yes_or_no(answer: str, choices: Sequence[str]) -> int | None:
    """The first word of agreement or denial decides; "not true" is a denial."""
    sides = [_side(normal_words(choice)) for choice in choices]
    if sorted(map(str, sides)) != ["False", "True"]:
        return None
    words = words_of(answer)
    if any(f"{a} or {b}" in " ".join(words) for a, b in (("yes", "no"), ("true", "false"))):
        return None
    negated = False
    for word in words:
        if word in _YES or word in _NO:
            return sides.index((word in _YES) != negated)
        negated = negated or word in _NEGATIONS
    return None  # "I am not sure" denies nothing


def _side(words: Words) -> bool | None:
    if len(words) == 1 and words[0] in _YES | _NO:
        return words[0] in _YES
    return None


def _named(answer: str, choices: Sequence[str]) -> int | None:
    """The one choice whose words stand in the answer, together, in order and not denied.

    A choice inside a longer one that is named ("red" in "dark red") is not named by it. Words of
    numbers ("four") count as digits only where no digits say otherwise.
    """
    for read in (_without_articles, normal_words):
        words = read(answer)
        spans = [
            (index, start, start + len(read(choice)))
            for index, choice in enumerate(choices)
            for start in _places_of(read(choice), words)
            if not _is_denied(words, start)
        ]
        outer = {
            index
            for index, start, end in spans
            if not any(
                low <= start and end <= high and high - low > end - start for _, low, high in spans
            )
        }
        if outer:
            return _only(sorted(outer), choices)
    return None


def _is_denied(words: Words, start: int) -> bool:
    return start > 0 and words[start - 1] in ("not", "no")


def _without_articles(text: str) -> Words:
    words = words_of(text)
    return tuple(word for word in words if word not in _ARTICLES) or words


def _partial(answer: str, choices: Sequence[str]) -> int | None:
    """The one choice that contains the answer, if the answer has a word with a meaning."""
    words = normal_words(answer)
    if _FUNCTION_WORDS.issuperset(words):
        return None
    return _only([i for i, c in enumerate(choices) if _places_of(words, normal_words(c))], choices)


def _closest(answer: str, choices: Sequence[str]) -> int | None:
    words = normal_words(answer)
    agreement = [
        0.0
        if any(_is_denied(words, start) for start in _places_of(normal_words(choice), words))
        else sequence_f(words, normal_words(choice))
        for choice in choices
    ]
    best = max(agreement)
    if best < LEAST_AGREEMENT:
        return None
    return _only([i for i, value in enumerate(agreement) if value == best], choices)


def _only(found: Sequence[int], choices: Sequence[str]) -> int | None:
    """The first index, if all stand for one and the same text."""
    if found and len({plain(choices[index]) for index in found}) == 1:
        return found[0]
    return None


def _places_of(part: Words, whole: Words) -> list[int]:
    """Where ``part`` stands in ``whole``, its words together."""
    size = len(part)
    if not size or size > len(whole) or part[0] not in whole:
        return []
    return [i for i in range(len(whole) - size + 1) if whole[i : i + size] == part]


def sequence_f(first: Words, second: Words) -> float:
    """ROUGE-L F1 of two word sequences: harmonic mean of the shares of their longest common one."""
    if not first or not second:
        return 0.0
    common = lcs_length(places_of_words(first), len(first), second)
    return 2 * common / (len(first) + len(second))


def match_image(answer: str, letters: str = "abcdefghijklmnopqrstuvwxyz") -> str | None:
    """Letter of the one image that an answer names ("Image B", "(b)"), or None.

    Args:
        answer: What the model said.
        letters: The letters that images have.
    """
    parts = [answer[found.end() :] for found in _CONCLUSION.finditer(answer)]
    for part in (*reversed(parts), answer):
        alone = _LABEL_ALONE.fullmatch(part) or _LABEL_IS.fullmatch(part)
        if alone and alone.group(1).lower() in letters:
            return alone.group(1).lower()
        named = {
            found.group(1).lower()
            for found in _IMAGE.finditer(part)
            if not re.search(r"\bnot\s+(?:in\s+|the\s+)*$", part[: found.start()], re.IGNORECASE)
        } & set(letters)
        if len(named) == 1:
            return named.pop()
    return None
