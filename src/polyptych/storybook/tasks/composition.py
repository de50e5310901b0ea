"""Which compositions a split may show, beyond the pairs of kind and color that scenes check.

A kind at a place, a relation between two kinds and a named character's act at a place are
*combinations*. Training shows combinations of training only; test shows those of test besides, so
a test picture can ask for something that is known in its parts, but new as a whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache

from polyptych.errors import PolyptychError
from polyptych.storybook.scenes import (
    Allow,
    Scene,
    ThingSpec,
    can_relate,
    sample_scene,
)
from polyptych.storybook.vocabulary import (
    CHARACTERS,
    COLORS,
    KINDS,
    PERSON,
    PLACES,
    Person,
    Split,
    character_split,
    combination_split,
    pair_split,
)


def may_stand(split: Split, kind: str, place: str) -> bool:
    """Whether pictures of ``split`` may show this kind at this place."""
    return kind == PERSON or combination_split(kind, place) in ("train", split)


def may_do(split: Split, act: str, place: str) -> bool:
    """Whether a story of ``split`` may tell of this act at this place."""
    return combination_split(act, place) in ("train", split)


@cache
def places_for(split: Split, kinds: frozenset[str]) -> tuple[str, ...]:
    """Places for a picture with these kinds; outside training held-out combinations come first.

    Returns:
        All places with a combination that is held out for ``split``, if there are any, or all
        places where the kinds may stand; may be empty.
    """
    places = tuple(p for p in PLACES if all(may_stand(split, kind, p) for kind in kinds))
    held_out = tuple(
        p for p in places if any(combination_split(k, p) == split for k in kinds - {PERSON})
    )
    return held_out or places


@cache
def pairs_of(split: Split) -> tuple[tuple[str, str], ...]:
    """The pairs of kind and color that ``split`` owns."""
    return tuple((k, c) for k in KINDS for c in COLORS if pair_split(k, c) == split)


@cache
def characters_of(split: Split) -> tuple[Person, ...]:
    """The characters that ``split`` owns."""
    return tuple(person for person in CHARACTERS if character_split(person) == split)


@cache
def relations_of(split: Split, predicate: str) -> tuple[tuple[str, str], ...]:
    """(subject, object) kinds whose relation by ``predicate`` is owned by ``split``.

    "beside" has no direction; its kinds stand in alphabetical order.
    """
    kinds = (*KINDS, PERSON)
    return tuple(
        (subject, other)
        for subject in kinds
        for other in kinds
        if (subject < other if predicate == "beside" else subject != other)
        and can_relate(subject, predicate, other)
        and combination_split(subject, predicate, other) == split
    )


def draw_scene(
    rng: random.Random,
    split: Split,
    include: Sequence[ThingSpec],
    *,
    place: str | None = None,
    relation: tuple[int, str, int] | None = None,
    count: int | tuple[int, int] = (3, 8),
    allow: Allow | None = None,
    fill_persons: int | None = None,
) -> Scene:
    """:func:`~polyptych.storybook.scenes.sample_scene`, with the combinations of ``split`` only.

    Raises:
        PolyptychError: If no place suits all of ``include``, or there is no room.
    """
    kinds = _kinds_of(include)
    if place is None:
        places = places_for(split, kinds)
        if not places:
            raise PolyptychError(
                f"no place where a {split} picture may show all of {sorted(kinds)}"
            )
        place = rng.choice(places)
    elif not all(may_stand(split, kind, place) for kind in kinds):
        raise PolyptychError(f"no {split} picture may show all of {sorted(kinds)} at {place!r}")

    def may_fill(kind: str, color: str) -> bool:
        return may_stand(split, kind, place) and (allow is None or allow(kind, color))

    return sample_scene(
        rng,
        split=split,
        place=place,
        include=include,
        relation=relation,
        count=count,
        allow=may_fill,
        fill_persons=fill_persons,
    )


def _kinds_of(include: Iterable[ThingSpec]) -> frozenset[str]:
    """Kinds of the required things; every requirement names its kind or wants a person."""
    return frozenset(PERSON if spec.wants_person else str(spec.kind) for spec in include)
