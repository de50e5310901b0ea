"""Group captioning: some pictures share exactly one factor; say it in one sentence.

No picture alone gives the answer away: each of them shows many things, and *distractors* stand in
all pictures but one. Every category (and, within the shared one, every kind) is missing from one
picture at least, so nothing but the factor is shared.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache

from polyptych.errors import PolyptychError
from polyptych.storybook.scenes import Scene, ThingSpec
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted, numbered
from polyptych.storybook.tasks.composition import (
    characters_of,
    draw_scene,
    pairs_of,
    relations_of,
)
from polyptych.storybook.tasks.factors import (
    FACTOR_TYPES,
    Factor,
    FactorType,
    implied_factors,
    relation_factor,
    shared_factors,
)
from polyptych.storybook.tasks.phrasing import character_phrase, with_article
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

TASK = "group_captioning"

QUESTIONS = (
    "What do these pictures have in common?",
    "What do all of these pictures share?",
    "Say in one sentence what the pictures have in common.",
    "Which one thing is the same in all pictures?",
    "Write one caption that is true for every picture.",
    "Name what every picture shows.",
)

_THING_CAPTIONS = (
    "every picture shows {}.",
    "there is {} in every picture.",
    "{} appears in all of the pictures.",
    "all of the pictures contain {}.",
    "each picture has {} in it.",
    "what the pictures share is {}.",
)
CAPTIONS: dict[FactorType, tuple[str, ...]] = {
    "kind": _THING_CAPTIONS,
    "colored_kind": _THING_CAPTIONS,
    "relation": _THING_CAPTIONS,
    "category": (
        "every picture shows {} of some kind.",
        "there is {} of one kind or another in every picture.",
        *_THING_CAPTIONS[2:],
    ),
    "place": (
        "every picture is set {}.",
        "all of the pictures take place {}.",
        "each picture shows a scene {}.",
        "all of these scenes are {}.",
        "everything here happens {}.",
        "what the pictures share is a place {}.",
    ),
    "character": (
        "the {} is in every picture.",
        "every picture shows the {}.",
        "the {} appears every time.",
        "all of them show the {}.",
        "what they share is the {}.",
    ),
}


def references_for(factor: Factor) -> tuple[str, ...]:
    """All accepted captions of pictures that share ``factor``."""
    return tuple(caption.format(_words(factor)) for caption in CAPTIONS[factor.type])


def _words(factor: Factor) -> str:
    if factor.type == "place":
        return PLACES[factor.value].phrase
    if factor.type == "character":
        return factor.value
    if factor.type == "relation":
        subject, predicate, other = factor.value.split()
        return f"{with_article(subject)} {predicate} {with_article(other)}"
    return with_article(factor.value)


def make_example(
    rng: random.Random,
    split: Split,
    *,
    pictures: tuple[int, int] = (3, 6),
    things: tuple[int, int] = (3, 8),
    factor_types: Sequence[FactorType] = FACTOR_TYPES,
) -> StoryExample:
    """Draws pictures that share exactly one factor.

    Args:
        rng: Source of all chance.
        split: Its colored kinds, characters and combinations become factors.
        pictures: Least and greatest number of pictures.
        things: Least and greatest number of things in each.
        factor_types: Types to choose from, each as likely as the others.
    """
    factor_type = rng.choice(tuple(factor_types))
    count = rng.randint(*pictures)

    def draw() -> tuple[Factor, list[Scene]] | None:
        factor, person = _draw_factor(rng, split, factor_type)
        group = _Group(rng, split, factor, count)
        group.include_factor(person)
        group.include_distractors(things[1])
        scenes = group.draw_scenes(things)
        return (factor, scenes) if shared_factors(scenes) == {factor} else None

    factor, scenes = first_accepted(draw, f"group with a shared {factor_type}")
    return build_example(
        task=TASK,
        split=split,
        prompt=[*numbered("Picture", scenes), f" {rng.choice(QUESTIONS)}"],
        references=references_for(factor),
        rng=rng,
        truth={"factor": {"type": factor.type, "value": factor.value}},
    )


def _draw_factor(
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


class _Group:
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
        rng, factor, pictures = self.rng, self.factor, len(self.include)
        if factor.type == "place":
            self.places = [factor.value] * pictures
            here = [k for k in KINDS if combination_split(k, factor.value) == self.split]
            for picture, specs in enumerate(self.include):
                kinds = [k for k in here if not self.lacks(picture, k)]
                if not kinds:
                    raise PolyptychError(f"no kind that {self.split} owns at {factor.value!r}")
                specs.append(ThingSpec(rng.choice(kinds)))
        elif factor.type == "category":
            kinds = [k for k in KINDS if KINDS[k].category == factor.value]
            rng.shuffle(kinds)
            for picture, specs in enumerate(self.include):
                specs.append(ThingSpec(kinds[picture % len(kinds)]))
        elif factor.type == "relation":
            subject, predicate, other = factor.value.split()
            for picture in range(pictures):
                self._relate(picture, subject, predicate, other)
        else:
            for specs in self.include:
                specs.append(_shared_spec(factor, person))

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
