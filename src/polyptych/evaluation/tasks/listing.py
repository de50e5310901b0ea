"""What ``polyptych tasks`` prints, and the samples it draws."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation.demon import sample as demon_sample
from polyptych.evaluation.demon.scorer import FIXED, RELEASED
from polyptych.evaluation.samples.writing import mark_drawn
from polyptych.evaluation.tasks.catalog import BENCHMARKS
from polyptych.evaluation.tasks.evidence import EVIDENCE
from polyptych.evaluation.tasks.finding import DEMON
from polyptych.evaluation.tasks.storybook import SCORERS

_SCORED = {
    "local": "here",
    "server": "by its server (evaluate writes the file), or here with its answers",
    "judge": "by a judge (evaluate --judge NAME)",
}


@dataclass(frozen=True, slots=True)
class Listed:
    """One task as it is shown."""

    name: str
    title: str
    metric: str
    flavors: tuple[str, ...]
    files: tuple[str, ...]
    license: str
    source: str
    scoring: str
    evidence: str = ""
    """Of files, prompt and licence; empty where the papers' own code documents them."""


def listed() -> list[Listed]:
    """All tasks: benchmarks, DEMON, and the drawn ones."""
    found = [
        Listed(
            b.name,
            b.title,
            b.metric,
            b.flavors,
            tuple(f"{b.folder or b.name}/{file}" for file in b.files),
            b.license,
            b.source,
            b.scoring,
            EVIDENCE.get(b.name, ""),
        )
        for b in BENCHMARKS.values()
    ]
    demon = Listed(
        DEMON,
        "DEMON: 31 tasks over several images",
        "rouge_l, accuracy",
        (RELEASED, FIXED),
        ("demon/TASK/core/core.json", "demon/TASK/core/images/"),
        "of each of its 29 data sets",
        "https://github.com/DCDmllm/Cheetah",
        "local",
    )
    drawn = [
        Listed(
            f"storybook/{name}",
            f"Storybook, {name.replace('_', ' ')} (drawn)",
            "accuracy" if name == "existence" else "cider, rouge_l, bleu",
            ("storybook", "coco"),
            (),
            "ours, Apache-2.0",
            "drawn when it is asked",
            "local",
        )
        for name in SCORERS
    ]
    return [*found, demon, *drawn]


def table() -> str:
    """One line per task: name, metric, who scores, title."""
    lines = [("task", "metric", "scored", "what")]
    lines += [(task.name, task.metric, task.scoring, task.title) for task in listed()]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[3]])
        for line in lines
    )


def describe(name: str) -> str:
    """Everything about one task.

    Raises:
        PolyptychError: For an unknown name.
    """
    tasks = {task.name: task for task in listed()}
    if name not in tasks:
        raise PolyptychError(f"no task {name!r}; known: {', '.join(tasks)}")
    task = tasks[name]
    fields = {
        "metric": task.metric,
        "flavors": ", ".join(task.flavors),
        "files": "\n         ".join(task.files) or "none",
        "licence": task.license,
        "source": task.source,
        "scored": _SCORED[task.scoring],
    }
    if task.evidence:
        fields["checked"] = textwrap.fill(task.evidence, 90, subsequent_indent=" " * 9)
    body = "\n".join(f"{key + ':':<9}{value}" for key, value in fields.items())
    return f"{task.name}: {task.title}\n{body}"


def make_samples(name: str, data: str | Path) -> Iterator[str]:
    """Draw the sample of one task, or of all that have one; a line for each.

    Args:
        name: A benchmark's name, ``demon``, or ``all``.
        data: Folder that holds, or will hold, the benchmarks' folders.

    Raises:
        PolyptychError: For a name that is none, or has no sample.
    """
    makers = {b.name: b.sample for b in BENCHMARKS.values() if b.sample is not None}
    folders = {b.name: b.folder or b.name for b in BENCHMARKS.values()}
    known = [*makers, DEMON]
    if name not in (*known, "all"):
        raise PolyptychError(f"no sample of {name!r}; there are: all, {', '.join(known)}")
    for chosen in known if name == "all" else [name]:
        folder = Path(data, folders.get(chosen, chosen))
        if chosen == DEMON:
            demon_sample.make_sample(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            makers[chosen](folder)
            mark_drawn(folder)
        yield f"{chosen}: {folder}"
