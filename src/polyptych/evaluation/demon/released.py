"""The published scorer, repeated with all its quirks, so that published numbers can be compared.

Three rules: ROUGE-L of the ``rouge`` package (summary level, distinct words), the nearest choice
in TF-IDF space, and the first seven characters where choices are images. What is odd about them
is described in ``fixed.py``, which mends it. Nothing here may be improved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from polyptych.evaluation.demon.catalog import Rule
from polyptych.evaluation.metrics.ngrams import Corpus
from polyptych.evaluation.metrics.rouge_l import rouge_l_package, split_sentences

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # a regex flag was passed in the place of the count

_IMAGE_RULE = frozenset({"COMICS_Panel", "RecipeQA_ImageCoherence"})
_IMAGE_NAMES = ("image a", "image b", "image c", "image d")
_TOKEN = re.compile(r"\b\w\w+\b")


class ReleasedCrash(Exception):
    """The published script stops here; the text is the last line of its traceback."""


def normalize(text: str) -> str:
    """The script's normal form: marks deleted or made spaces, full stops dropped, lower case.

    A mark is deleted where it stands beside a space *anywhere* in the text, or where any digits are
    grouped by a comma; otherwise it becomes a space.

    Example:
        >>> normalize("A well-known fact."), normalize("a well - known fact")
        ('a well known fact', 'a well  known fact')
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    grouped = _DIGIT_COMMA.search(text) is not None
    out = text
    for mark in _MARKS:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if beside_space or grouped else " ")
    out = _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)
    return out.strip().strip("'").strip('"').strip().lower()


def overlap(answer: str, reference: str) -> float:
    """ROUGE-L F of two texts.

    Raises:
        ReleasedCrash: For a reference without words, or an answer of nothing but full stops beyond
            the 32 that are dropped.
    """
    answer, reference = normalize(answer), normalize(reference)
    if not reference:
        raise ReleasedCrash("AssertionError")
    if not answer:
        return 0.0
    sentences = split_sentences(answer)
    if not sentences:
        raise ReleasedCrash("ValueError: Hypothesis is empty.")
    _, values = rouge_l_package(Corpus([sentences], [[split_sentences(reference)]]))
    return float(values[0])


def choice_is_right(answer: str, reference: str, choices: Sequence[str]) -> bool:
    """Whether the choice nearest to the answer in TF-IDF space is the reference.

    Raises:
        ReleasedCrash: If the reference is not among the choices.
    """
    answer, reference = normalize(answer), normalize(reference)
    texts = [normalize(choice) for choice in choices]
    if reference not in texts:
        raise ReleasedCrash("AssertionError")
    nearest = nearest_choice(answer, texts)
    return answer == reference if nearest is None else texts[nearest] == reference


def nearest_choice(answer: str, choices: Sequence[str]) -> int | None:
    """First choice of greatest cosine similarity; None where no text has a token.

    As scikit-learn 1.3's ``TfidfVectorizer`` with its defaults, fitted on answer and choices
    (N texts): tokens of two or more word characters, raw counts, idf = ln((1 + N) / (1 + df)) + 1,
    Euclidean norm. Terms are summed in that version's order (columns numbered by first
    occurrence, visited backwards), so that choices which tie there tie here.
    """
    texts = [_counts(text) for text in (answer, *choices)]
    frequencies: dict[str, int] = {}  # in order of first occurrence
    for counts in texts:
        for token in counts:
            frequencies[token] = frequencies.get(token, 0) + 1
    if not frequencies:
        return None
    asked = texts[0]
    if not asked:
        return 0  # all similarities are zero, and the first zero is taken
    number = len(texts) + 1
    idf = {t: math.log(number / (1 + df)) + 1.0 for t, df in frequencies.items()}
    backwards = list(reversed(frequencies))
    vector = _unit(asked, idf, backwards)
    best, best_similarity = 0, 0.0
    for index, counts in enumerate(texts[1:]):
        if asked.keys().isdisjoint(counts):
            continue
        other = _unit(counts, idf, backwards)
        similarity = 0.0
        for token, weight in vector.items():
            similarity += weight * other.get(token, 0.0)
        if similarity > best_similarity:
            best, best_similarity = index, similarity
    return best


@lru_cache(maxsize=1 << 14)
def _counts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for token in _TOKEN.findall(text):
        counts[token] = counts.get(token, 0) + 1
    return counts


def _unit(
    counts: Mapping[str, int], idf: Mapping[str, float], backwards: Sequence[str]
) -> dict[str, float]:
    """Weights of length one; normalized twice, as the vectorizer and then the cosine do."""
    vector = {token: counts[token] * idf[token] for token in backwards if token in counts}
    for _ in range(2):
        squares = 0.0
        for weight in vector.values():
            squares += weight * weight
        norm = math.sqrt(squares)
        vector = {token: weight / norm for token, weight in vector.items()}
    return vector


def image_is_right(answer: str, reference: str) -> bool:
    """Whether both begin with the same seven characters ("image b"), no other image named."""
    answer, reference = normalize(answer), normalize(reference)
    if sum(name in answer for name in _IMAGE_NAMES) > 1:
        return False
    return answer[:7] == reference[:7]


def score_item(rule: Rule, answer: str, reference: str, choices: Sequence[str]) -> float:
    """The value of one answer, between 0 and 1.

    Args:
        rule: The published script's rule for the task (``Dataset.released_rule``).
        answer: What the model said.
        reference: The right answer.
        choices: What could be chosen, in order; for the rule ``text_choice`` only.

    Raises:
        ReleasedCrash: Where the published script stops.
    """
    if rule == "rouge_l":
        return overlap(answer, reference)
    if rule == "image_choice":
        return float(image_is_right(answer, reference))
    return float(choice_is_right(answer, reference, choices))


def score_files(
    core: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What the published script writes for a task: its ``eval`` and ``eval_score``.

    Args:
        core: Content of ``core.json``.
        predictions: Content of ``pred.json``.

    Returns:
        ``{"eval": {metric: value}, "eval_score": [{"id", "score"}]}``; None for a question type
        that the script does not know, for which it writes nothing.

    Raises:
        ReleasedCrash: Where the script stops.
    """
    metadata, data = core["metadata"], {sample["sample_id"]: sample for sample in core["data"]}
    if metadata["question_type"] == "open-ended":
        metric, judge = "Rouge-L f", _overlap_of_files
    elif metadata["question_type"] == "multi-choice":
        metric = "Accuracy"
        judge = _image_of_files if metadata["dataset"] in _IMAGE_RULE else _choice_of_files
    else:
        return None
    values = [
        judge(data[p["sample_id"]], p["pred_response"], p["gt_response"]) for p in predictions
    ]
    return {
        "eval": {metric: float(np.mean(values))},
        "eval_score": [
            {"id": str(p["sample_id"]), "score": str(round(value, 3))}
            for p, value in zip(predictions, values, strict=True)
        ],
    }


def _overlap_of_files(sample: Mapping[str, Any], answer: str, reference: str) -> float:
    return overlap(answer, reference) or 0  # without an answer it writes "0", not "0.0"


def _choice_of_files(sample: Mapping[str, Any], answer: str, reference: str) -> float:
    if "choice_list" not in sample["task_instance"]:
        raise ReleasedCrash("KeyError: 'choice_list'")
    if not isinstance(sample["response"], str):
        kind = type(sample["response"]).__name__
        raise ReleasedCrash(f"AttributeError: '{kind}' object has no attribute 'replace'")
    choices = sample["task_instance"]["choice_list"]
    return int(choice_is_right(answer, sample["response"], choices))


def _image_of_files(sample: Mapping[str, Any], answer: str, reference: str) -> float:
    return int(image_is_right(answer, reference))


def category_mean(values: Sequence[float]) -> float:
    """The published aggregation over a category's tasks, in percent with three decimals."""
    return round(sum(values) / len(values), 5) * 100
