"""MuirBench (Wang et al. 2024): 2,600 questions of 12 tasks over several images, by options.

    ROOT/data/test-00000-of-00003.parquet    idx, task, image_relation, question, options, answer,
                                             image_list; ``<image>`` in question and options

Every question has a twin that cannot be answered, whose right option says so; the column
``counterpart_idx`` names it. The prompt is lmms-eval's; the benchmark's own code writes
"Question:", "Choices:" with "(A)", a hint and "Answer:", and draws an option where it finds none in
an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyptych.evaluation.scoring.choice import LETTERS, choice_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.interleaving import interleaved_example, lettered, unique_examples
from polyptych.evaluation.tasks.llava_files import (
    LETTER_ANSWER,
    SHORT_SETTINGS,
    fail,
    text_of,
    texts_of,
)
from polyptych.evaluation.tasks.parquet_files import image_of, parquet_parts, read_parquet
from polyptych.schema import Example

_COLUMNS = ("idx", "task", "image_relation", "question", "options", "answer", "image_list")


def muirbench_task(root: str | Path) -> Task:
    """Accuracy in all, and by task."""
    scorers = (choice_scorer("fixed", "kind"),)
    return Task("muirbench", lambda: read_muirbench(root), scorers, SHORT_SETTINGS)


def read_muirbench(root: str | Path) -> list[Example]:
    """Read all questions.

    Raises:
        PolyptychError: For a missing file or a bad row.
    """
    rows = read_parquet(parquet_parts(Path(root, "data"), "test"), _COLUMNS)
    return unique_examples(rows, _example, "idx")


def _example(row: Mapping[str, Any], where: str) -> Example:
    identity = str(row["idx"])
    where = f"{where} (idx {identity!r})"
    options, answer = texts_of(row, "options", where), text_of(row, "answer", where)
    if answer not in tuple(LETTERS[: len(options)]):
        fail(where, f"the answer {answer!r} is no letter of {len(options)} options")
    return interleaved_example(
        identity,
        text_of(row, "question", where) + lettered(options) + LETTER_ANSWER,
        [image_of(image, where) for image in row["image_list"] or ()],
        where,
        references=(answer,),
        choices=options,
        metadata={
            "task": "muirbench",
            "kind": text_of(row, "task", where),
            "relation": row["image_relation"],
        },
    )
