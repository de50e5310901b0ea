"""Keyword matching (Mementos, Wang et al. 2024): what of a human's objects and actions is told?

A judge extracts two lists of objects and two of actions from a human and a model's description.
Words of the model are replaced by synonymous words of the human, and compared as sets.

Flavors:

- ``released``: the published notebook. When all of the human's words are used up, what remains of
  the model's list counts as *one* wrong word, so that precision is too high. Empty lists hold the
  empty word.
- ``fixed``: every remaining word counts; empty words do not; lists are also read where a reply has
  other blanks or text around them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError

Flavor = Literal["released", "fixed"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

Graph = Mapping[str, Mapping[str, Sequence[str]]]
"""First word to second word ("" for none) to the words that they are synonyms of."""

Kind = Literal["object", "action"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LIST = re.compile(r"(object|action) list ([12])\s*:\s*\[([^\]\n]*)\]", re.IGNORECASE)
_REST = "\0all remaining words"
"""Stands for the notebook's one generator; no word is equal to it."""


class Overlap(NamedTuple):
    """How two sets of words agree, 0 where there is nothing to divide by."""

    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, slots=True)
class KeywordLists:
    """What the judge extracted: words of the human and of the model, by kind."""

    human: Mapping[Kind, Sequence[str]]
    model: Mapping[Kind, Sequence[str]]


def read_lists(reply: str, flavor: Flavor) -> KeywordLists | None:
    """The four lists of a judge's reply, or None if they cannot be read.

    ``Object list 1: [dog, toy]``, then ``Action list 1``, ``Object list 2`` and ``Action list 2``.
    """
    found = _released_lists(reply) if flavor == "released" else _fixed_lists(reply)
    if found is None or any((kind, side) not in found for kind in KINDS for side in "12"):
        return None
    human, model = ({kind: found[kind, side] for kind in KINDS} for side in "12")
    return KeywordLists(human, model)


def _fixed_lists(reply: str) -> dict[tuple[str, str], list[str]]:
    found = {}
    for kind, side, inside in _LIST.findall(reply):
        words = [word.strip().lower() for word in inside.split(",")]
        found[kind.lower(), side] = [word for word in words if word]
    return found


def _released_lists(reply: str) -> dict[tuple[str, str], list[str]] | None:
    """Every line that is not empty must be ``KEY: [WORDS]``; a second colon and blank breaks it."""
    found = {}
    for line in filter(None, reply.strip().split("\n")):
        parts = line.split(": ")
        if len(parts) != 2:
            return None
        key = parts[0].split(" list ")
        if len(key) == 2 and key[0] in ("Object", "Action"):
            words = [word.strip() for word in parts[1].strip("[]").split(",")]
            found[key[0].lower(), key[1]] = words
    return found


def replace_synonyms(
    human: Sequence[str], model: Sequence[str], graph: Graph, kind: Kind, flavor: Flavor
) -> list[str]:
    """The model's words, each as the first unused word of the human that it is a synonym of.

    Args:
        human: The human's words.
        model: The model's words.
        graph: Synonyms.
        kind: Of actions, two words that follow each other are tried as one phrase, too.
        flavor: See the head of this module.
    """
    unused, replaced, place = list(human), [], 0
    while place < len(model) and unused:
        used = _first_synonym(unused, model[place : place + 2], graph, kind)
        if used is None:
            replaced.append(model[place])
            place += 1
        else:
            word, length = used
            unused.remove(word)
            replaced.append(word)
            place += length
    rest = list(model[place:])
    return replaced + ([_REST] if rest and flavor == "released" else rest)


def _first_synonym(
    words: Sequence[str], phrase: Sequence[str], graph: Graph, kind: Kind
) -> tuple[str, int] | None:
    """The first word that the phrase's first word, or both, stand for, and how many they are."""
    for word in words:
        if word in graph.get(phrase[0], {}).get("", ()):
            return word, 1
        if (
            kind == "action"
            and len(phrase) == 2
            and word in graph.get(phrase[0], {}).get(phrase[1], ())
        ):
            return word, 2
    return None


def overlap(human: Sequence[str], model: Sequence[str]) -> Overlap:
    """Recall, precision and F1 of two lists as sets."""
    truth, said = set(human), set(model)
    both = len(truth & said)
    recall = both / len(truth) if truth else 0.0
    precision = both / len(said) if said else 0.0
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return Overlap(recall, precision, f1)


def compare_lists(lists: KeywordLists, graph: Graph, kind: Kind, flavor: Flavor) -> Overlap:
    """How the model's words of one kind agree with the human's."""
    human = lists.human[kind]
    return overlap(human, replace_synonyms(human, lists.model[kind], graph, kind, flavor))


def read_graph(path: str | Path) -> Graph:
    """Read a synonym graph: JSON, or the published pickle.

    Of a pickle, only dictionaries, lists and texts are read and the one attribute ``graph`` of an
    object whose class is called so; nothing in it can run.

    Raises:
        PolyptychError: If it is neither, or holds anything else.
    """
    path = Path(path)
    found = read_json(path) if path.suffix == ".json" else _read_pickle(path)
    if not _is_graph(found):
        raise PolyptychError(f"{path}: not a graph {{word: {{word or empty: [words]}}}}")
    return found


def _is_graph(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(word, str)
        and isinstance(after, dict)
        and all(
            isinstance(second, str)
            and isinstance(several, list)
            and all(isinstance(synonym, str) for synonym in several)
            for second, several in after.items()
        )
        for word, after in found.items()
    )


class _Holder:
    """Takes the attributes of a pickled graph."""

    graph: Any = None


class _GraphUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only the notebook's own class, as a holder without behavior."""
        if name in ("ActionGraph", "ObjectGraph"):
            return _Holder
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            found = _GraphUnpickler(file).load()
    except OSError as error:
        raise PolyptychError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a pickle breaks in many ways
        raise PolyptychError(f"{path}: not a pickled synonym graph: {error}") from error
    return found.graph if isinstance(found, _Holder) else found
