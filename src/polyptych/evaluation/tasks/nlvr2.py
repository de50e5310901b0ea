"""NLVR2 (Suhr et al. 2019): is a sentence true of two photos? The public test set.

    ROOT/data/test1.json                  {"identifier": "test1-0-1-0", "sentence", "label": "True"}
    ROOT/images/test1/test1-0-1-img0.png  the left image of that pair; img1 is the right one

One object per line. The identifier is SPLIT-SET-PAIR-SENTENCE; a sentence stands beside up to four
pairs of its set, and consistency asks for all of them. The benchmark has no prompt: ours follows
the sentence with :data:`REQUEST`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyptych.data.records import parse_json, read_lines
from polyptych.evaluation.scoring.yes_no import statement_scorer
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.interleaving import interleaved_example, unique_examples
from polyptych.evaluation.tasks.llava_files import SHORT_SETTINGS, fail, required_file, text_of
from polyptych.schema import Example, ImageRef

QUESTIONS = "test1.json"
REQUEST = "\nIs this statement true of the two images? Answer yes or no."
_TRUTHS = {"true": "yes", "false": "no"}


def nlvr2_task(root: str | Path) -> Task:
    """Accuracy over pairs, and consistency over sentences."""
    return Task("nlvr2", lambda: read_nlvr2(root), (statement_scorer(),), SHORT_SETTINGS)


def read_nlvr2(root: str | Path) -> list[Example]:
    """Read sentences and labels.

    Raises:
        PolyptychError: For a bad line, an identifier of another form, or one that occurs twice.
    """
    path = required_file(root, f"data/{QUESTIONS}", QUESTIONS)
    images = next((d for d in _image_folders(root) if d.is_dir()), _image_folders(root)[0])
    examples = unique_examples(
        read_lines(path),
        lambda line, where: _example(parse_json(line, where), images, where),
        "identifier",
    )
    if not examples:
        fail(str(path), "no sentences in it")
    return examples


def _image_folders(root: str | Path) -> list[Path]:
    return [Path(root, "images", "test1"), Path(root, "test1")]


def _example(record: Any, images: Path, where: str) -> Example:
    if not isinstance(record, dict):
        fail(where, f"expected an object, got {type(record).__name__}")
    identity = text_of(record, "identifier", where)
    where = f"{where} (identifier {identity!r})"
    parts = identity.split("-")
    if len(parts) != 4:
        fail(where, "an identifier has the form SPLIT-SET-PAIR-SENTENCE")
    label = str(record.get("label")).lower()
    if label not in _TRUTHS:
        fail(where, f"'label' must be True or False, got {record.get('label')!r}")
    split, group, pair, sentence = parts
    return interleaved_example(
        identity,
        text_of(record, "sentence", where) + REQUEST,
        [ImageRef(str(images / f"{split}-{group}-{pair}-img{side}.png")) for side in (0, 1)],
        where,
        references=(_TRUTHS[label],),
        metadata={"task": "nlvr2", "sentence": f"{split}-{group}-{sentence}"},
    )
