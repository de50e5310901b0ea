"""The six test sets of SAM (Semantic Alignment): group captioning and storytelling.

    ROOT/annotations.json    [{"id", "img_list", "instruction", "output"}]
    ROOT/images/...          as ``img_list`` names them

:mod:`polyptych.data.readers.sam` reads them. Scores are those of the paper's script; its flavor
``sam`` has no tokenizer, so values differ from the COCO ones under the same names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from polyptych.data.readers.sam import SAM_SETS, read_sam
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import on_error
from polyptych.evaluation.scorers import caption_scorer
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.schema import Example

NAMES = {f"sam_{folder.lower()}": folder for folder in SAM_SETS}
"""Name of the task to the name of its folder."""

SETTINGS = GenerationSettings(num_beams=5, max_new_tokens=255, repetition_penalty=1.5)
"""The released decoding; its ``max_length`` of 256 counts one token before the answer."""


def sam_task(name: str, root: str | Path) -> Task:
    """One of the six sets.

    Args:
        name: Key of :data:`NAMES`.
        root: The set's own folder.

    Raises:
        PolyptychError: For an unknown name.
    """
    if name not in NAMES:
        raise PolyptychError(f"no set {name!r} of SAM; known: {', '.join(NAMES)}")
    scorers = (caption_scorer("rouge_l[sam]", "cider[sam]", "bleu_4[sam]"),)
    return Task(name, lambda: read_sam_set(name, root), scorers, SETTINGS)


def read_sam_set(name: str, root: str | Path) -> list[Example]:
    """Read one set.

    Raises:
        PolyptychError: For a bad record, or none.
    """
    examples = [
        replace(example, metadata={**example.metadata, "task": name})
        for example in read_sam(root, on_error=on_error())
    ]
    if not examples:
        raise PolyptychError(f"{root}: no records in it")
    return examples
