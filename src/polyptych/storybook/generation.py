"""Making sets of Storybook examples, in memory or on disk, each example by its index alone."""

from __future__ import annotations

import inspect
import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageRef
from polyptych.storybook.rendering import draw
from polyptych.storybook.tasks import RECORD_ROLES, TASKS
from polyptych.storybook.tasks.base import StoryExample
from polyptych.storybook.vocabulary import Split

IMAGE_SIZE = 96
"""Width and height of a written picture in pixels."""

RECORDS_FILE = "records.jsonl"


def make_examples(
    task: str, *, count: int, split: str, seed: int, start: int = 0, **options: Any
) -> Iterator[StoryExample]:
    """Draws examples ``start`` to ``start + count - 1``, the same for the same arguments.

    Args:
        task: Key of :data:`~polyptych.storybook.tasks.TASKS`.
        count: How many.
        split: ``train``, ``validation`` or ``test``: whose compositions they show.
        seed: Another seed gives another set.
        start: Index of the first one; no earlier example has to be drawn for it.
        **options: Passed to the task's ``make_example``.

    Raises:
        PolyptychError: At once for an unknown task, split or option; when an example is asked for,
            if the options leave no way to draw it.
    """
    _check_request(task, split, options)
    checked = cast(Split, split)
    return (
        replace(
            _make_example(task, index, split=checked, seed=seed, options=options),
            id=f"{task}-{split}-{seed}-{index:06d}",
        )
        for index in range(start, start + count)
    )


def _check_request(task: str, split: str, options: Iterable[str]) -> None:
    if task not in TASKS:
        raise PolyptychError(f"unknown Storybook task {task!r}; known: {', '.join(TASKS)}")
    if split not in get_args(Split):
        raise PolyptychError(f"unknown split {split!r}; known: {', '.join(get_args(Split))}")
    parameters = inspect.signature(TASKS[task]).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise PolyptychError(
                f"Storybook task {task!r} has no option {option!r}; known: {', '.join(known)}"
            )


def _make_example(
    task: str, index: int, *, split: Split, seed: int, options: dict[str, Any]
) -> StoryExample:
    """Example ``index``; where records come in pairs, both draw from one stream of chance."""
    roles = RECORD_ROLES.get(task, ())
    if roles:
        options = {"role": roles[index % len(roles)], **options}
    draw = index // max(1, len(roles))
    return TASKS[task](random.Random(f"{task}/{split}/{seed}/{draw}"), split, **options)


def to_example(story: StoryExample, size: int = IMAGE_SIZE) -> Example:
    """Draws the scenes and gives the example that the rest of the package reads.

    Args:
        story: What a task made.
        size: Width and height of the images (PNG) in pixels.
    """
    images = []
    for scene in story.scenes:
        buffer = io.BytesIO()
        draw(scene, size).save(buffer, format="PNG", compress_level=1)
        images.append(ImageRef(data=buffer.getvalue()))
    return Example(
        id=story.id,
        messages=story.messages,
        images=tuple(images),
        references=story.references,
        metadata=story.metadata,
    )


def write_dataset(
    task: str,
    out_dir: str | Path,
    *,
    count: int,
    split: str,
    seed: int,
    size: int = IMAGE_SIZE,
    **options: Any,
) -> Path:
    """Draws a set and writes ``records.jsonl`` (native format) and ``images/*.png``.

    Args:
        task: Key of :data:`~polyptych.storybook.tasks.TASKS`.
        out_dir: Folder for both; made if missing.
        count: Number of records.
        split: Split whose compositions they show.
        seed: Another seed gives another set.
        size: Width and height of the images in pixels.
        **options: Passed to the task's ``make_example``.

    Returns:
        The path of ``records.jsonl``.

    Raises:
        PolyptychError: For an unknown task, split or option (then no folder is made), or when the
            system refuses to write.
    """
    path = Path(out_dir) / RECORDS_FILE
    stories = make_examples(task, count=count, split=split, seed=seed, **options)
    write_records(path, (to_example(story, size) for story in stories))
    return path
