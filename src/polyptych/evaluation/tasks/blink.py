"""BLINK (Fu et al. 2024): 14 tasks of perception over one to four images, by options.

    ROOT/Counting/val-00000-of-00001.parquet    idx, sub_task, prompt, image_1 ... image_4, choices,
                                                answer ("(A)"; "hidden" in the test split)

The column ``prompt`` holds question and options; all images stand first. The benchmark asks for
nothing more and reads long answers with GPT-3.5; here the prompt ends with LLaVA's request for a
letter, and answers are read by rules. The benchmark's overall number is the mean over its tasks,
``mean_accuracy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Scorer
from polyptych.evaluation.scoring.choice import LETTERS, grouped_choice_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.interleaving import interleaved_example, unique_examples
from polyptych.evaluation.tasks.llava_files import (
    LETTER_ANSWER,
    SHORT_SETTINGS,
    fail,
    text_of,
    texts_of,
)
from polyptych.evaluation.tasks.parquet_files import image_of, parquet_parts, read_parquet
from polyptych.schema import Example

Name = Literal["blink", "blink_test"]

SPLITS: dict[Name, str] = {"blink": "val", "blink_test": "test"}
SUB_TASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)
_IMAGES = ("image_1", "image_2", "image_3", "image_4")
_HIDDEN = "hidden"


def blink_task(name: Name, root: str | Path) -> Task:
    """The validation or the test split; answers of the latter are with the benchmark's server.

    Raises:
        PolyptychError: For an unknown name.
    """
    if name not in SPLITS:
        raise PolyptychError(f"no BLINK split {name!r}; known: {', '.join(SPLITS)}")
    scorers: tuple[Scorer, ...] = ()
    if name == "blink":
        scorers = (grouped_choice_scorer("fixed", "sub_task"),)
    return Task(name, lambda: read_blink(name, root), scorers, SHORT_SETTINGS)


def read_blink(name: Name, root: str | Path) -> list[Example]:
    """Read all tasks that lie in the folder.

    Raises:
        PolyptychError: If there is none, or for a bad row.
    """
    columns = ("idx", "sub_task", "prompt", "choices", "answer", *_IMAGES)
    folders = [folder for task in SUB_TASKS if (folder := Path(root, task)).is_dir()]
    if not folders:
        raise PolyptychError(f"{root}: none of BLINK's folders there, such as {SUB_TASKS[0]}")
    parts = [part for folder in folders for part in parquet_parts(folder, SPLITS[name])]
    rows = read_parquet(parts, columns)
    return unique_examples(rows, lambda row, where: _example(name, row, where), "idx")


def _example(name: Name, row: Mapping[str, Any], where: str) -> Example:
    identity = text_of(row, "idx", where)
    where = f"{where} (idx {identity!r})"
    choices = texts_of(row, "choices", where)
    answer = text_of(row, "answer", where).strip("() ")
    if answer != _HIDDEN and answer not in tuple(LETTERS[: len(choices)]):
        fail(where, f"the answer {answer!r} is no letter of {len(choices)} options")
    return interleaved_example(
        identity,
        text_of(row, "prompt", where) + LETTER_ANSWER,
        [image_of(row[column], where) for column in _IMAGES if row[column] is not None],
        where,
        references=() if answer == _HIDDEN else (answer,),
        choices=choices,
        metadata={"task": name, "sub_task": text_of(row, "sub_task", where)},
    )
