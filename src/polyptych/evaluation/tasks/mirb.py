"""MIRB (Zhao et al. 2024): eleven sets of questions over several images, in four groups.

    ROOT/count.json        [{"questions": "...", "answers": 3, "images": ["images/count/1.jpg"]}]
    ROOT/images/...        one such file for each set

The instruction of its set stands first, then the images, then the question, as the benchmark asks
LLaVA, which reads "Answer:" at the end besides. Scores are those of its script: an answer counts up
to its first line break or period, as a number, a yes, or the same letters; ``mean_accuracy`` is the
mean over the groups of the mean over their sets. Where options are asked for, the script takes the
likeliest of the letters A to E of models whose probabilities it has; here, as for others, what the
model writes. The set's further files (``count_concat.json``, ``arxiv_text.json``) are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyptych.data.records import IMAGE_TOKEN, read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scorers import Measurement, mean_of
from polyptych.evaluation.scoring.groups import by_group, mean_over_groups
from polyptych.evaluation.scoring.short_answer import (
    first_number,
    first_sentence,
    only_reference,
)
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks.interleaving import interleaved_example
from polyptych.evaluation.tasks.llava_files import (
    fail,
    objects_in,
    text_of,
    texts_of,
)
from polyptych.schema import Example, ImageRef, Prediction

GROUPS = {
    "knowledge": ("food", "sightseeing"),
    "reasoning": ("codeu", "plot_code", "analogy", "3d_scene"),
    "perception": ("image_jigsaw", "count", "attribute"),
    "multi_hop": ("visual_chain", "arxiv"),
}
"""Group to its sets, whose names are those of the files."""

GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

_WORD = "Answer with a single word."
_OPTION = "Answer with the option symbol."
INSTRUCTIONS = {
    **dict.fromkeys(("analogy", "attribute", "plot_code", "visual_chain", "sightseeing"), _WORD),
    **dict.fromkeys(("codeu", "food", "image_jigsaw"), _OPTION),
    "arxiv": "Answer with the paper title.",
    "count": "Answer with a single number.",
    "3d_scene": "The following images are different views of the same 3D scene. "
    "Answer with a single number.",
}
_YES_NO = frozenset({"analogy", "attribute"})
_NUMBERS = frozenset({"count", "visual_chain", "3d_scene"})
_CONTAINED = "sightseeing"

SETTINGS = GenerationSettings(max_new_tokens=15)
"""As published, greedy."""


def mirb_task(root: str | Path) -> Task:
    """The mean over groups, over all questions, and by set."""
    return Task("mirb", lambda: read_mirb(root), (score_mirb,), SETTINGS)


def is_right(name: str, answer: str, truth: str) -> bool:
    """Whether an answer of one set is right, as the benchmark's script has it.

    Where the truth is yes or no, an answer without a yes in it means no.
    """
    said, truth = first_sentence(answer).lower(), truth.lower()
    if truth in ("yes", "no") and (name in _YES_NO or name == _CONTAINED):
        return ("yes" in said) == (truth == "yes")
    if name in _YES_NO:
        return False
    if name == _CONTAINED:
        return truth in said
    return (first_number(said) if name in _NUMBERS else said) == truth


def score_mirb(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
    """``mean_accuracy[released]``, ``accuracy[released]``, and the accuracy of every set."""
    ids = [example.id for example in examples]
    sets = [str(example.metadata["set"]) for example in examples]
    values = [
        is_right(name, prediction.text, only_reference(example))
        for name, example, prediction in zip(sets, examples, predictions, strict=True)
    ]
    return [
        mean_over_groups("mean_accuracy[released]", ids, values, sets, weights(sets)),
        mean_of("accuracy[released]", ids, values),
        *by_group("accuracy", "released", ids, values, sets),
    ]


def weights(names: Iterable[str]) -> dict[str, float]:
    """Of each set that is there in the mean over groups: its group's sets share the weight 1."""
    present = set(names)
    return {name: 1 / len(present.intersection(GROUPS[GROUP_OF[name]])) for name in sorted(present)}


def read_mirb(root: str | Path) -> list[Example]:
    """Read all sets that lie in the folder; ids are SET-NUMBER.

    Raises:
        PolyptychError: If there is none, or for a bad record.
    """
    examples = []
    for name in INSTRUCTIONS:
        path = Path(root, f"{name}.json")
        if path.is_file():
            records = objects_in(read_json(path), None, str(path))
            for number, record in enumerate(records):
                with item():
                    where = f"{path} record {number}"
                    examples.append(_example(name, number, record, Path(root), where))
    if not examples:
        raise PolyptychError(f"{root}: none of MIRB's files there, such as count.json")
    return examples


def _example(name: str, number: int, record: Mapping[str, Any], root: Path, where: str) -> Example:
    answer = record.get("answers")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        fail(where, f"'answers' must be a text or a number, got {answer!r}")
    paths = record.get("images")
    images = [paths] if isinstance(paths, str) else texts_of(record, "images", where)
    question = text_of(record, "questions", where)
    return interleaved_example(
        f"{name}-{number}",
        f"{INSTRUCTIONS[name]}\n{IMAGE_TOKEN * len(images)}\n{question}",
        [ImageRef(path=str(root / image)) for image in images],
        where,
        references=(str(answer),),
        metadata={"task": "mirb", "set": name, "group": GROUP_OF[name]},
    )
