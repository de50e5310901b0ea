"""Sampling of scenes: random pictures that keep promises.

What a task requires is in the picture and visible, what is left open is chosen from training
pairs, and no relation holds that was not asked for. The scene graph itself, its JSON and its
questions are :mod:`polyptych.storybook.graph`, whose public names are offered here, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from polyptych.errors import PolyptychError
from polyptych.storybook.graph import (
    Relation,
    Scene,
    Thing,
    ThingSpec,
    View,
    acts_in,
    box_of,
    categories_in,
    change_thing,
    colored_kinds_in,
    find_things,
    holds,
    insert_thing,
    kinds_in,
    persons_in,
    remove_thing,
    scene_from_json,
    scene_to_json,
)
from polyptych.storybook.layout import Box, Layout, Placed, can_relate, extent
from polyptych.storybook.vocabulary import (
    ACTS,
    CATEGORIES,
    CHARACTERS,
    COLORS,
    KINDS,
    PERSON,
    PLACES,
    RELATIONS,
    SIZES,
    Person,
    Split,
    character_split,
    pair_split,
)

__all__ = [
    "Person",
    "Relation",
    "Scene",
    "Thing",
    "ThingSpec",
    "View",
    "acts_in",
    "add_thing",
    "box_of",
    "can_relate",
    "categories_in",
    "change_thing",
    "colored_kinds_in",
    "find_things",
    "holds",
    "insert_thing",
    "kinds_in",
    "persons_in",
    "remove_thing",
    "sample_scene",
    "scene_from_json",
    "scene_to_json",
    "second_view",
]


Allow = Callable[[str, str], bool]

_MAY_NAME: dict[Split, frozenset[Split]] = {
    "train": frozenset({"train"}),
    "validation": frozenset({"train", "validation"}),
    "test": frozenset({"train", "test"}),
}
_INCLUDED_COVER = 0.12  # of a box; keeps at least 60 % of the drawn shape visible
_FILLER_COVER = 0.22
_MOST_ATTEMPTS = 60


@dataclass(frozen=True, slots=True)
class _Draft:
    """A thing that is decided on, but has no position yet."""

    kind: str
    color: str
    size: str
    view: View
    person: Person | None
    act: str | None
    cover_limit: float

    def at(self, box: Box) -> Thing:
        x, y = round(box.x, 4), round(box.y, 4)
        return Thing(self.kind, self.color, self.size, x, y, self.view, self.person, self.act)

    @property
    def extent(self) -> tuple[float, float]:
        return extent(self.kind, self.size, self.act, self.view.scale)


def sample_scene(
    rng: random.Random,
    *,
    split: Split,
    place: str | None = None,
    include: Sequence[ThingSpec] = (),
    relation: tuple[int, str, int] | None = None,
    count: int | tuple[int, int] = (3, 8),
    allow: Allow | None = None,
    fill_persons: int | None = None,
) -> Scene:
    """Draws a random scene that satisfies requirements.

    Args:
        rng: The only source of chance: same state, same scene.
        split: Held-out pairs and characters of this split (besides those of training) may be
            named in ``include``. Everything that is chosen freely comes from training.
        place: Key of :data:`~polyptych.storybook.vocabulary.PLACES`; any if None.
        include: Things that must be in the picture, each at least 60 % visible.
        relation: (subject, predicate, object) with indices into ``include``; no other relation
            of the vocabulary holds between any two things of the picture.
        count: Number of things (or its range, inclusive), those of ``include`` counted in.
        allow: Whether an object of this (kind, color) may be a filler; never asked about
            characters.
        fill_persons: Number of characters among the fillers; a few at random if None.

    Returns:
        The scene, things sorted from back to front.

    Raises:
        PolyptychError: If the requirements contradict each other or the split, or find no room.
    """
    _check_request(split, place, include, relation)
    for _ in range(_MOST_ATTEMPTS):
        drafts = _choose_included(rng, include, relation)
        total = max(len(drafts), count if isinstance(count, int) else rng.randint(*count))
        chosen_place = place or rng.choice(tuple(PLACES))
        layout = Layout(rng, PLACES[chosen_place].horizon)
        order = _place_included(layout, drafts, relation)
        if order is None:
            continue
        fillers = _place_fillers(layout, drafts, total, allow, fill_persons)
        least = count if isinstance(count, int) else count[0]
        if len(drafts) + len(fillers) < least:
            continue
        placed_drafts = [drafts[index] for index in order] + fillers
        return _assemble(rng, chosen_place, layout, placed_drafts, order, relation)
    raise PolyptychError(
        f"no room for {len(include)} required things among {count} after {_MOST_ATTEMPTS} attempts"
    )


def _assemble(
    rng: random.Random,
    place: str,
    layout: Layout,
    drafts: list[_Draft],
    order: list[int],
    relation: tuple[int, str, int] | None,
) -> Scene:
    """Sorts by depth and renumbers the relation from ``include`` to the picture."""
    back_to_front = sorted(range(len(drafts)), key=lambda index: layout.placed[index].depth)
    things = tuple(drafts[index].at(layout.placed[index].box) for index in back_to_front)
    relations: tuple[Relation, ...] = ()
    if relation is not None:
        subject, predicate, other = relation
        where = {
            order[index]: rank for rank, index in enumerate(back_to_front) if index < len(order)
        }
        relations = (Relation(where[subject], predicate, where[other]),)
    return Scene(place, things, relations, rng.randrange(1 << 16))


def _check_request(
    split: Split,
    place: str | None,
    include: Sequence[ThingSpec],
    relation: tuple[int, str, int] | None,
) -> None:
    if place is not None and place not in PLACES:
        raise PolyptychError(f"unknown place {place!r}; known: {', '.join(PLACES)}")
    for spec in include:
        words = (
            (spec.kind, {PERSON, *KINDS}, "kind"),
            (spec.color, COLORS, "color"),
            (spec.size, SIZES, "size"),
            (spec.category, CATEGORIES, "category"),
            (spec.act, ACTS, "act"),
        )
        for word, known, what in words:
            if word is not None and word not in known:
                raise PolyptychError(f"unknown {what} {word!r}")
        if spec.person is not None and character_split(spec.person) not in _MAY_NAME[split]:
            raise PolyptychError(f"a {split} picture cannot show a character held out from it")
        if spec.kind in KINDS and spec.color is not None:
            _check_pair(split, spec.kind, spec.color)
    if relation is not None:
        subject, predicate, other = relation
        if predicate not in RELATIONS:
            raise PolyptychError(f"unknown relation {predicate!r}; known: {', '.join(RELATIONS)}")
        if subject == other or not {subject, other} <= set(range(len(include))):
            raise PolyptychError(f"relation {relation} needs two of {len(include)} included things")


def _check_pair(split: Split, kind: str, color: str) -> None:
    if pair_split(kind, color) not in _MAY_NAME[split]:
        raise PolyptychError(f"a {split} picture cannot show a {color} {kind}: held out from it")


def _choose_included(
    rng: random.Random, include: Sequence[ThingSpec], relation: tuple[int, str, int] | None
) -> list[_Draft]:
    """Fills every gap of the requirements, such that the relation can be drawn."""
    for _ in range(_MOST_ATTEMPTS * 4):
        drafts: list[_Draft] = []
        for index, spec in enumerate(include):
            role = None if relation is None else _role(index, relation)
            drafts.append(_choose(rng, spec, role, drafts))
        if relation is None or _can_be_drawn(drafts, relation):
            return drafts
    raise PolyptychError(f"relation {relation} cannot be drawn between {tuple(include)}")


def _can_be_drawn(drafts: Sequence[_Draft], relation: tuple[int, str, int]) -> bool:
    subject, predicate, other = relation
    return can_relate(drafts[subject].kind, predicate, drafts[other].kind)


def _role(index: int, relation: tuple[int, str, int]) -> str | None:
    """Name of the part that an included thing plays in the relation."""
    if index == relation[0]:
        return f"subject of {relation[1]}"
    return f"object of {relation[1]}" if index == relation[2] else None


_SIZE_OF_ROLE = {
    "subject of under": "small",
    "object of under": "large",
    "subject of on": "small",
    "object of on": "large",
    "object of holding": "small",
    "subject of above": "small",
}


@cache
def _train_pairs(
    kind: str | None, color: str | None, category: str | None
) -> tuple[tuple[str, str], ...]:
    """Pairs of kind and color that training may show, filtered by what is given."""
    return tuple(
        (name, hue)
        for name, entry in KINDS.items()
        for hue in COLORS
        if kind in (None, name)
        and color in (None, hue)
        and category in (None, entry.category)
        and pair_split(name, hue) == "train"
    )


@cache
def _train_characters(color: str | None) -> tuple[Person, ...]:
    return tuple(
        person
        for person in CHARACTERS
        if character_split(person) == "train" and color in (None, person.clothes_color)
    )


def _choose(
    rng: random.Random, spec: ThingSpec, role: str | None, taken: Sequence[_Draft]
) -> _Draft:
    """Decides on what a requirement leaves open; twins of things already taken are avoided."""
    if spec.wants_person or role == "subject of holding":
        person = spec.person or _other_than(
            rng, _train_characters(spec.color), {draft.person for draft in taken}
        )
        act = "holding" if role == "subject of holding" else spec.act
        return _draft_person(rng, person, act, _INCLUDED_COVER)
    if spec.kind is not None and spec.color is not None:
        kind, color = spec.kind, spec.color
    else:
        pairs = _train_pairs(spec.kind, spec.color, spec.category)
        if not pairs:
            raise PolyptychError(f"no training pair satisfies {spec}")
        kind, color = _other_than(rng, pairs, {(draft.kind, draft.color) for draft in taken})
    size = spec.size or _SIZE_OF_ROLE.get(role or "") or _random_size(rng, (0.2, 0.45, 0.35))
    return _draft_object(rng, kind, color, size, _INCLUDED_COVER)


def _other_than(rng: random.Random, options: Sequence[Any], avoid: set[Any]) -> Any:
    """A random option, not one of ``avoid`` if that is soon found."""
    for _ in range(20):
        option = rng.choice(options)
        if option not in avoid:
            break
    return option


def _random_size(rng: random.Random, weights: tuple[float, float, float]) -> str:
    return rng.choices(tuple(SIZES), weights)[0]


def _draft_person(rng: random.Random, person: Person, act: str | None, cover: float) -> _Draft:
    free = [name for name in ACTS if name != "holding"]
    view = _random_view(rng, 0.0)
    act = act or rng.choice(free)
    return _Draft(PERSON, person.clothes_color, "large", view, person, act, cover)


def _draft_object(rng: random.Random, kind: str, color: str, size: str, cover: float) -> _Draft:
    return _Draft(kind, color, size, _random_view(rng, KINDS[kind].tilt), None, None, cover)


def _random_view(rng: random.Random, tilt: float) -> View:
    return View(
        mirrored=rng.random() < 0.5,
        scale=round(rng.uniform(0.93, 1.06), 3),
        angle=round(rng.uniform(-tilt, tilt), 1),
        shade=round(rng.uniform(-1, 1), 2),
    )


def _place_included(
    layout: Layout, drafts: list[_Draft], relation: tuple[int, str, int] | None
) -> list[int] | None:
    """Places all included things, related ones first; their order, or None without room."""
    order: list[int] = []
    if relation is not None:
        subject, predicate, other = relation
        order = [subject, other] if predicate == "holding" else [other, subject]
        anchor, second = drafts[order[0]], drafts[order[1]]
        if not layout.place(anchor.kind, anchor.act, *anchor.extent, anchor.cover_limit):
            return None
        if not layout.place_related(
            second.kind, *second.extent, second.cover_limit, predicate, 0, anchor.view.mirrored
        ):
            return None
    rest = [index for index in range(len(drafts)) if index not in order]
    rest.sort(key=lambda index: -drafts[index].extent[0] * drafts[index].extent[1])
    for index in rest:
        draft = drafts[index]
        if not layout.place(draft.kind, draft.act, *draft.extent, draft.cover_limit):
            return None
    return order + rest


def _place_fillers(
    layout: Layout,
    included: list[_Draft],
    total: int,
    allow: Allow | None,
    fill_persons: int | None,
) -> list[_Draft]:
    """Fills the picture up to ``total`` things; fewer where no room is left."""
    rng, missing = layout.rng, total - len(included)
    if fill_persons is None:
        fill_persons = rng.choices((0, 1, 2), (0.55, 0.35, 0.1))[0]
    persons = min(fill_persons, missing)
    fillers: list[_Draft] = []
    for turn in range(missing):
        for attempt in range(3):
            taken = included + fillers
            draft = (
                _filler_person(rng, taken)
                if turn < persons
                else _filler_object(rng, taken, total + 2 * attempt, allow)
            )
            if draft is None:
                break
            if layout.place(draft.kind, draft.act, *draft.extent, draft.cover_limit):
                fillers.append(draft)
                break
    return fillers


def _filler_person(rng: random.Random, taken: Sequence[_Draft]) -> _Draft:
    person = _other_than(rng, _train_characters(None), {draft.person for draft in taken})
    return _draft_person(rng, person, None, _FILLER_COVER)


def _filler_object(
    rng: random.Random, taken: Sequence[_Draft], crowd: int, allow: Allow | None
) -> _Draft | None:
    """A training pair that is allowed and not yet in the picture; smaller in a crowd."""
    pairs = _train_pairs(None, None, None)
    present = {(draft.kind, draft.color) for draft in taken}
    weights = (0.25, 0.45, 0.3) if crowd <= 4 else (0.4, 0.45, 0.15)
    weights = (0.6, 0.4, 0.0) if crowd > 6 else weights
    for _ in range(200):
        kind, color = rng.choice(pairs)
        if (kind, color) not in present and (allow is None or allow(kind, color)):
            return _draft_object(rng, kind, color, _random_size(rng, weights), _FILLER_COVER)
    return None


def add_thing(rng: random.Random, scene: Scene, spec: ThingSpec, *, split: Split) -> Scene:
    """The scene with one more thing, at least 60 % visible, where there is room for it.

    Raises:
        PolyptychError: If there is none, or the split forbids the thing.
    """
    _check_request(split, None, (spec,), None)
    layout = _layout_of(rng, scene)
    for _ in range(_MOST_ATTEMPTS):
        draft = _choose(rng, spec, None, [])
        if layout.place(draft.kind, draft.act, *draft.extent, draft.cover_limit):
            *old, new = layout.placed
            index = sum(item.depth <= new.depth for item in old)
            return insert_thing(scene, index, draft.at(new.box))
    raise PolyptychError(f"no room for one more thing among {len(scene.things)}")


def _layout_of(rng: random.Random, scene: Scene) -> Layout:
    """The layout that a scene shows, with what already covers what."""
    layout = Layout(rng, PLACES[scene.place].horizon)
    depth = 0.0
    for thing in scene.things:
        box = box_of(thing)
        depth = max(depth, box.bottom)  # the order of the scene counts, not the feet
        for behind in layout.placed:
            behind.covered += box.overlap(behind.box) / (behind.box.width * behind.box.height)
        layout.placed.append(Placed(thing.kind, box, depth, _INCLUDED_COVER))
    return layout


def second_view(rng: random.Random, scene: Scene) -> Scene:
    """The same picture seen again: things turned, shaded and mirrored anew, none moved."""
    things = []
    for thing in scene.things:
        view = _random_view(rng, 0.0 if thing.kind == PERSON else KINDS[thing.kind].tilt)
        mirrored = thing.view.mirrored if thing.act == "holding" else view.mirrored
        things.append(replace(thing, view=replace(view, mirrored=mirrored, scale=thing.view.scale)))
    return replace(scene, things=tuple(things), seed=rng.randrange(1 << 16))
