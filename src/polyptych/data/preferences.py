"""Preference pairs on disk: one strict JSON object per line, as a native record with two answers.

    {"id": "p1",
     "prompt": [{"role": "user", "content": [{"type": "image"},
                                             {"type": "text", "text": "What is on the mat?"}]}],
     "chosen": "A dog.",
     "rejected": "A cat.",
     "images": ["images/7.png"],
     "metadata": {"margin": 1.7}}

``shots`` and ``metadata`` may be left out; any other key is an error. Everything else is as in
:mod:`polyptych.data.records`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyptych.data.records import (
    ImageStore,
    dump_json,
    parse_json,
    parse_record,
    read_lines,
    record_of,
)
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import Example, Message, PreferencePair, TextBlock

_REQUIRED = frozenset({"id", "prompt", "chosen", "rejected", "images"})
_KEYS = _REQUIRED | {"shots", "metadata"}


def answered(pair: PreferencePair, answer: str | None = None) -> Example:
    """A pair's prompt as an example, with one of the answers behind it or none."""
    messages = pair.prompt
    if answer is not None:
        messages = (*messages, Message("assistant", (TextBlock(answer),)))
    return Example(pair.id, messages, pair.images, shots=pair.shots, metadata=pair.metadata)


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """Read a native file of pairs.

    Raises:
        PolyptychError: At the first bad line, naming file, line and what is wrong; for an id that
            comes twice; or if there is no pair at all.
    """
    base = Path(path).parent
    pairs: dict[str, PreferencePair] = {}
    for where, line in read_lines(path):
        pair = parse_pair(parse_json(line, where), where, base)
        if pair.id in pairs:
            raise PolyptychError(f"{where}: id {pair.id!r} for the second time")
        pairs[pair.id] = pair
    if not pairs:
        raise PolyptychError(f"{path}: 0 pairs")
    return list(pairs.values())


def parse_pair(record: Any, where: str, base: str | Path) -> PreferencePair:
    """Turn one native record into a checked pair.

    Args:
        record: The JSON object.
        where: File and line, for the error message.
        base: Folder that image paths are relative to.

    Raises:
        PolyptychError: When the record breaks a rule of the format, or its answers are equal.
    """
    if not isinstance(record, dict) or not _REQUIRED <= record.keys() <= _KEYS:
        keys = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise PolyptychError(f"{where}: a pair has the keys {sorted(_KEYS)}, got {keys}")
    answers = {side: record[side] for side in ("chosen", "rejected")}
    for side, answer in answers.items():
        if not isinstance(answer, str) or not answer.strip():
            raise PolyptychError(f"{where} (id {record['id']!r}): the {side} answer is empty")
    if answers["chosen"].strip() == answers["rejected"].strip():
        raise PolyptychError(f"{where} (id {record['id']!r}): chosen and rejected are equal")
    rest = {key: record[key] for key in ("id", "images", "shots", "metadata") if key in record}
    example = parse_record({**rest, "messages": record["prompt"]}, where, base)
    if example.target is not None:
        raise PolyptychError(f"{where} (id {example.id!r}): the prompt ends with an answer")
    return PreferencePair(
        example.id,
        example.messages,
        **answers,
        images=example.images,
        shots=example.shots,
        metadata=example.metadata,
    )


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> int:
    """Write a native file of pairs; images given as bytes go to ``images/`` beside it.

    Like :func:`polyptych.data.records.write_records`, it leaves nothing behind when it fails.

    Returns:
        The number of pairs written.

    Raises:
        PolyptychError: For a bad pair, or when the system refuses, naming the file.
    """
    path = Path(path)
    count = 0
    with ImageStore(path.parent) as store, write_aside(path) as file:
        for pair in pairs:
            stored = store.with_paths(answered(pair))
            pair = replace(pair, images=stored.images, shots=stored.shots)
            file.write(dump_json(pair_record(pair, path.parent), f"pair {pair.id!r}") + "\n")
            count += 1
    return count


def pair_record(pair: PreferencePair, base: str | Path) -> dict[str, Any]:
    """Turn a pair into its native record; the inverse of :func:`parse_pair`."""
    record = record_of(answered(pair), base)
    head = {"id": record.pop("id"), "prompt": record.pop("messages")}
    return {**head, "chosen": pair.chosen, "rejected": pair.rejected, **record}
