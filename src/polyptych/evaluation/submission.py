"""Files for the servers that keep a benchmark's answers: exactly what they accept, and checked.

path = write_submission("vqav2", "DATA", predictions, "vqav2.json")
check_submission("vqav2", "DATA", "vqav2.json")     # also of a file that was made elsewhere
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyptych.data.records import parse_json, read_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import match
from polyptych.evaluation.scoring.choice import LETTERS, read_choice
from polyptych.evaluation.scoring.short_answer import gqa_answer
from polyptych.evaluation.scoring.vqa_accuracy import normalize_answer
from polyptych.evaluation.tasks.catalog import BENCHMARKS
from polyptych.evaluation.tasks.llava_files import read_questions
from polyptych.evaluation.workbook import Cell, read_workbook, write_workbook
from polyptych.files import write_aside
from polyptych.schema import Example, Prediction

Layout = Literal["list", "lines", "object", "table"]
"""``[{id, answer}]``, the same as one object per line, ``{id: answer}``, or a table."""

Id = str | int

_SUFFIXES: dict[Layout, tuple[str, ...]] = {
    "list": (".json",),
    "lines": (".jsonl",),
    "object": (".json",),
    "table": (".xlsx", ".tsv"),
}

PREDICTION = "prediction"
_INDEX = "index"
_LEFT_OUT = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
_PREDICTION_PLACE = 6  # behind index, question and four options


@dataclass(frozen=True, slots=True)
class Submission:
    """What one server wants."""

    layout: Layout
    id_key: str = ""
    """What the id is called in lists and lines."""
    answer_key: str = ""
    """What the answer is called there."""
    identify: Callable[[Example], Id] = lambda example: example.id
    """An example's id as the server has it."""
    answer: Callable[[str, Example], str] = lambda text, _: text
    """What a model said as the server wants it."""
    unasked: str = ""
    """Question file in the benchmark's folder whose further ids are answered by an empty text."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings that the file's name may have."""
        return _SUFFIXES[self.layout]


def _number(example: Example) -> Id:
    return int(example.id) if example.id.isdigit() else example.id


def _image(example: Example) -> Id:
    return str(example.metadata["image"])


def _mm_vet_id(example: Example) -> Id:
    return example.id if example.id.startswith("v1_") else f"v1_{example.id}"


def _normalized(text: str, _: Example) -> str:
    return normalize_answer(text)


def _bracketed_letter(text: str, example: Example) -> str:
    """As BLINK wants it; empty where no option can be read."""
    index = read_choice(text, example.choices)
    return "" if index is None else f"({LETTERS[index]})"


SUBMISSIONS: dict[str, Submission] = {
    "vqav2": Submission(
        "list", "question_id", "answer", _number, _normalized, "llava_vqav2_mscoco_test2015.jsonl"
    ),
    "vizwiz": Submission("list", "image", "answer", _image, _normalized),
    "gqa": Submission("list", "questionId", "prediction", answer=lambda text, _: gqa_answer(text)),
    "okvqa": Submission("list", "question_id", "answer", _number),
    "coco_caption": Submission("list", "image_id", "caption", _number),
    "seed": Submission("lines", "question_id", "prediction"),
    "mmbench": Submission("table"),
    "mmbench_cn": Submission("table"),
    "blink_test": Submission("object", answer=_bracketed_letter),
    "mm_vet": Submission("object", identify=_mm_vet_id),
}
"""Benchmark to the file that its server or its own scoring script takes."""


def submission_of(name: str) -> Submission:
    """What the server of a benchmark wants.

    Raises:
        PolyptychError: For a benchmark that is scored here only.
    """
    if name not in SUBMISSIONS:
        raise PolyptychError(f"{name}: no file to submit; known: {', '.join(SUBMISSIONS)}")
    return SUBMISSIONS[name]


def write_submission(
    name: str, data: str | Path, predictions: Iterable[Prediction], out: str | Path
) -> Path:
    """Write what a server accepts and read it again to be sure.

    Args:
        name: Key of :data:`SUBMISSIONS`.
        data: Folder that holds the benchmarks' folders.
        predictions: One for each question of the benchmark.
        out: The file; its ending has to be one that the server takes.

    Returns:
        The file.

    Raises:
        PolyptychError: For missing, unknown or repeated ids, or another ending.
    """
    form, out = submission_of(name), Path(out)
    if out.suffix not in form.suffixes:
        raise PolyptychError(f"{out}: {name} is submitted as {' or '.join(form.suffixes)}")
    examples = _load(name, data)
    texts = [prediction.text for prediction in match(examples, predictions)]
    if form.layout == "table":
        _write_table(out, _table(examples, texts))
    else:
        answers = {
            form.identify(example): form.answer(text, example)
            for example, text in zip(examples, texts, strict=True)
        }
        for identity in _unasked(name, form, data):
            answers.setdefault(identity, "")
        _write_answers(out, form, answers)
    check_submission(name, data, out)
    return out


def check_submission(name: str, data: str | Path, path: str | Path) -> int:
    """Check a file: every id of the benchmark once, no other, every answer a text.

    Args:
        name: Key of :data:`SUBMISSIONS`.
        data: Folder that holds the benchmarks' folders.
        path: The file.

    Returns:
        How many answers it has.

    Raises:
        PolyptychError: At the first thing that the server would refuse, named with file and id.
    """
    form, path = submission_of(name), Path(path)
    examples = _load(name, data)
    if form.layout == "table":
        found = _read_table(path)
        wanted: set[Id] = {str(example.metadata["question"]) for example in examples}
    else:
        found = _read_answers(path, form)
        wanted = {form.identify(example) for example in examples}
        wanted.update(_unasked(name, form, data))
    counts = Counter(identity for identity, _ in found)
    twice = [identity for identity, count in counts.items() if count > 1]
    if twice:
        raise PolyptychError(f"{path}: {len(twice)} id(s) occur twice, first {twice[0]!r}")
    missing = sorted(wanted - counts.keys(), key=str)
    if missing:
        raise PolyptychError(
            f"{path}: {len(missing)} of {len(wanted)} ids are missing, first {missing[0]!r}"
        )
    unknown = sorted(counts.keys() - wanted, key=str)
    if unknown:
        raise PolyptychError(f"{path}: {len(unknown)} unknown id(s), first {unknown[0]!r}")
    for identity, answer in found:
        if not isinstance(answer, str):
            raise PolyptychError(f"{path}: the answer to {identity!r} must be a text: {answer!r}")
    return len(found)


def _load(name: str, data: str | Path) -> list[Example]:
    return list(BENCHMARKS[name].task(data).load())


def _unasked(name: str, form: Submission, data: str | Path) -> list[Id]:
    path = BENCHMARKS[name].root(data) / form.unasked
    if not form.unasked or not path.is_file():
        return []
    ids = [question.id for question in read_questions(path)]
    return [int(identity) if identity.isdigit() else identity for identity in ids]


# Lists, lines and objects.


def _write_answers(path: Path, form: Submission, answers: Mapping[Id, str]) -> None:
    rows = [{form.id_key: identity, form.answer_key: text} for identity, text in answers.items()]
    with write_aside(path) as file:
        if form.layout == "lines":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            content = answers if form.layout == "object" else rows
            json.dump(content, file, ensure_ascii=False)


def _read_answers(path: Path, form: Submission) -> list[tuple[Id, Any]]:
    if form.layout == "lines":
        return [_pair(parse_json(line, where), form, where) for where, line in read_lines(path)]
    if form.layout == "object":
        return _read_object(path)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise PolyptychError(f"{path}: must be a list of answers")
    return [_pair(row, form, f"{path} item {number}") for number, row in enumerate(rows)]


def _read_object(path: Path) -> list[tuple[Id, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        pairs = json.loads(text, object_pairs_hook=list)  # a dict would hide repeated keys
    except (OSError, ValueError) as error:
        raise PolyptychError(f"cannot read {path}: {error}") from error
    if not text.lstrip().startswith("{"):
        raise PolyptychError(f"{path}: must be an object of answers by id")
    return [(identity, answer) for identity, answer in pairs]


def _pair(row: Any, form: Submission, where: str) -> tuple[Id, Any]:
    keys = {form.id_key, form.answer_key}
    if not isinstance(row, dict) or row.keys() != keys:
        raise PolyptychError(f"{where}: must have exactly the keys {', '.join(sorted(keys))}")
    identity = row[form.id_key]
    if not isinstance(identity, str | int):
        raise PolyptychError(f"{where}: {form.id_key!r} must be a text or a number: {identity!r}")
    return identity, row[form.answer_key]


# Tables.


def _table(examples: Sequence[Example], texts: Sequence[str]) -> list[list[str]]:
    """The benchmark's own columns without pictures and hints, and the prediction among them."""
    names = [name for name in examples[0].metadata["row"] if name not in _LEFT_OUT]
    head = [*names[:_PREDICTION_PLACE], PREDICTION, *names[_PREDICTION_PLACE:]]
    rows = []
    for example, text in zip(examples, texts, strict=True):
        values = {**example.metadata["row"], PREDICTION: text}
        rows.append([values[name] for name in head])
    return [head, *rows]


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    if path.suffix == ".xlsx":
        place = rows[0].index(_INDEX)
        write_workbook(path, [[*row[:place], _cell(row[place]), *row[place + 1 :]] for row in rows])
        return
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(rows)
    with write_aside(path) as file:
        file.write(buffer.getvalue())


def _cell(index: str) -> Cell:
    """An index as the number that it is in the benchmark's table."""
    return int(index) if index.isdigit() else index


def _read_table(path: Path) -> list[tuple[Id, Any]]:
    if path.suffix == ".xlsx":
        rows = read_workbook(path)
    else:
        csv.field_size_limit(sys.maxsize)
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = [list(row) for row in csv.reader(file, delimiter="\t")]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise PolyptychError(f"cannot read {path}: {error}") from error
    if not rows or _INDEX not in rows[0] or PREDICTION not in rows[0]:
        raise PolyptychError(f"{path}: no columns {_INDEX} and {PREDICTION} in its head")
    index, prediction = rows[0].index(_INDEX), rows[0].index(PREDICTION)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise PolyptychError(f"{path} row {number}: {len(row)} cells, not {len(rows[0])}")
    return [(str(row[index]), row[prediction]) for row in rows[1:]]
