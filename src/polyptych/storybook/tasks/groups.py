"""Groups: pictures that share exactly one factor, and what is put into and kept out of each.

*Distractors* stand in all pictures but one. Every category (and, within the shared one, every
kind) is missing from one picture at least, so nothing but the factor is shared.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

from polyptych.errors import PolyptychError
from polyptych.storybook.scenes import Scene, ThingSpec
from polyptych.storybook.tasks.composition import (
    characters_of,
    draw_scene,
    pairs_of,
    relations_of,
)
from polyptych.storybook.tasks.factors import (
    Factor,
    FactorType,
    implied_factors,
    relation_factor,
)
from polyptych.storybook.tasks.phrasing import character_phrase
from polyptych.storybook.vocabulary import (
    CATEGORIES,
    CHARACTERS,
    KINDS,
    PERSON,
    PLACES,
    RELATIONS,
    Person,
    Split,
    combination_split,
)


def draw_factor(
    rng: random.Random, split: Split, factor_type: FactorType
) -> tuple[Factor, Person | None]:
    """A factor that ``split`` owns, and the person where it is a character."""
    if factor_type == "colored_kind":
        kind, color = rng.choice(pairs_of(split))
        return Factor("colored_kind", f"{color} {kind}"), None
    if factor_type == "relation":
        predicate = rng.choice([p for p in RELATIONS if relations_of(split, p)])
        subject, other = rng.choice(relations_of(split, predicate))
        return relation_factor(subject, predicate, other), None
    if factor_type == "character":
        person = rng.choice(_describable(split))
        return Factor("character", character_phrase(person)), person
    words = {"kind": tuple(KINDS), "category": tuple(CATEGORIES), "place": tuple(PLACES)}
    return Factor(factor_type, rng.choice(words[factor_type])), None


@cache
def _describable(split: Split) -> tuple[Person, ...]:
    """Characters with a hat whose short description fits no other character."""
    uses = Counter(map(character_phrase, CHARACTERS))
    return tuple(
        person
        for person in characters_of(split)
        if person.hat is not None and uses[character_phrase(person)] == 1
    )


class Group:
    """What every picture of one group must show (``include``) and lack (``gaps``)."""

    def __init__(self, rng: random.Random, split: Split, factor: Factor, pictures: int) -> None:
        self.rng, self.split, self.factor = rng, split, factor
        self.include: list[list[ThingSpec]] = [[] for _ in range(pictures)]
        self.places: list[str | None] = [None] * pictures
        self.relations: list[tuple[int, str, int] | None] = [None] * pictures
        shown = {factor} | implied_factors(factor)
        self.kinds = {f.value for f in shown if f.type == "kind"}
        self.categories = {f.value for f in shown if f.type == "category"}
        # The one picture that lacks each word; words that the factor implies are not looked up.
        self.gaps = {word: rng.randrange(pictures) for word in (*CATEGORIES, *KINDS, PERSON)}

    def lacks(self, picture: int, kind: str) -> bool:
        """Whether a thing of this kind must not be added to a picture."""
        if kind == PERSON:
            return PERSON not in self.kinds and self.gaps[PERSON] == picture
        category = KINDS[kind].category
        if category not in self.categories:
            return self.gaps[category] == picture
        if kind in self.kinds or self.factor.type == "category":
            return True  # shown once, as the factor
        return self.gaps[kind] == picture

    def include_factor(self, person: Person | None) -> None:
        """Puts what is shared into every picture."""
        factor = self.factor
        if factor.type == "place":
            self._include_place(factor.value)
        elif factor.type == "category":
            kinds = [k for k in KINDS if KINDS[k].category == factor.value]
            self.rng.shuffle(kinds)
            for picture, specs in enumerate(self.include):
                specs.append(ThingSpec(kinds[picture % len(kinds)]))
        elif factor.type == "relation":
            subject, predicate, other = factor.value.split()
            for picture in range(len(self.include)):
                self._relate(picture, subject, predicate, other)
        else:
            for specs in self.include:
                specs.append(_shared_spec(factor, person))

    def _include_place(self, place: str) -> None:
        """The place, and in each picture a kind that the split owns there."""
        self.places = [place] * len(self.include)
        here = [kind for kind in KINDS if combination_split(kind, place) == self.split]
        for picture, specs in enumerate(self.include):
            kinds = [kind for kind in here if not self.lacks(picture, kind)]
            if not kinds:
                raise PolyptychError(f"no kind that {self.split} owns at {place!r}")
            specs.append(ThingSpec(self.rng.choice(kinds)))

    def include_distractors(self, most_things: int) -> None:
        """Puts one or two things into all pictures but one; sometimes a place or a relation."""
        rng = self.rng
        room = most_things - len(self.include[0])
        if self.factor.type != "relation" and room >= 2:
            room -= 2 * self._include_relations()
        for _ in range(min(room, rng.choice((1, 2, 2)))):
            if rng.random() < 0.15:
                self._include_character()
            else:
                self._include_kind()
        if self.factor.type != "place" and rng.random() < 0.3:
            gap, place = rng.randrange(len(self.include)), rng.choice(tuple(PLACES))
            for picture in range(len(self.include)):
                self.places[picture] = None if picture == gap else place

    def _include_relations(self) -> bool:
        """Mostly relates things, alike or not: a relation alone must not betray the factor."""
        form = self.rng.choices(("none", "alike", "various"), (0.2, 0.3, 0.5))[0]
        alike = [self._draw_relation()]
        for picture in range(len(self.include)):
            options = alike if form == "alike" else [self._draw_relation() for _ in range(3)]
            for subject, predicate, other in options if form != "none" else ():
                if not (self.lacks(picture, subject) or self.lacks(picture, other)):
                    self._relate(picture, subject, predicate, other)
                    break
        return form != "none"

    def _draw_relation(self) -> tuple[str, str, str]:
        predicate = self.rng.choice(RELATIONS)
        subject, other = self.rng.choice(relations_of("train", predicate))
        return subject, predicate, other

    def _relate(self, picture: int, subject: str, predicate: str, other: str) -> None:
        specs = self.include[picture]
        self.relations[picture] = (len(specs), predicate, len(specs) + 1)
        specs += [ThingSpec(subject), ThingSpec(other)]

    def _include_character(self) -> None:
        person = self.rng.choice(characters_of("train"))
        gap = self.rng.randrange(len(self.include)) if PERSON in self.kinds else self.gaps[PERSON]
        for picture, specs in enumerate(self.include):
            if picture != gap:
                specs.append(ThingSpec(person=person))

    def _include_kind(self) -> None:
        """A kind, a colored kind, or several kinds of one category."""
        rng = self.rng
        kind, color = rng.choice(pairs_of("train"))
        siblings = [k for k in KINDS if KINDS[k].category == KINDS[kind].category]
        form = rng.choice(("kind", "colored_kind", "category"))
        for picture, specs in enumerate(self.include):
            shown = rng.choice(siblings) if form == "category" else kind
            if not self.lacks(picture, shown):
                specs.append(ThingSpec(shown, color if form == "colored_kind" else None))

    def draw_scenes(self, things: tuple[int, int]) -> list[Scene]:
        """One scene for each picture."""
        return [self._draw_scene(picture, things) for picture in range(len(self.include))]

    def _draw_scene(self, picture: int, things: tuple[int, int]) -> Scene:
        return draw_scene(
            self.rng,
            self.split,
            self.include[picture],
            place=self.places[picture],
            relation=self.relations[picture],
            count=things,
            allow=lambda kind, color: not self.lacks(picture, kind),
            fill_persons=0 if self.lacks(picture, PERSON) else None,
        )


def _shared_spec(factor: Factor, person: Person | None) -> ThingSpec:
    if factor.type == "character":
        return ThingSpec(person=person)
    color, _, kind = factor.value.rpartition(" ")
    return ThingSpec(kind, color or None)
