"""AMBER (Wang et al. 2023): 1,004 images to describe, and 14,216 questions of yes or no about them.

    ROOT/data/query/query_all.json    [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe..."}]
    ROOT/data/query/query_generative.json, query_discriminative.json    its two parts
    ROOT/data/annotations.json        [{"id": 1, "type": "generative", "truth": ["sky"],
                                        "hallu": ["cloud"]}, {"id": 1005, "truth": "yes",
                                        "type": "discriminative-attribute-state"}]
    ROOT/data/relation.json           {"forest": ["tree", "bush"]}, the words that are looked for
    ROOT/data/safe_words.txt          words that are never counted as invented, one a line
    ROOT/image/AMBER_1.jpg            or images/; they come as an archive of their own

Queries are asked as they stand: nothing asks for a yes or a no but the question itself. Scores are
those of :mod:`polyptych.evaluation.scoring.amber_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.scorers import Scorer
from polyptych.evaluation.scoring.amber_files import (
    QUESTION_FLAVORS,
    AmberWords,
    description_scorer,
    question_scorer,
)
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks.llava_files import (
    LONG_SETTINGS,
    SHORT_SETTINGS,
    fail,
    identity_of,
    make_example,
    objects_in,
    required_file,
    text_of,
    texts_of,
)
from polyptych.schema import Example

Name = Literal["amber", "amber_generative", "amber_discriminative"]

QUERIES: dict[Name, str] = {
    "amber": "data/query/query_all.json",
    "amber_generative": "data/query/query_generative.json",
    "amber_discriminative": "data/query/query_discriminative.json",
}
ANNOTATIONS = "data/annotations.json"
ASSOCIATED = "data/relation.json"
SAFE_WORDS = "data/safe_words.txt"
IMAGES = ("image", "images")

GENERATIVE = "generative"
KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""Type of a question to its kind; state, number and action are the paper's attributes."""
_TRUTHS = {"yes": "Yes", "no": "No"}


def amber_task(name: Name, root: str | Path) -> Task:
    """Both parts or one of them.

    Raises:
        PolyptychError: For an unknown name, or missing or bad lists of words.
    """
    if name not in QUERIES:
        raise PolyptychError(f"no part {name!r} of AMBER; known: {', '.join(QUERIES)}")
    scorers: tuple[Scorer, ...] = ()
    if name != "amber_generative":
        scorers = tuple(question_scorer(flavor) for flavor in QUESTION_FLAVORS)
    if name != "amber_discriminative":
        scorers = (description_scorer(read_words(root)), *scorers)
    settings = SHORT_SETTINGS if name == "amber_discriminative" else LONG_SETTINGS
    return Task(name, lambda: read_amber(name, root), scorers, settings)


def read_words(root: str | Path) -> AmberWords:
    """The benchmark's lists of words.

    Raises:
        PolyptychError: For a missing or bad file.
    """
    path = required_file(root, ASSOCIATED)
    associated = read_json(path)
    if not isinstance(associated, dict):
        fail(str(path), "expected an object of lists of words by object")
    for name in associated:
        texts_of(associated, name, str(path))
    lines = required_file(root, SAFE_WORDS).read_text("utf-8").splitlines()
    return AmberWords(associated, frozenset(filter(None, map(str.strip, lines))))


def read_amber(name: Name, root: str | Path) -> list[Example]:
    """Read queries and their truths.

    Raises:
        PolyptychError: For a missing file, a query without a truth, an object that the list of
            words does not have, or a bad record.
    """
    path, known = required_file(root, ANNOTATIONS), read_words(root)
    truths: dict[str, dict[str, Any]] = {}
    for number, record in enumerate(objects_in(read_json(path), None, str(path))):
        with item():
            truths[identity_of(record, "id", f"{path} record {number}")] = record
    queries = required_file(root, QUERIES[name])
    images = next((d for d in (Path(root, i) for i in IMAGES) if d.is_dir()), Path(root, IMAGES[0]))
    examples: dict[str, Example] = {}
    for number, query in enumerate(objects_in(read_json(queries), None, str(queries))):
        with item():
            identity = identity_of(query, "id", f"{queries} record {number}")
            where = f"{queries} query {identity!r}"
            if identity in examples:
                fail(where, "this id occurs twice")
            if identity not in truths:
                fail(where, f"no truth in {path}")
            references, more = _truth(truths[identity], known, f"{path} record of id {identity!r}")
            image = text_of(query, "image", where)
            examples[identity] = make_example(
                identity,
                text_of(query, "query", where),
                str(images / image),
                where,
                references=references,
                metadata={"task": name, "image": image, **more},
            )
    if not examples:
        fail(str(queries), "no queries in it")
    return list(examples.values())


def _truth(
    record: Mapping[str, Any], words: AmberWords, where: str
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """References and metadata of one query."""
    kind = text_of(record, "type", where)
    if kind == GENERATIVE:
        objects, likely = texts_of(record, "truth", where), texts_of(record, "hallu", where)
        for word in (*objects, *likely):
            if word not in words.associated:
                fail(where, f"{word!r} is no object of {ASSOCIATED}")
        return (), {"kind": kind, "objects": objects, "likely": likely}
    if kind not in KINDS:
        fail(where, f"'type' {kind!r} is none of {GENERATIVE}, {', '.join(KINDS)}")
    truth = text_of(record, "truth", where)
    if truth not in _TRUTHS:
        fail(where, f"'truth' must be yes or no, got {truth!r}")
    return (_TRUTHS[truth],), {"kind": KINDS[kind]}
