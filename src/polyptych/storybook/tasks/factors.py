"""What pictures can have in common, computed from their scenes alone.

A factor is one of six types. Some factors say more than others: a red ball is also a ball and a
toy, so pictures that share the red ball share those, too. :func:`shared_factors` leaves out what
another shared factor already says; pictures *share exactly one factor* when one is left.
Color alone, size, act and number are not factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from polyptych.storybook.scenes import Scene, Thing
from polyptych.storybook.tasks.phrasing import character_phrase
from polyptych.storybook.vocabulary import KINDS, PERSON

FactorType = Literal["kind", "colored_kind", "category", "place", "character", "relation"]
FACTOR_TYPES: tuple[FactorType, ...] = get_args(FactorType)


class Factor(NamedTuple):
    """One thing that a picture shows.

    Attributes:
        type: One of :data:`FACTOR_TYPES`.
        value: Words of the vocabulary: "ball", "red ball", "toy", "beach", "cat under tree", or
            the ``character_phrase`` of a character.
    """

    type: FactorType
    value: str


def thing_factors(thing: Thing) -> set[Factor]:
    """What one thing is, from its character or color to its category."""
    if thing.person is not None:
        return {
            Factor("character", character_phrase(thing.person)),
            Factor("kind", PERSON),
        }
    return {Factor("colored_kind", f"{thing.color} {thing.kind}")} | kind_factors(thing.kind)


def kind_factors(kind: str) -> set[Factor]:
    """A kind and, for all but persons, its category."""
    factors = {Factor("kind", kind)}
    if kind != PERSON:
        factors.add(Factor("category", KINDS[kind].category))
    return factors


def relation_factor(subject: str, predicate: str, object_: str) -> Factor:
    """The factor of two kinds in a relation; "beside" has no direction."""
    if predicate == "beside":
        subject, object_ = sorted((subject, object_))
    return Factor("relation", f"{subject} {predicate} {object_}")


def scene_factors(scene: Scene) -> set[Factor]:
    """Everything that one picture shows."""
    factors = {Factor("place", scene.place)}
    for thing in scene.things:
        factors |= thing_factors(thing)
    for relation in scene.relations:
        subject, object_ = scene.things[relation.subject], scene.things[relation.object]
        factors.add(relation_factor(subject.kind, relation.predicate, object_.kind))
    return factors


def implied_factors(factor: Factor) -> set[Factor]:
    """The weaker factors that ``factor`` brings along: red ball → ball, toy."""
    if factor.type == "colored_kind":
        return kind_factors(factor.value.split()[1])
    if factor.type == "relation":
        subject, _, object_ = factor.value.split()
        return kind_factors(subject) | kind_factors(object_)
    if factor.type == "character":
        return {Factor("kind", PERSON)}
    if factor.type == "kind":
        return kind_factors(factor.value) - {factor}
    return set()


def strongest(factors: set[Factor]) -> set[Factor]:
    """Leaves out every factor that another one of the set implies."""
    return factors.difference(*map(implied_factors, factors))


def shared_factors(scenes: Sequence[Scene]) -> set[Factor]:
    """The strongest factors that stand in every one of ``scenes``."""
    return strongest(set.intersection(*map(scene_factors, scenes)))
