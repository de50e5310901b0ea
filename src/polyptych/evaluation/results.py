"""Finished runs: what stands in their folders, and judging their answers again.

RUN/scores.json, RUN/predictions.jsonl               a run of one task
RUN/TASK/scores.json, RUN/TASK/predictions.jsonl     a run of several
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.answers_file import Answers, read_answers
from polyptych.evaluation.judge import with_recorded_replies
from polyptych.evaluation.runner import PREDICTIONS_FILE, SCORES_FILE
from polyptych.evaluation.scorers import Estimate, Measurement, estimate, image_clusters, measure
from polyptych.evaluation.task import Task, load_examples
from polyptych.evaluation.tasks.finding import find_again


@dataclass(frozen=True)
class Result:
    """One task of one run."""

    folder: Path
    record: Mapping[str, Any] = field(repr=False)
    """What ``scores.json`` holds."""

    @property
    def task_name(self) -> str:
        """Name of its task."""
        return str(self.record["task"])

    @property
    def answerer(self) -> str:
        """Who answered."""
        return str(self.record.get("answerer", self.folder.name))

    @cached_property
    def task(self) -> Task:
        """Its task, found again.

        Raises:
            PolyptychError: If its files are gone.
        """
        try:
            task = find_again(self.record.get("origin", {}))
            return with_recorded_replies(task, self.folder)
        except PolyptychError as error:
            raise PolyptychError(f"{self.folder / SCORES_FILE}: {error}") from error

    @cached_property
    def answers(self) -> Answers:
        """Its answers matched with the task's examples."""
        return read_answers(self.folder / PREDICTIONS_FILE, *load_examples(self.task))

    @cached_property
    def measurements(self) -> dict[str, Measurement]:
        """Metric to item statistics."""
        found = measure(self.task.scorers, self.answers.examples, self.answers.predictions)
        return {measured.name: measured for measured in found}

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Metric to value and interval, computed again."""
        clusters = image_clusters(self.answers.examples)
        seed = self.record.get("bootstrap", {}).get("seed", 0)
        return {
            name: estimate(measured, clusters=clusters, seed=seed)
            for name, measured in self.measurements.items()
        }


def read_run(folder: str | Path) -> dict[str, Result]:
    """All results below a folder by task name, in the order in which they were made.

    Raises:
        PolyptychError: If there is none, or two of one task.
    """
    paths = sorted(Path(folder).rglob(SCORES_FILE), key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, Result] = {}
    for path in paths:
        record = read_json(path)
        if not isinstance(record, dict) or "task" not in record or "scores" not in record:
            raise PolyptychError(f"{path}: not the scores of a run")
        result = Result(path.parent, record)
        earlier = found.setdefault(result.task_name, result)
        if earlier is not result:
            raise PolyptychError(
                f"{folder}: two results of {result.task_name}: {earlier.folder} and {path.parent}"
            )
    if not found:
        raise PolyptychError(f"{folder}: no run here (no {SCORES_FILE})")
    return found


def settings_text(record: Mapping[str, Any]) -> str:
    """Decoding settings in a few words: ``greedy, at most 128 tokens``."""
    settings = record.get("settings", {})
    ignored = set(record.get("settings_ignored", ()))
    parts = []
    if settings.get("do_sample"):
        parts.append(f"sampled at {settings.get('temperature')}, top_p {settings.get('top_p')}")
    elif settings.get("num_beams", 1) > 1:
        parts.append(f"{settings['num_beams']} beams")
    elif "do_sample" not in ignored:
        parts.append("greedy")
    if "max_new_tokens" not in ignored and "max_new_tokens" in settings:
        parts.append(f"at most {settings['max_new_tokens']} tokens")
    return ", ".join(parts) or "its own settings"
