"""What no eyes can reach: the scores of always the same answer, and of guessing.

Both are computed by the task's own scorers, so that they stand on the scale of its numbers. They
exist for tasks whose answers are words from a short list; a caption cannot be guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from string import ascii_uppercase
from typing import Any

import numpy as np

from polyptych.evaluation.scorers import accepted_answers, measure
from polyptych.evaluation.task import Task
from polyptych.schema import Example, Prediction

_FIRST_WORD = re.compile(r"(\w+).*", re.DOTALL)

GUESSES = 20
"""Drawn sets of guesses whose scores are averaged."""

SHORT_ANSWER_WORDS = 3
MAJORITY_SHARE = 0.01
"""An answer must be right for this share of the examples to be worth giving always."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Scores of a system that does not look."""

    answer: str
    """What it says."""
    values: dict[str, float]
    """Metric to its value."""


def baselines(task: Task, examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """``majority`` and ``chance`` of a task, as far as it has them, as JSON.

    A metric without a number there, as CHAIR of an answer that names no object, is left out.
    None for a task whose answers are judged: no judge is asked about what no model said.
    """
    if task.judging is not None:
        return {}
    found = {"majority": majority(task, examples), "chance": chance(task, examples)}
    return {
        name: {
            "answer": baseline.answer,
            "values": {
                metric: value for metric, value in baseline.values.items() if not isnan(value)
            },
        }
        for name, baseline in found.items()
        if baseline is not None
    }


def majority(task: Task, examples: Sequence[Example]) -> Baseline | None:
    """Always the answer that is right most often."""
    answers = [answer for example in examples for answer in set(accepted_answers(example))]
    if not answers or not task.scorers:
        return None
    answer, count = Counter(answers).most_common(1)[0]
    if len(answer.split()) > SHORT_ANSWER_WORDS or count < max(2, MAJORITY_SHARE * len(examples)):
        return None
    return Baseline(answer, _values(task, examples, [answer] * len(examples)))


def chance(task: Task, examples: Sequence[Example], seed: int = 0) -> Baseline | None:
    """A guess among each example's options, all equally likely: the mean of some drawn sets."""
    options = [_options(example) for example in examples]
    if not examples or not task.scorers or not all(options):
        return None
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(GUESSES):
        guesses = [several[generator.integers(len(several))] for several in options]
        for name, value in _values(task, examples, guesses).items():
            drawn.setdefault(name, []).append(value)
    values = {name: float(np.mean(several)) for name, several in drawn.items()}
    return Baseline(f"a guess, mean of {GUESSES} draws", values)


def _options(example: Example) -> tuple[str, ...]:
    """What may be said: letters of the choices, the choices, or yes and no; else nothing."""
    truths = accepted_answers(example)
    if {_FIRST_WORD.sub(r"\1", truth.lower()) for truth in truths} in ({"yes"}, {"no"}):
        return ("yes", "no")
    letters = tuple(ascii_uppercase[: len(example.choices)])
    for options in (letters, example.choices):
        if len(truths) == 1 and truths[0] in options:
            return options
    return ()


def _values(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    predictions = [Prediction(e.id, answer) for e, answer in zip(examples, answers, strict=True)]
    measured = measure(task.scorers, examples, predictions)
    return {m.name: float(m.aggregate(m.statistics.sum(0))) for m in measured}
