"""DEMON's measures without what is wrong with the published ones.

| published (``released.py``) | here |
| --- | --- |
| an empty or unrelated answer counts as the first choice | it counts as no choice: wrong |
| letters and digits of one character are invisible: "B", "The answer is 4" | they are read |
| "yes" and "no" mean nothing where the choices are True and False | they are read |
| "X has more than Y" equals "Y has more than X" | the order of words counts |
| "The answer is Image B" is wrong, "Image an ..." is Image A | the image that is named counts |
| answers to VisualCloze, images, are compared as texts | compared as images |
| ROUGE-L counts each word once: "the dog" equals "the the dog dog" | longest common sequence of words |
| whether a mark ends a word depends on spaces elsewhere in the text; 33 full stops crash | marks never count |
"""  # noqa: E501 (a table)

from __future__ import annotations

from collections.abc import Sequence

from polyptych.evaluation.demon.answers import (
    match_choice,
    match_image,
    plain,
    sequence_f,
    words_of,
)
from polyptych.evaluation.demon.catalog import Rule


def score_item(rule: Rule, answer: str, reference: str, choices: Sequence[str]) -> float:
    """The value of one answer, between 0 and 1; never fails.

    Args:
        rule: How the task is meant to be judged (``Dataset.rule``).
        answer: What the model said.
        reference: The right answer.
        choices: What could be chosen; may be empty for images, whose names say which they are.
    """
    if rule == "rouge_l":
        return sequence_f(words_of(answer), words_of(reference))
    if rule == "image_choice":
        named = match_image(answer, image_letters(choices))
        return float(named is not None and named == match_image(reference))
    found = match_choice(answer, choices)
    return float(found is not None and plain(choices[found]) == plain(reference))


def image_letters(choices: Sequence[str]) -> str:
    """Letters of the images to choose from; four where a file does not list them."""
    letters = "".join(filter(None, map(match_image, choices)))
    return letters or "abcd"
