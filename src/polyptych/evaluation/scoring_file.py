"""Score a file of predictions: what stands behind ``polyptych score``.

One JSON object per line, other keys are ignored, blank lines are an error:

    {"id": "g1", "prediction": "Each has a red ball.", "references": ["All show a red ball."]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyptych.data.records import parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.metrics import compute, resolve
from polyptych.files import write_aside
from polyptych.schema import Score

_KEYS = ("id", "prediction", "references")


def score_file(
    predictions: str | Path, metrics: Sequence[str], out: str | Path | None = None
) -> list[Score]:
    """Score the predictions in a JSONL file.

    Args:
        predictions: The file, see the head of this module. An id is a string or an integer; the
            string of it must occur once.
        metrics: Names such as ``cider``, ``bleu`` or ``rouge_l[sam]``.
        out: Where to write the scores as JSON: ``{"predictions": FILE, "count": N, "scores":
            {NAME: VALUE}, "per_item": {ID: {NAME: VALUE}}}``. Written aside, then renamed.

    Returns:
        One score per metric, ``bleu`` giving four.

    Raises:
        PolyptychError: A metric that does not exist, a line that breaks the format (named with its
            number), an id that occurs twice (with both numbers), or a file that cannot be written.
    """
    for name in metrics:  # a misspelled name should not cost the reading of a large file
        resolve(name)
    first_seen: dict[str, str] = {}
    texts: list[str] = []
    references: list[list[str]] = []
    for where, line in read_lines(predictions):
        record = _check(parse_json(line, where), where)
        item = str(record["id"])
        if item in first_seen:
            raise PolyptychError(f"{where}: id {item!r} occurs before, in {first_seen[item]}")
        first_seen[item] = where
        texts.append(record["prediction"])
        references.append(record["references"])
    if not texts:
        raise PolyptychError(f"{predictions}: no predictions in it")
    scores = compute(metrics, texts, references, ids=list(first_seen))
    if out is not None:
        write_scores(out, str(predictions), scores)
    return scores


def _check(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise PolyptychError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for key in _KEYS:
        if key not in record:
            raise PolyptychError(f"{where}: {key!r} is missing")
    item, prediction, references = (record[key] for key in _KEYS)
    if not isinstance(item, str | int) or isinstance(item, bool):
        raise PolyptychError(f"{where}: 'id' must be a string or an integer, got {item!r}")
    if not isinstance(prediction, str):
        raise PolyptychError(f"{where} (id {item!r}): 'prediction' must be text")
    if not isinstance(references, list) or not references:
        raise PolyptychError(f"{where} (id {item!r}): 'references' must be a list of 1 or more")
    for number, text in enumerate(references, start=1):
        if not isinstance(text, str) or not text.strip():
            raise PolyptychError(
                f"{where} (id {item!r}): reference {number} of {len(references)} is"
                f" {'empty' if isinstance(text, str) else 'not text'}"
            )
    return record


def write_scores(out: str | Path, predictions: str, scores: Sequence[Score]) -> None:
    """Write what :func:`score_file` describes: values of the whole set and of each item."""
    per_item: dict[str, dict[str, float]] = {}
    for score in scores:
        for item, value in (score.per_item or {}).items():
            per_item.setdefault(item, {})[score.name] = value
    result = {
        "predictions": predictions,
        "count": scores[0].count if scores else 0,
        "scores": {score.name: score.value for score in scores},
        "per_item": per_item,
    }
    with write_aside(out) as file:
        json.dump(result, file, ensure_ascii=False, indent=1)
        file.write("\n")
