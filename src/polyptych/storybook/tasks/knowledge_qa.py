"""Knowledge QA: a question about a person or thing whose answer stands in another record only.

Every character and every colored kind of this world has a made-up name and a few facts, which
depend on nothing but itself: all records about it agree, in every set. A *fact* record shows it and
tells a fact; the *question* record of the same ``fact_id`` shows it again, in another picture, and
asks. No picture and no question tells the answer: it has to be retrieved.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

from polyptych.storybook.scenes import Scene, ThingSpec
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted
from polyptych.storybook.tasks.composition import characters_of, draw_scene, may_stand, pairs_of
from polyptych.storybook.tasks.phrasing import person_details
from polyptych.storybook.vocabulary import COLORS, KINDS, NAMES, PLACES, Split

TASK = "knowledge_qa"

Role = Literal["fact", "question"]
ROLES: tuple[Role, ...] = ("fact", "question")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One sort of fact: its possible answers, and how it is told and asked for."""

    answers: tuple[str, ...]
    statement: str
    question: str


_PLACES = tuple(place.phrase for place in PLACES.values())
PERSON_ATTRIBUTES: dict[str, Attribute] = {
    "friend": Attribute(NAMES, "{} is a friend of {answer}", "Who is a friend of {}?"),
    "home": Attribute(_PLACES, "{} lives {answer}", "Where does {} live?"),
    "collection": Attribute(
        tuple(kind.plural for kind in KINDS.values()),
        "{} collects {answer}",
        "What does {} collect?",
    ),
    "color": Attribute(
        tuple(COLORS), "{} likes the color {answer} best", "Which color does {} like best?"
    ),
}
THING_ATTRIBUTES: dict[str, Attribute] = {
    "owner": Attribute(NAMES, "{} belongs to {answer}", "Whom does {} belong to?"),
    "maker": Attribute(NAMES, "{} was made by {answer}", "Who made {}?"),
    "origin": Attribute(_PLACES, "{} was found {answer}", "Where was {} found?"),
}
ATTRIBUTES = PERSON_ATTRIBUTES | THING_ATTRIBUTES

FACT_REQUESTS = (
    "Tell me about {}.",
    "What do you know about {}?",
    "Tell a fact about {}.",
    "Introduce {}.",
    "What is special about {}?",
)
FACTS = (
    "this is {name}. {told}.",
    "{it} is called {name}. {told}.",
    "{it} here is {name}, and {told}.",
    "meet {name}: {told}.",
    "the name is {name}. {told}.",
)
ANSWERS = (
    "{answer}.",
    "the answer is {answer}.",
    "{told_of_it}.",
    "{told}.",
    "we know that {told_of_it}.",
)


_SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


@dataclass(frozen=True, slots=True)
class Entity:
    """Somebody or something with facts: a description, how a question calls it, what to draw."""

    description: str
    called: str
    spec: ThingSpec

    @property
    def name(self) -> str:
        """Its made-up name: three syllables that depend on the description."""
        digest = _digest("name", self.description)
        parts = ((digest >> shift) % len(_SYLLABLES) for shift in (0, 16, 32))
        return "".join(_SYLLABLES[part] for part in parts).title()

    def fact(self, attribute: str) -> str:
        """The answer for this entity, the same in every set."""
        answers = ATTRIBUTES[attribute].answers
        return answers[_digest(attribute, self.description) % len(answers)]

    def fact_id(self, attribute: str) -> str:
        """What links the records about one fact."""
        return f"{_digest('fact', attribute, self.description):016x}"


@cache
def entities_of(split: Split) -> tuple[tuple[Entity, ...], tuple[Entity, ...]]:
    """All characters, and all colored kinds, that ``split`` owns."""
    persons = tuple(
        Entity(f"{person.skin} {person_details(person)}", "the person", ThingSpec(person=person))
        for person in characters_of(split)
    )
    things = tuple(
        Entity(f"{color} {kind}", f"the {kind}", ThingSpec(kind, color))
        for kind, color in pairs_of(split)
    )
    return persons, things


def make_example(
    rng: random.Random,
    split: Split,
    *,
    role: Role | None = None,
    things: tuple[int, int] = (3, 6),
) -> StoryExample:
    """Draws the record that tells a fact, or the one that asks for it.

    Args:
        rng: Source of all chance; the same state gives the same fact for both roles.
        split: Owns the character or the pair of kind and color that the fact is about.
        role: Which record; by chance if None.
        things: Least and greatest number of things in the picture.
    """
    persons, things_with_facts = entities_of(split)
    of_person = rng.random() < 0.5
    entity = rng.choice(persons if of_person else things_with_facts)
    attribute = rng.choice(tuple(PERSON_ATTRIBUTES if of_person else THING_ATTRIBUTES))
    role = role or rng.choice(ROLES)
    rng = random.Random(f"{rng.random()}/{role}")  # another picture and wording for each role
    answer = entity.fact(attribute)
    statement, question = ATTRIBUTES[attribute].statement, ATTRIBUTES[attribute].question
    words = {
        "it": entity.called,
        "name": entity.name,
        "answer": answer,
        "told": statement.format(entity.name, answer=answer),
        "told_of_it": statement.format(entity.called, answer=answer),
    }
    asked = rng.choice(FACT_REQUESTS) if role == "fact" else question
    scene = _draw_scene(rng, split, entity, answer, things)
    return build_example(
        task=TASK,
        split=split,
        prompt=[scene, f" {asked.format(entity.called)}"],
        references=tuple(p.format(**words) for p in (FACTS if role == "fact" else ANSWERS)),
        rng=rng,
        truth={
            "role": role,
            "fact_id": entity.fact_id(attribute),
            "entity": entity.description,
            "name": entity.name,
            "attribute": attribute,
            "answer": answer,
        },
    )


def _draw_scene(
    rng: random.Random, split: Split, entity: Entity, answer: str, things: tuple[int, int]
) -> Scene:
    """A picture with one such person or kind, and without what the answer names."""
    kind = entity.spec.kind
    places = [
        name
        for name, place in PLACES.items()
        if place.phrase != answer and (kind is None or may_stand(split, kind, name))
    ]

    def draw() -> Scene:
        return draw_scene(
            rng,
            split,
            [entity.spec],
            place=rng.choice(places),
            count=things,
            allow=lambda other, _: other != kind and KINDS[other].plural != answer,
            fill_persons=0 if entity.spec.wants_person else None,
        )

    return first_accepted(draw, "picture for a fact")


def _digest(*words: str) -> int:
    """A number in [0, 2**64) that depends on the words alone."""
    data = "\x1f".join(words).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
