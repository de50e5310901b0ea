"""Mementos (Wang et al. 2024): what happens in a row of frames? Objects and behaviors are compared.

    ROOT/{dl,robo,cmc}_description.csv                       image and a human's description
    ROOT/sym_graphs/{dl,robo,cmc}_{object,action}_graph_v1.pkl    synonyms; .json is read, too
    ROOT/images/{dl,robo,cmc}/NAME                           frames side by side in one picture

Daily life, robotics and comics; a file that is absent is left out. The tables call their columns
``image_name`` or ``image``, and ``description`` or ``gt_description``. The benchmark publishes its
pictures without a fixed folder: they may also lie in ``images/`` or in ROOT itself.

A judge extracts the keywords of both descriptions; :mod:`polyptych.evaluation.scoring.keywords`
compares them, in its two flavors. Metrics are the means over images of ``object_f1``,
``object_recall``, ``object_precision`` and of ``behavior_...``, over all and by domain
(``object_f1.dl``). A reply whose lists cannot be read is left out. Ids are DOMAIN/NAME.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation.faults import item
from polyptych.evaluation.judge import Judging
from polyptych.evaluation.scorers import Measurement, mean_of
from polyptych.evaluation.scoring.keywords import (
    FLAVORS,
    KINDS,
    Flavor,
    Graph,
    Kind,
    Overlap,
    compare_lists,
    read_graph,
    read_lists,
)
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks.llava_files import (
    LONG_SETTINGS,
    fail,
    first_existing,
    make_example,
    required_file,
)
from polyptych.schema import Example, Prediction

DOMAINS = {"dl": "daily life", "robo": "robotics", "cmc": "comics"}
REQUEST = "These are the frames of a sequence, in order. Describe what happens in it."
"""Ours; the benchmark does not fix one."""

_NAMES: dict[Kind, str] = {"object": "object", "action": "behavior"}
_COLUMNS = (("image_name", "image"), ("description", "gt_description"))

_PROMPT = """\
Below are two paragraphs about the same sequence of pictures: the first was written by a human, \
the second by a model. Extract the objects and the actions of each.
- Objects are things that can be touched, in one or two words.
- Actions are what those objects do, in the base form of the verb.
- Where the two paragraphs use different words for the same thing or action, use the same word in \
all lists.
Reply with four lines in exactly this form and nothing else:
Object list 1: [boy, kite, tree]
Action list 1: [run, pull string, look up]
Object list 2: [boy, kite]
Action list 2: [run, wave]

Paragraph 1: {human}
Paragraph 2: {model}"""


def mementos_task(root: str | Path) -> Task:
    """The task over its folder; it is judged."""
    judging = Judging(
        keywords_prompt,
        lambda reply: read_lists(reply, "fixed") is not None,
        lambda examples, replies: _measure(root, examples, replies),
        GenerationSettings(max_new_tokens=1000),
    )
    return Task("mementos", lambda: read_mementos(root), (), LONG_SETTINGS, judging=judging)


def read_mementos(root: str | Path) -> list[Example]:
    """The sequences of all domains; the human's description is the reference.

    Raises:
        PolyptychError: If there is no table, or for one without its columns or with an empty cell.
    """
    examples: dict[str, Example] = {}
    for domain in DOMAINS:
        path = first_existing(root, f"{domain}_description.csv")
        for where, name, description in _rows(path) if path else ():
            with item():
                identity = f"{domain}/{name}"
                if not name or not description:
                    fail(where, "no name of an image, or no description")
                if identity in examples:
                    fail(where, f"image {name!r} occurs twice")
                examples[identity] = make_example(
                    identity,
                    REQUEST,
                    str(_image(root, domain, name)),
                    where,
                    references=(description,),
                    metadata={"task": "mementos", "image": identity, "category": domain},
                )
    if not examples:
        names = ", ".join(f"{domain}_description.csv" for domain in DOMAINS)
        raise PolyptychError(f"{root}: none of {names}")
    return list(examples.values())


def _rows(path: Path) -> list[tuple[str, str, str]]:
    """Place, image and description of every row."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            known = table.fieldnames or ()
            columns = [next((c for c in names if c in known), None) for names in _COLUMNS]
            rows = [(f"{path} line {table.line_num}", row) for row in table]
    except OSError as error:
        raise PolyptychError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise PolyptychError(f"{path}: not a table of UTF-8 text: {error}") from error
    image, description = columns
    if image is None or description is None:
        fail(str(path), f"columns are {', '.join(known)}; an image and a description are needed")
    return [(where, row[image], row[description]) for where, row in rows]


def _image(root: str | Path, domain: str, name: str) -> Path:
    usual = Path(root, "images", domain, name)
    others = (usual, Path(root, "images", name), Path(root, name))
    return next((path for path in others if path.exists()), usual)


def keywords_prompt(example: Example, prediction: Prediction) -> str:
    """What the judge is asked."""
    human, model = (" ".join(t.split()) for t in (example.references[0], prediction.text))
    return _PROMPT.format(human=human, model=model)


def _measure(
    root: str | Path, examples: Sequence[Example], replies: Sequence[str]
) -> list[Measurement]:
    graphs = cache(lambda domain, kind: _graph(root, domain, kind))
    ids = [example.id for example in examples]
    domains = [str(example.metadata["category"]) for example in examples]
    measured = []
    for flavor in FLAVORS:
        for kind in KINDS:
            found = [
                _overlap(reply, graphs(domain, kind), kind, flavor)
                for reply, domain in zip(replies, domains, strict=True)
            ]
            for field in ("f1", "recall", "precision"):
                values = [None if o is None else getattr(o, field) for o in found]
                measured += _means(f"{_NAMES[kind]}_{field}", flavor, ids, values, domains)
    return measured


def _overlap(reply: str, graph: Graph, kind: Kind, flavor: Flavor) -> Overlap | None:
    lists = read_lists(reply, flavor)
    return None if lists is None else compare_lists(lists, graph, kind, flavor)


def _means(
    stem: str,
    flavor: Flavor,
    ids: Sequence[str],
    values: Sequence[float | None],
    domains: Sequence[str],
) -> list[Measurement]:
    """Over all images, and over those of each domain."""
    pairs = list(zip(values, domains, strict=True))
    measured = [mean_of(f"{stem}[{flavor}]", ids, values)]
    for domain in dict.fromkeys(domains):
        inside = [value if own == domain else None for value, own in pairs]
        measured.append(mean_of(f"{stem}.{domain}[{flavor}]", ids, inside))
    return measured


def _graph(root: str | Path, domain: str, kind: Kind) -> Graph:
    stem = f"sym_graphs/{domain}_{kind}_graph_v1"
    return read_graph(required_file(root, f"{stem}.json", f"{stem}.pkl"))
