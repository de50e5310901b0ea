"""Files of answers made elsewhere, with all their faults named and the rest used.

One JSON object per line, or one JSON list of objects. Ids stand under ``id``, ``question_id`` or
``sample_id``, answers under ``prediction``, ``text``, ``answer``, ``caption``, ``response`` or
``pred_response``; where there is a ``prompt`` it must be the task's own:

    {"question_id": 1, "prompt": "Is there a dog?", "text": "Yes"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyptych.data.records import IMAGE_TOKEN, parse_json, read_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import accepted_answers
from polyptych.evaluation.task import prompt_text
from polyptych.evaluation.tasks.mmbench import CIRCULAR
from polyptych.schema import Example, Prediction

ID_KEYS = ("id", "question_id", "sample_id")
TEXT_KEYS = ("prediction", "text", "answer", "caption", "response", "pred_response")
TOGETHER = ("pair", "sentence")
"""Metadata whose equal values say that examples are judged together (MME, NLVR2)."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What of a file can be scored, and what is wrong with the rest."""

    examples: list[Example]
    """Those that are answered, in the task's order."""
    predictions: list[Prediction]
    """One for each of them."""
    total: int
    """Examples of the task that can be used."""
    problems: list[str]
    """One line each, with file and id."""

    @property
    def complete(self) -> bool:
        """Whether every example of the task is scored and nothing is wrong."""
        return len(self.examples) == self.total and not self.problems


def read_answers(
    path: str | Path, examples: Sequence[Example], faults: Sequence[str] = ()
) -> Answers:
    """Match a file's answers with a task's examples.

    Left out, and named: torn or odd lines, ids that the task does not know, ids that occur twice
    with different answers, answers to another question, and examples without an answer together
    with those that are judged with them.

    Args:
        path: The file.
        examples: Those of the task that can be used.
        faults: What is wrong with the task's others; they come first among the problems.

    Raises:
        PolyptychError: If the file cannot be read at all, or nothing in it can be scored.
    """
    by_id = {example.id: example for example in examples}
    problems = list(faults)
    found: dict[str, tuple[str, Prediction]] = {}
    refused: set[str] = set()
    for where, record in _records(path, problems):
        prediction = _prediction(record, where, by_id, problems)
        if prediction is None:
            continue
        earlier, first = found.setdefault(prediction.id, (where, prediction))
        if first.text != prediction.text:
            problems.append(
                f"{where}: id {prediction.id!r} has another answer in {earlier}; neither counts"
            )
            refused.add(prediction.id)
    answered = {identity for identity in found if identity not in refused}
    problems += _missing(path, [e for e in examples if e.id not in answered], refused)
    problems += _empty(path, [p.text for _, p in found.values() if p.id in answered])
    alone = left_alone(examples, answered)
    problems += [f"{path}: id {i!r} is left out: {why} has no answer" for i, why in alone.items()]
    used = [e for e in examples if e.id in answered and e.id not in alone]
    if not used:
        raise PolyptychError(
            f"{path}: no answer to any of {len(examples)} examples"
            + (f"; first: {problems[0]}" if problems else "")
        )
    return Answers(used, [found[e.id][1] for e in used], len(examples), problems)


def _records(path: str | Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Every object of the file with its place."""
    if _starts_with_list(path):
        content = read_json(path)
        for number, record in enumerate(content):
            yield f"{path} record {number}", record
        return
    for where, line in read_lines(path):
        try:
            yield where, parse_json(line, where)
        except PolyptychError as error:
            torn = "" if line.endswith(b"\n") else " (a half-written last line)"
            problems.append(f"{error}{torn}")


def _starts_with_list(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"[")
    except OSError as error:
        raise PolyptychError(f"cannot read {path}: {error.strerror or error}") from error


def _prediction(
    record: Any, where: str, examples: Mapping[str, Example], problems: list[str]
) -> Prediction | None:
    if not isinstance(record, dict):
        problems.append(f"{where}: expected an object, got {type(record).__name__}")
        return None
    identity = _first(record, ID_KEYS)
    if identity is None or isinstance(identity, bool) or not isinstance(identity, str | int):
        problems.append(f"{where}: no id ({', '.join(ID_KEYS)})")
        return None
    place = f"{where} (id {str(identity)!r})"
    text = _first(record, TEXT_KEYS)
    if not isinstance(text, str):
        problems.append(f"{place}: the answer must be a text, got {json.dumps(text)}")
        return None
    example = examples.get(str(identity))
    if example is None:
        problems.append(f"{place}: the task has no such example, or cannot use it")
        return None
    prompt = record.get("prompt")
    if isinstance(prompt, str) and not same_question(prompt, prompt_text(example.prompt)):
        problems.append(f"{place}: answers another question: {_brief(prompt)!r}")
        return None
    return Prediction(example.id, text, accepted_answers(example), prompt_text(example.prompt))


def same_question(first: str, second: str) -> bool:
    """Whether two prompts have the same words; where images stand may be written in other ways."""
    return _words(first) == _words(second)


def _words(prompt: str) -> list[str]:
    return prompt.replace(IMAGE_TOKEN, " ").split()


def _missing(path: str | Path, examples: Iterable[Example], refused: set[str]) -> list[str]:
    return [f"{path}: no answer for id {e.id!r}" for e in examples if e.id not in refused]


def _empty(path: str | Path, texts: Iterable[str]) -> list[str]:
    count = sum(not text.strip() for text in texts)
    return [f"{path}: {count} answer(s) are empty; they are scored as they are"] if count else []


def left_alone(examples: Sequence[Example], answered: set[str]) -> dict[str, str]:
    """Answered examples whose partner is not answered, and that partner."""
    gaps: dict[tuple[Any, ...], str] = {}
    for example in examples:
        if example.id not in answered:
            gaps.update(dict.fromkeys(_units(example), example.id))
    return {
        example.id: f"its partner {gaps[unit]!r}"
        for example in examples
        if example.id in answered
        for unit in _units(example)
        if unit in gaps
    }


def _units(example: Example) -> list[tuple[Any, ...]]:
    data = example.metadata
    circular = ("question",) if str(data.get("task", "")).endswith(CIRCULAR) else ()
    keys = [key for key in (*TOGETHER, *circular) if key in data]
    return [(key, str(data.get("category", "")), str(data[key])) for key in keys]


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((record[key] for key in keys if key in record), None)


def _brief(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
