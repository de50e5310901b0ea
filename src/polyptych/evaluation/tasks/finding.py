"""From a word to a task: the benchmarks' names, ``storybook/NAME``, ``demon/NAME``, or files.

A task remembers in ``origin`` how it was found, so that a run can be judged again later:

    task = find_task("pope", data="DATA")
    find_again(task.origin)                 # the same task
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyptych.data.readers import read_examples
from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.benchmark import demon_task
from polyptych.evaluation.demon.catalog import DATASETS
from polyptych.evaluation.demon.loading import read_dataset
from polyptych.evaluation.samples.writing import is_drawn
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks import storybook
from polyptych.evaluation.tasks.catalog import BENCHMARKS, load_task

DEMON = "demon"
STORYBOOK_COUNT = 200
"""Examples that are drawn of a Storybook task."""


def task_names() -> list[str]:
    """All names, in the order of tables; ``demon`` stands for its tasks."""
    return [*BENCHMARKS, *(f"storybook/{name}" for name in storybook.SCORERS), DEMON]


def is_task_name(word: str) -> bool:
    """Whether a word names a task, and no file or folder is called so."""
    family = word.partition("/")[0]
    named = word in BENCHMARKS or family in ("storybook", DEMON)
    return named and not Path(word).exists()


def find_task(
    word: str,
    *,
    data: str | Path | None = None,
    count: int = STORYBOOK_COUNT,
    split: str = "core",
) -> Task:
    """The task that a word names.

    Args:
        word: A benchmark's name, ``storybook/NAME``, ``demon/NAME``, or a file or folder of
            examples with references, which are judged as captions.
        data: Folder that holds the benchmarks' folders.
        count: Examples to draw (Storybook only).
        split: ``core`` or ``full`` (DEMON only).

    Raises:
        PolyptychError: For an unknown name or missing files.
    """
    family, _, rest = word.partition("/")
    if not is_task_name(word):
        if not Path(word).exists():
            raise PolyptychError(
                f"no task, file or folder {word!r}; tasks: {', '.join(task_names())}"
            )
        # The user's own set is strict: it can be mended, and `data check` lists all that is wrong.
        task = Task(Path(word).name, lambda: read_examples(word), (storybook.CAPTIONS,))
        return replace(task, origin={"task": os.path.abspath(word)})
    if family == "storybook":
        task = storybook.storybook_task(rest, count=count)
        return replace(task, origin={"task": word, "count": count})
    if data is None:
        raise PolyptychError(f"{word} needs --data DIR, the folder that holds its files")
    origin: dict[str, Any] = {"task": word, "data": os.path.abspath(data)}
    if family == DEMON:
        return replace(_demon(rest, demon_root(data), split), origin={**origin, "split": split})
    if is_drawn(BENCHMARKS[word].root(data)):
        origin["drawn"] = True
    return replace(load_task(word, data), origin=origin)


def find_again(origin: Mapping[str, Any]) -> Task:
    """The task that an earlier one's ``origin`` tells of.

    Raises:
        PolyptychError: If it tells of none, or its files are gone.
    """
    if "task" not in origin:
        raise PolyptychError("this run does not say where its task came from")
    known = ("data", "count", "split")
    return find_task(origin["task"], **{name: origin[name] for name in known if name in origin})


def demon_root(data: str | Path) -> Path:
    """DEMON's folder: ``demon`` below the data, or else the folder of data itself."""
    below = Path(data, DEMON)
    return below if below.is_dir() else Path(data)


def _demon(name: str, root: Path, split: Any) -> Task:
    if name not in DATASETS:
        raise PolyptychError(f"no task {name!r} of DEMON; known: {', '.join(DATASETS)}")
    return replace(demon_task(name, ()), load=lambda: read_dataset(root, name, split))
