"""Files of a run: one line per finished picture while it runs, records and a summary at the end.

``records.jsonl.running`` begins with a line that says what makes the run; lines of pictures follow
in order, so that their number says where a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data.records import dump_json, parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.runner import versions
from polyptych.files import write_aside
from polyptych.methods.cheetah.discriminative import EDIT_KINDS, SourcePicture

RECORDS_FILE = "records.jsonl"
SUMMARY_FILE = "summary.json"

_EXAMPLES_OF_DROPS = 3  # named per reason in the summary


def append(path: Path, value: Any) -> None:
    """Add a whole line of JSON; it reaches the file at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(dump_json(value, str(path)) + "\n")
    except OSError as error:
        raise PolyptychError(f"cannot write {path}: {error.strerror or error}") from error


def resume(running: Path, run: dict[str, Any], pictures: Sequence[SourcePicture]) -> int:
    """How many pictures are finished; a torn last line of a killed run is cut off first."""
    if running.exists():
        whole = running.read_bytes()
        if not whole.endswith(b"\n"):
            with open(running, "r+b") as file:
                file.truncate(whole.rfind(b"\n") + 1)
    count, where, line = 0, "", b""
    for where, line in read_lines(running) if running.exists() else ():
        if count == 0:
            _check_same(parse_json(line, where), run, running)
        count += 1
    if count == 0:
        append(running, run)
        return 0
    done = count - 1
    if done:
        found, last = parse_json(line, where)["id"], pictures[done - 1].id
        if found != last:
            raise PolyptychError(f"{where}: picture {found!r}, now {last!r} is in its place")
    return done


def _check_same(found: Any, run: dict[str, Any], path: Path) -> None:
    """Refuse to mix two runs, naming the first thing in which they differ."""
    for name, value in run.items():
        if not isinstance(found, dict) or found.get(name) != value:
            raise PolyptychError(
                f"{path}: made with other {name} ({_difference(found, name, value)}); "
                "choose another folder"
            )


def _difference(found: Any, name: str, value: Any) -> str:
    old = found.get(name) if isinstance(found, dict) else None
    if isinstance(old, dict) and isinstance(value, dict):
        keys = [key for key in value if old.get(key) != value[key]]
        return ", ".join(f"{key} {old.get(key)!r}, now {value[key]!r}" for key in keys)
    return f"{old!r}, now {value!r}"


def finished_summary(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run that is complete.

    Raises:
        PolyptychError: If it is another run's.
    """
    summary = parse_json(path.read_bytes(), str(path))
    _check_same(summary, run, path)
    return summary


def finish(out: Path, running: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Write records and summary from the finished lines, one line in memory at a time."""
    kinds: Counter[str] = Counter()
    importances: list[float] = []
    dropped: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()
    with write_aside(out / RECORDS_FILE) as file:
        for where, line in islice(read_lines(running), 1, None):
            result = parse_json(line, where)
            for record in result["records"]:
                text = dump_json(record, where) + "\n"
                file.write(text)
                digest.update(text.encode())
                kinds[record["metadata"]["edit"]["kind"]] += 1
                importances.append(record["metadata"]["region"]["importance"])
            for item in result["dropped"]:
                entry = dropped.setdefault(item["reason"], {"count": 0, "examples": []})
                entry["count"] += 1
                if len(entry["examples"]) < _EXAMPLES_OF_DROPS:
                    entry["examples"].append(f"{result['id']}: {item['detail']}")
    kept = sum(kinds.values())
    summary = {
        "tried": kept + sum(entry["count"] for entry in dropped.values()),
        "kept": kept,
        "dropped": dict(sorted(dropped.items())),
        "kinds": {kind: kinds[kind] for kind in EDIT_KINDS},
        "mean_importance": round(float(np.mean(importances)), 6) if importances else None,
        "records_sha256": digest.hexdigest(),
        **run,
        "versions": versions(),
    }
    with write_aside(out / SUMMARY_FILE) as file:
        json.dump(summary, file, indent=1, ensure_ascii=False)
    running.unlink()
    return summary
