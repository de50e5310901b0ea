"""Scene graphs of Storybook: what stands in a picture, before a line is drawn.

A :class:`Scene` is plain data: it can be asked, edited, compared, stored as JSON, sampled
(:mod:`polyptych.storybook.scenes`) and drawn (:mod:`polyptych.storybook.rendering`). Truth about a
picture always comes from its scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from polyptych.errors import PolyptychError
from polyptych.storybook.layout import Box, extent, relation_holds
from polyptych.storybook.vocabulary import KINDS, PERSON, Person


@dataclass(frozen=True, slots=True)
class View:
    """How a thing happens to look this time; never part of the truth that is asked for."""

    mirrored: bool = False
    scale: float = 1.0
    angle: float = 0.0  # degrees
    shade: float = 0.0  # -1 darker .. 1 lighter


@dataclass(frozen=True, slots=True)
class Thing:
    """An object of the vocabulary, or a character (``kind == "person"``, with ``person`` set).

    A character's ``color`` is the one of its clothes, its ``size`` is always "large".
    """

    kind: str
    color: str
    size: str
    x: float  # centre, 0 left .. 1 right
    y: float  # centre, 0 top .. 1 bottom
    view: View = View()
    person: Person | None = None
    act: str | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """``things[subject]`` stands in ``predicate`` to ``things[object]``: (0, "under", 2)."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: a place, 3 to 8 things from back to front, and their relations."""

    place: str
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()
    seed: int = 0  # of the background's small variations


@dataclass(frozen=True, slots=True)
class ThingSpec:
    """A partial requirement: what is None is chosen freely (from training pairs).

    ``person``, ``act`` or ``kind="person"`` ask for a character; characters have no size.
    """

    kind: str | None = None
    color: str | None = None
    size: str | None = None
    category: str | None = None
    person: Person | None = None
    act: str | None = None

    @property
    def wants_person(self) -> bool:
        """Whether only a character can satisfy it."""
        return self.kind == PERSON or self.person is not None or self.act is not None

    def matches(self, thing: Thing) -> bool:
        """Whether a thing satisfies every field that is set."""
        category = None if thing.kind == PERSON else KINDS[thing.kind].category
        has = (thing.kind, thing.color, thing.size, category, thing.person, thing.act)
        wants = (self.kind, self.color, self.size, self.category, self.person, self.act)
        return all(want is None or want == got for want, got in zip(wants, has, strict=True))


# --- Questions to a scene ------------------------------------------------------------------------


def kinds_in(scene: Scene) -> set[str]:
    """Kinds of its objects; characters do not count."""
    return {thing.kind for thing in scene.things if thing.kind != PERSON}


def colored_kinds_in(scene: Scene) -> set[tuple[str, str]]:
    """(kind, color) of its objects; characters do not count."""
    return {(thing.kind, thing.color) for thing in scene.things if thing.kind != PERSON}


def categories_in(scene: Scene) -> set[str]:
    """Categories of its objects."""
    return {KINDS[kind].category for kind in kinds_in(scene)}


def persons_in(scene: Scene) -> set[Person]:
    """Its characters."""
    return {thing.person for thing in scene.things if thing.person is not None}


def acts_in(scene: Scene) -> set[str]:
    """Gerunds of what its characters do."""
    return {thing.act for thing in scene.things if thing.act is not None}


def find_things(scene: Scene, spec: ThingSpec) -> list[int]:
    """Indices of the things that satisfy ``spec``, from back to front."""
    return [index for index, thing in enumerate(scene.things) if spec.matches(thing)]


def box_of(thing: Thing) -> Box:
    """The thing's bounding box (before it is turned), as fractions of the picture."""
    width, height = extent(thing.kind, thing.size, thing.act, thing.view.scale)
    return Box.around(thing.x, thing.y, width, height)


def holds(scene: Scene, relation: Relation) -> bool:
    """Whether the picture's geometry shows the relation, whatever ``scene.relations`` says."""
    subject, other = scene.things[relation.subject], scene.things[relation.object]
    if relation.predicate == "holding" and subject.act != "holding":
        return False
    boxes = box_of(subject), box_of(other)
    return relation_holds(relation.predicate, subject.kind, boxes[0], other.kind, boxes[1])


# --- JSON ----------------------------------------------------------------------------------------


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """Plain JSON of a scene; :func:`scene_from_json` gives back an equal one."""
    things = []
    for thing in scene.things:
        fields = asdict(thing)
        things.append({name: value for name, value in fields.items() if value is not None})
    relations = [[item.subject, item.predicate, item.object] for item in scene.relations]
    return {"place": scene.place, "things": things, "relations": relations, "seed": scene.seed}


def scene_from_json(data: dict[str, Any]) -> Scene:
    """The scene written by :func:`scene_to_json`.

    Raises:
        PolyptychError: If a field is missing or unknown.
    """
    try:
        things = tuple(
            Thing(
                **(
                    fields
                    | {"view": View(**fields["view"])}
                    | ({"person": Person(**fields["person"])} if "person" in fields else {})
                )
            )
            for fields in data["things"]
        )
        relations = tuple(Relation(*item) for item in data["relations"])
        return Scene(data["place"], things, relations, data["seed"])
    except (KeyError, TypeError) as error:
        raise PolyptychError(f"no scene of Storybook: {error}") from error


# --- Edits ---------------------------------------------------------------------------------------


def remove_thing(scene: Scene, index: int) -> Scene:
    """The scene without one thing and without the relations that named it."""
    things = scene.things[:index] + scene.things[index + 1 :]
    kept = [item for item in scene.relations if index not in (item.subject, item.object)]
    relations = _renumbered(kept, lambda old: old - (old > index))
    return replace(scene, things=things, relations=relations)


def insert_thing(scene: Scene, index: int, thing: Thing) -> Scene:
    """The scene with one more thing, in front of ``things[:index]``; relations stay true."""
    things = (*scene.things[:index], thing, *scene.things[index:])
    relations = _renumbered(scene.relations, lambda old: old + (old >= index))
    return replace(scene, things=things, relations=relations)


def _renumbered(
    relations: Iterable[Relation], number: Callable[[int], int]
) -> tuple[Relation, ...]:
    return tuple(
        Relation(number(item.subject), item.predicate, number(item.object)) for item in relations
    )


def change_thing(
    scene: Scene,
    index: int,
    *,
    kind: str | None = None,
    color: str | None = None,
    size: str | None = None,
) -> Scene:
    """The scene with another object in the place of one; it keeps its foot, or floats as before.

    Relations that no longer hold are dropped.
    """
    old = scene.things[index]
    new = replace(old, kind=kind or old.kind, color=color or old.color, size=size or old.size)
    width, height = extent(new.kind, new.size, new.act, new.view.scale)
    bottom = box_of(old).bottom
    x = min(max(new.x, width / 2), 1 - width / 2)
    y = max(bottom - height / 2, height / 2)
    new = replace(new, x=round(x, 4), y=round(y, 4))
    things = (*scene.things[:index], new, *scene.things[index + 1 :])
    changed = replace(scene, things=things)
    relations = tuple(item for item in scene.relations if holds(changed, item))
    return replace(changed, relations=relations)
