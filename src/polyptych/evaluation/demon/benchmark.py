"""Running a model over DEMON: every task that is there, each a run of its own that can be resumed.

OUT/TASK/predictions.jsonl, OUT/TASK/scores.json   per task, by the usual runner
OUT/demon.json, OUT/demon.md                       the whole, and beside the published rows
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation import runner
from polyptych.evaluation.answering import Answerer
from polyptych.evaluation.demon.aggregation import Flavour, Summary, summarize
from polyptych.evaluation.demon.catalog import DATASETS, Split, datasets_of
from polyptych.evaluation.demon.loading import Order, dataset_file, read_dataset
from polyptych.evaluation.demon.report import to_markdown
from polyptych.evaluation.demon.scorer import FIXED, RELEASED, demon_scorer, released_crash
from polyptych.evaluation.faults import collected
from polyptych.evaluation.scorers import Estimate
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.files import write_aside
from polyptych.schema import Example

SUMMARY_FILE, REPORT_FILE = "demon.json", "demon.md"

SETTINGS = GenerationSettings(max_new_tokens=300, batch_size=8)
"""Greedy, so that numbers repeat; the published runs sampled (top_p 0.9) without a seed."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a folder has of DEMON, read and checked."""

    root: str
    """Its folder."""
    split: Split
    datasets: dict[str, list[Example]]
    """Task to its examples, in the benchmark's order."""
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_benchmark(
    root: str | Path, split: Split = "core", *, order: Order = "numbered"
) -> Benchmark:
    """Read all tasks of a split; those without a file are listed as missing.

    Everything is read before anything runs: a bad sample shows in seconds, not after hours. It is
    left out and named in the notes, with file and sample id.

    Raises:
        PolyptychError: For a bad file, or if no task is there at all.
    """
    wanted = datasets_of(split)
    missing = [d.name for d in wanted if dataset_file(root, d, split) is None]
    if len(missing) == len(wanted):
        raise PolyptychError(
            f"{root}: none of the {len(wanted)} tasks of DEMON is here "
            f"(looked for TASK/{split}/{split}.json)"
        )
    notes: list[str] = []
    with collected() as faults:
        datasets = {
            dataset.name: read_dataset(root, dataset.name, split, order=order, on_note=notes.append)
            for dataset in wanted
            if dataset.name not in missing
        }
    notes += [f"left out: {fault}" for fault in faults]
    return Benchmark(str(root), split, datasets, missing, [*notes, *_other_sizes(datasets, split)])


def _other_sizes(datasets: Mapping[str, Sequence[Example]], split: Split) -> list[str]:
    """One line if the data are not the published ones: then neither are the numbers."""
    others = [
        f"{name} {len(examples)} of {DATASETS[name].size(split)}"
        for name, examples in datasets.items()
        if len(examples) != DATASETS[name].size(split)
    ]
    if not others:
        return []
    return [f"not the sizes of DEMON-{split.title()}, so not its numbers: {', '.join(others)}"]


def demon_task(
    name: str, examples: Sequence[Example], settings: GenerationSettings = SETTINGS
) -> Task:
    """One task of the benchmark over its examples, judged in both flavours."""
    dataset = DATASETS[name]
    return Task(f"demon/{name}", lambda: examples, (demon_scorer(dataset),), settings)


def evaluate_demon(
    answerer: Answerer,
    benchmark: Benchmark,
    out: str | Path,
    *,
    settings: GenerationSettings = SETTINGS,
    name: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Summary:
    """Answer and score every task that is there.

    Args:
        answerer: Who answers, such as ``LocalModel(model, processor)``.
        benchmark: What :func:`read_benchmark` gave.
        out: Folder for answers and results; an interrupted run in it is taken up again.
        settings: Decoding of all tasks.
        name: What the report calls the model; default: its own name.
        seed: Of the bootstrap.
        progress: Show a bar per task, on a terminal.

    Raises:
        PolyptychError: If ``out`` holds a run with other settings, another model or other data.
    """
    out = Path(out)
    items: dict[Flavour, dict[str, list[float]]] = {"released": {}, "fixed": {}}
    notes = list(benchmark.notes)
    for dataset, examples in benchmark.datasets.items():
        task = replace(
            demon_task(dataset, examples, settings),
            origin={
                "task": f"demon/{dataset}",
                "data": os.path.abspath(benchmark.root),
                "split": benchmark.split,
            },
        )
        scores = runner.evaluate(answerer, task, out / dataset, seed=seed, progress=progress)
        found = {score.name: _item_values(score, examples) for score in scores}
        items["fixed"][dataset] = found[FIXED]
        if RELEASED in found:
            items["released"][dataset] = found[RELEASED]
        else:
            answers = runner.generate(
                answerer,
                examples,
                out / dataset / runner.PREDICTIONS_FILE,
                settings=settings,
                progress=False,
            )
            crash = released_crash(DATASETS[dataset], examples, answers)
            notes.append(f"the published scorer gives no score for {dataset}; it stops at {crash}")
    summary = summarize(
        items,
        model=name or answerer.name,
        split=benchmark.split,
        missing=benchmark.missing,
        notes=notes,
        seed=seed,
    )
    summary.save(out / SUMMARY_FILE)
    with write_aside(out / REPORT_FILE) as file:
        file.write(to_markdown(summary))
    return summary


def _item_values(score: Estimate, examples: Sequence[Example]) -> list[float]:
    values = score.per_item or {}
    return [values[example.id] for example in examples]
