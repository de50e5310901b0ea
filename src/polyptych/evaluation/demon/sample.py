"""A small DEMON of drawn pictures, in exactly the published folder layout, to run it offline.

It has the form of the benchmark, not its difficulty: numbers on it are not DEMON numbers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.catalog import DATASETS, Split, datasets_of, find_dataset
from polyptych.evaluation.demon.sample_tasks import SAMPLE_TASKS, Sample, SampleTask
from polyptych.files import write_aside

PER_TASK = 20
"""Samples of each task, if nothing else is said."""


def make_sample(
    out_dir: str | Path,
    *,
    per_task: int = PER_TASK,
    seed: int = 0,
    split: Split = "core",
    tasks: Iterable[str] | None = None,
) -> Path:
    """Draw a set and write ``TASK/core/core.json`` and ``TASK/core/images/*.png``.

    Args:
        out_dir: Folder for the tasks; made if missing.
        per_task: Samples of each task.
        seed: Another seed draws another set.
        split: Under which name it is written.
        tasks: Some of the tasks that can be drawn; default: all, at least one per category.

    Returns:
        ``out_dir``, the root to evaluate on.

    Raises:
        PolyptychError: For a task that cannot be drawn, or when the system refuses to write.
    """
    datasets_of(split)
    if per_task < 1:
        raise PolyptychError(f"per_task must be at least 1, got {per_task}")
    names = [find_dataset(name).name for name in tasks] if tasks else list(SAMPLE_TASKS)
    for name in names:
        if name not in SAMPLE_TASKS:
            known = ", ".join(SAMPLE_TASKS)
            raise PolyptychError(f"no drawn samples of DEMON task {name!r}; known: {known}")
    for name in names:
        _write_task(Path(out_dir, name, split), name, SAMPLE_TASKS[name], per_task, seed)
    return Path(out_dir)


def _write_task(folder: Path, name: str, task: SampleTask, count: int, seed: int) -> None:
    data = []
    for index in range(count):
        rng = random.Random(f"demon/{name}/{seed}/{index}")
        sample = task.make(rng)
        template = rng.randrange(len(task.instructions))
        data.append(_record(folder, index, template, sample))
    rule = DATASETS[name].rule
    content = {
        "metadata": {
            "dataset": name,
            "split": folder.name,
            "num_sample": count,
            "task_instruction": task.instructions,
            "question_type": "open-ended" if rule == "rouge_l" else "multi-choice",
        },
        "data": data,
    }
    with write_aside(folder / f"{folder.name}.json") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)


def _record(folder: Path, index: int, template: int, sample: Sample) -> dict[str, object]:
    names = []
    for number, picture in enumerate(sample.pictures):
        names.append(f"{index}_{number}.png")
        with write_aside(folder / "images" / names[-1], binary=True) as file:
            picture.save(file, "PNG", compress_level=1)
    instance: dict[str, object] = {"context": sample.context, "images_path": names}
    if sample.choices is not None:
        instance["choice_list"] = sample.choices
    return {
        "sample_id": index,
        "task_instruction_id": template,
        "task_instance": instance,
        "response": sample.response,
    }
