"""Splits that depend on nothing but the keys and a seed, and keep relatives together."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, get_args

from polyptych.errors import PolyptychError

SplitName = Literal["train", "validation", "test"]

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
"""Names of the splits, in reading order."""


def split_keys(
    keys: Collection[str], fractions: Mapping[SplitName, float], seed: int
) -> dict[str, SplitName]:
    """Assign every key to a split: keys ordered by a hash of seed and key, then cut.

    Args:
        keys: What must not be divided: a story, a group of near-equal pictures.
        fractions: Share of the keys for each split; they add up to one.
        seed: Another seed, another split.
    """
    ordered = sorted(
        set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
    )
    result: dict[str, SplitName] = {}
    share = 0.0
    for name in SPLITS:
        start, share = round(share * len(ordered)), share + fractions[name]
        result.update(dict.fromkeys(ordered[start : round(share * len(ordered))], name))
    return result


def wanted_splits(split: SplitName | None) -> tuple[SplitName, ...]:
    """The named split, or all of them for None.

    Raises:
        PolyptychError: For a name that is no split.
    """
    if split is None:
        return SPLITS
    if split not in SPLITS:
        raise PolyptychError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    return (split,)


def connected(items: Sequence[str], traits: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Map every item to the first item it is connected with through shared traits.

    Stories that share a picture are relatives; so are two that share one with a third.
    """
    parent = {item: item for item in items}

    def root(item: str) -> str:
        while parent[item] != item:
            item = parent[item]
        return item

    owner: dict[str, str] = {}
    for item in items:
        for trait in traits[item]:
            first = root(owner.setdefault(trait, item))
            parent[root(item)] = first
    return {item: root(item) for item in items}
