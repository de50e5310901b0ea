"""Two runs on the same items: both values, the difference, its interval and a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyptych.errors import PolyptychError
from polyptych.evaluation.answers_file import left_alone
from polyptych.evaluation.report import Comparison
from polyptych.evaluation.results import Result
from polyptych.evaluation.scorers import compare, estimate, image_clusters, measure
from polyptych.schema import Example, Prediction


@dataclass(frozen=True, slots=True)
class Compared:
    """What two runs say of one task."""

    task: str
    systems: tuple[str, str]
    rows: list[Comparison]
    """One per metric."""
    examples: list[Example]
    """Those that both answered."""
    predictions: tuple[list[Prediction], list[Prediction]]
    problems: list[str]
    """Why items are left out, one line each."""


def compare_results(first: Result, second: Result) -> Compared:
    """Judge two results of one task over the examples that both answered.

    Raises:
        PolyptychError: If they have no example in common, or the task cannot be found again.
    """
    name = first.task_name
    of_first, of_second = first.answers, second.answers
    answered = {p.id: p for p in of_first.predictions}, {p.id: p for p in of_second.predictions}
    others = {example.id: example for example in of_second.examples}
    problems = [*of_first.problems, *of_second.problems]
    common = []
    for example in of_first.examples:
        if example.id not in others:
            problems.append(f"{second.folder}: no answer for id {example.id!r} of {first.folder}")
        elif others[example.id].prompt != example.prompt:
            problems.append(
                f"{first.folder} and {second.folder}: id {example.id!r} is another question"
            )
        else:
            common.append(example)
    known = {example.id for example in of_first.examples}
    problems += [
        f"{first.folder}: no answer for id {example.id!r} of {second.folder}"
        for example in of_second.examples
        if example.id not in known
    ]
    alone = left_alone(of_first.examples, {example.id for example in common})
    examples = [example for example in common if example.id not in alone]
    if not examples:
        raise PolyptychError(f"{name}: {first.folder} and {second.folder} share no question")
    matched = [answered[0][e.id] for e in examples], [answered[1][e.id] for e in examples]
    return Compared(
        task=name,
        systems=(first.answerer, second.answerer),
        rows=_rows((first, second), examples, matched),
        examples=examples,
        predictions=matched,
        problems=problems,
    )


def _rows(
    results: tuple[Result, Result],
    examples: Sequence[Example],
    predictions: tuple[Sequence[Prediction], Sequence[Prediction]],
) -> list[Comparison]:
    clusters = image_clusters(examples)
    first, second = (  # each with its own scorers: a judge's replies belong to one run
        {m.name: m for m in measure(result.task.scorers, examples, answers)}
        for result, answers in zip(results, predictions, strict=True)
    )
    pairs = [(one, second[name]) for name, one in first.items() if name in second]
    return [
        Comparison(
            estimate(one, clusters=clusters),
            estimate(two, clusters=clusters),
            compare(two, one, clusters=clusters),
        )
        for one, two in pairs
    ]


def is_clear(comparison: Comparison) -> bool:
    """Whether the interval of the difference leaves zero out."""
    low, high = comparison.difference.interval
    return low > 0 or high < 0
