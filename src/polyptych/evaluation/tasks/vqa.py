"""VQAv2, OKVQA, VizWiz and TextVQA: short answers against ten human ones.

The question files are LLaVA's and CaMML's, the human answers those of the benchmarks. Test splits
have no public answers: without a file of answers the task has no scorer, and its predictions go to
the benchmark's server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scoring.vqa_accuracy import (
    FLAVORS,
    HUMANS,
    Flavor,
    textvqa_question,
    vqa_scorer,
)
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    SHORT_SETTINGS,
    Question,
    fail,
    first_existing,
    identity_of,
    image_path,
    make_example,
    objects_in,
    read_questions,
    required_file,
    text_of,
)
from polyptych.schema import Example

Key = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class VqaSet:
    """Where the files of one benchmark lie, relative to its folder."""

    name: str
    questions: str
    images: str
    answers: tuple[str, ...]
    """Files that may hold human answers; the first that exists is read."""
    list_key: str | None
    """Under which key of that file the list of answers is; None if it is the file."""
    flavors: tuple[Flavor, ...] = FLAVORS

    def key_of_question(self, question: Question) -> Key:
        """By what a question finds its human answers."""
        if self.name == "textvqa":  # there the id is the image's
            return question.id, textvqa_question(question.text)
        if self.name == "vizwiz":
            return question.image or fail(question.where, "no 'image'")
        return question.id

    def key_of_answers(self, record: Mapping[str, Any], where: str) -> Key:
        """The same of a record of human answers."""
        if self.name == "textvqa":
            return identity_of(record, "image_id", where), text_of(
                record, "question", where
            ).lower()
        return identity_of(record, "image" if self.name == "vizwiz" else "question_id", where)


SETS = {
    found.name: found
    for found in (
        VqaSet(
            "vqav2",
            "llava_vqav2_mscoco_test-dev2015.jsonl",
            "test2015",
            ("v2_mscoco_test-dev2015_annotations.json",),
            "annotations",
        ),
        VqaSet(
            "okvqa",
            "llava_okvqa_val.jsonl",
            "val2014",
            ("mscoco_val2014_annotations.json",),
            "annotations",
        ),
        VqaSet("vizwiz", "llava_test.jsonl", "test", ("test_annotations.json",), None),
        VqaSet(
            "textvqa",
            "llava_textvqa_val_v051_ocr.jsonl",
            "train_images",
            ("TextVQA_0.5.1_val.json",),
            "data",
        ),
    )
}


def vqa_task(name: str, root: str | Path) -> Task:
    """One of the four benchmarks.

    Args:
        name: Key of :data:`SETS`.
        root: The benchmark's folder, with the files that :data:`SETS` names.

    Raises:
        PolyptychError: For an unknown name.
    """
    if name not in SETS:
        raise PolyptychError(f"no VQA benchmark {name!r}; known: {', '.join(SETS)}")
    layout = SETS[name]
    scored = first_existing(root, *layout.answers) is not None
    scorers = tuple(vqa_scorer(flavor) for flavor in layout.flavors) if scored else ()
    return Task(name, lambda: read_vqa(layout, root), scorers, SHORT_SETTINGS)


def read_vqa(layout: VqaSet, root: str | Path) -> list[Example]:
    """Read questions and, where there are any, the ten human answers as references.

    In TextVQA's question file an id names the image, so that examples get the ids of the answers.

    Raises:
        PolyptychError: For a bad line, a question without answers or with fewer than ten; named
            with file and id.
    """
    path = required_file(root, layout.questions)
    answers_path = first_existing(root, *layout.answers)
    answers = _read_answers(layout, answers_path) if answers_path else None
    examples: dict[str, Example] = {}
    for question in read_questions(path, unique=layout.name != "textvqa"):
        with item():
            identity = question.id
            humans: tuple[str, ...] = ()
            if answers is not None:
                key = layout.key_of_question(question)
                if key not in answers:
                    fail(question.where, f"no human answers to it in {answers_path}")
                where = f"{answers_path} question {key!r}"
                if layout.name != "vizwiz":  # which has no ids of its own
                    identity = identity_of(answers[key], "question_id", where)
                humans = _humans(answers[key].get("answers"), where)
            if identity in examples:
                fail(question.where, f"this question occurs twice (as {identity!r})")
            examples[identity] = make_example(
                identity,
                question.text,
                image_path(Path(root, layout.images), question.image, question.where),
                question.where,
                references=humans,
                metadata={"task": layout.name, "image": question.image},
            )
    return list(examples.values())


def _read_answers(layout: VqaSet, path: Path) -> dict[Key, Mapping[str, Any]]:
    """Key of a question to the record of its human answers."""
    found: dict[Key, Mapping[str, Any]] = {}
    records = objects_in(read_json(path), layout.list_key, str(path))
    for number, record in enumerate(records):
        with item():
            key = layout.key_of_answers(record, f"{path} record {number}")
            if key in found:
                fail(f"{path} question {key!r}", "this question occurs twice")
            found[key] = record
    return found


def _humans(answers: Any, where: str) -> tuple[str, ...]:
    if not isinstance(answers, Sequence) or isinstance(answers, str):
        fail(where, "no list 'answers'")
    texts = tuple(
        text_of(item, "answer", where) if isinstance(item, Mapping) else str(item)
        for item in answers
    )
    if len(texts) != HUMANS:
        fail(where, f"{len(texts)} human answers, {HUMANS} are needed")
    return texts
