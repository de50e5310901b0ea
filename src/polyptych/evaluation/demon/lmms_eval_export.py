"""DEMON as a task folder of lmms-eval, which does not have it.

    polyptych demon lmms-eval tasks/demon --root DEMON
    lmms-eval --include_path tasks/demon --tasks demon --model ...

Nothing of lmms-eval is imported here: the folder is YAML, JSON lines and one Python file that calls
this package's scorers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from polyptych.data.records import IMAGE_TOKEN
from polyptych.evaluation.demon.benchmark import Benchmark
from polyptych.evaluation.demon.catalog import CATEGORIES, DATASETS, Split, datasets_of
from polyptych.evaluation.task import prompt_text
from polyptych.files import write_aside
from polyptych.schema import Example

_COPIED = ("utils.py", "_demon_yaml")


def write_lmms_eval(
    out_dir: str | Path, benchmark: Benchmark | None = None, split: Split = "core"
) -> list[str]:
    """Write the task folder.

    Args:
        out_dir: Folder for ``--include_path``; made if missing.
        benchmark: Data to write beside the tasks; without it the tasks of ``split`` are written
            and their data files, ``data/TASK.jsonl``, are still to come.
        split: Which tasks, if there are no data.

    Returns:
        Names of the lmms-eval tasks; ``demon`` and one name per category are groups of them.
    """
    out = Path(out_dir).resolve()
    resources = files("polyptych.evaluation.demon.lmms_eval_task")
    for name in _COPIED:
        _write(out / name, resources.joinpath(name).read_text(encoding="utf-8"))
    datasets = list(benchmark.datasets) if benchmark else [d.name for d in datasets_of(split)]
    for dataset in datasets:
        data = out / "data" / f"{dataset}.jsonl"
        if benchmark:
            _write(data, "".join(_line(e) for e in benchmark.datasets[dataset]))
        _write(out / f"{task_name(dataset)}.yaml", _task_yaml(dataset, data))
    for category in CATEGORIES:
        members = [name for name in datasets if DATASETS[name].category == category]
        if members:
            _write_group(out, _slug(f"demon_{category}"), map(task_name, members))
    tasks = [task_name(name) for name in datasets]
    _write_group(out, "demon", tasks)
    return tasks


def task_name(dataset: str) -> str:
    """Name of a task in lmms-eval: ``Spot-the-Diff`` is ``demon_spot_the_diff``."""
    return _slug(f"demon_{dataset}")


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text).lower()


def _task_yaml(dataset: str, data: Path) -> str:
    return (
        f"include: _demon_yaml\ntask: {task_name(dataset)}\ndataset_kwargs:\n  data_files:\n"
        f"    test: {json.dumps(str(data), ensure_ascii=False)}\n"
    )


def _write_group(out: Path, group: str, tasks: Iterable[str]) -> None:
    lines = "".join(f"  - {task}\n" for task in tasks)
    _write(out / f"{group}.yaml", f"group: {group}\ntask:\n{lines}")


def _line(example: Example) -> str:
    document = {
        "id": example.id,
        "task": example.metadata["task"],
        "prompt": prompt_text(example.prompt, IMAGE_TOKEN),
        "images": [str(Path(image.path or "").resolve()) for image in example.images],
        "answer": example.references[0],
        "choices": list(example.choices),
    }
    return json.dumps(document, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    with write_aside(path) as file:
        file.write(text)
