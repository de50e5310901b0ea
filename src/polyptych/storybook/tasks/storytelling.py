"""Storytelling: earlier captions bind names to characters; write the caption of the last panel.

A name belongs to a character in one story only and is told nowhere but in the captions of the
earlier panels, so the names of the last panel are known only to who compares the characters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from polyptych.storybook.scenes import Scene, ThingSpec
from polyptych.storybook.tasks.base import StoryExample, build_example, first_accepted
from polyptych.storybook.tasks.composition import characters_of, draw_scene, may_do, relations_of
from polyptych.storybook.tasks.phrasing import join_words, with_article
from polyptych.storybook.vocabulary import (
    ACTS,
    NAMES,
    PLACES,
    Person,
    Split,
    combination_split,
)

TASK = "storytelling"

INSTRUCTIONS = (
    "Write the caption of the last picture.",
    "How does the story end?",
    "Finish the story: what does the last picture show?",
    "Tell the end of this story.",
    "Continue the captions for the last picture.",
    "Here is a story in pictures. Write the missing caption.",
)

CAPTIONS = (
    "{present} {place}.",
    "{place}, {present}.",
    "we see {gerund} {place}.",
    "here {present} {place}.",
    "{past} {place}.",
)
ENDINGS = (*CAPTIONS, "at last {past} {place}.", "in the end {present} {place}.")
"""``present``: "Mia is waving", ``gerund``: "Mia waving", ``past``: "Mia waved"."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What one named character does in a panel; ``held`` is "red ball" for "holding"."""

    name: str
    act: str
    held: str | None = None


def captions_for(
    deeds: Sequence[Deed], place: str, phrasings: Sequence[str] = ENDINGS
) -> tuple[str, ...]:
    """All accepted captions of a panel, its characters named from left to right."""
    clauses = {"present": "{0} is {1}{3}", "gerund": "{0} {1}{3}", "past": "{0} {2}{3}"}
    words = {
        form: join_words(
            [
                clause.format(deed.name, deed.act, ACTS[deed.act].past, _object(deed))
                for deed in deeds
            ]
        )
        for form, clause in clauses.items()
    }
    return tuple(caption.format(**words, place=PLACES[place].phrase) for caption in phrasings)


def _object(deed: Deed) -> str:
    return "" if deed.held is None else f" {with_article(deed.held)}"


def make_example(
    rng: random.Random,
    split: Split,
    *,
    panels: tuple[int, int] = (3, 5),
    characters: tuple[int, int] = (2, 3),
    things: tuple[int, int] = (3, 6),
) -> StoryExample:
    """Draws a story whose last caption is asked for.

    Args:
        rng: Source of all chance.
        split: Its characters play, and the last act at its place is a combination of ``split``.
        panels: Least and greatest number of panels, the last one included.
        characters: Least and greatest number of named characters in the story.
        things: Least and greatest number of things in each panel, characters counted in.
    """
    count = rng.randint(*panels)
    cast = rng.sample(characters_of(split), rng.randint(*characters))
    named = dict(zip(rng.sample(NAMES, len(cast)), cast, strict=True))
    casting = _cast_panels(rng, list(named), count)
    prompt: list[str | Scene] = [f"{rng.choice(INSTRUCTIONS)} "]
    for number, names in enumerate(casting, start=1):
        last = number == count
        scene, deeds = _draw_panel(rng, split, {n: named[n] for n in names}, things, last)
        told = "" if last else f" {rng.choice(captions_for(deeds, scene.place, CAPTIONS))} "
        prompt += [scene, f" Caption {number}:{told}"]
    return build_example(
        task=TASK,
        split=split,
        prompt=prompt,
        references=captions_for(deeds, scene.place),
        rng=rng,
        truth={
            "names": [deed.name for deed in deeds],
            "acts": {deed.name: deed.act for deed in deeds},
            "held": {deed.name: deed.held for deed in deeds if deed.held is not None},
            "place": scene.place,
            "cast": list(named),
        },
    )


def _cast_panels(rng: random.Random, names: Sequence[str], panels: int) -> list[list[str]]:
    """Who is in which panel: one or two of ``names``, each of them before the last panel."""

    def draw() -> list[list[str]] | None:
        casting = [rng.sample(names, rng.choice((1, 2))) for _ in range(panels)]
        seen = {name for panel in casting[:-1] for name in panel}
        return casting if seen == set(names) else None

    return first_accepted(draw, f"story of {len(names)} characters in {panels} panels")


def _draw_panel(
    rng: random.Random,
    split: Split,
    named: dict[str, Person],
    things: tuple[int, int],
    held_out: bool,
) -> tuple[Scene, list[Deed]]:
    """A picture of the named characters, each with an act of its own.

    With ``held_out`` the first of them does something that ``split`` owns at this place.
    """

    def draw() -> tuple[Scene, list[Deed]] | None:
        place = rng.choice(tuple(PLACES))
        acts = rng.sample([act for act in ACTS if may_do(split, act, place)], len(named))
        if held_out and combination_split(acts[0], place) != split:
            return None
        include = [
            ThingSpec(person=person, act=act)
            for person, act in zip(named.values(), acts, strict=True)
        ]
        relation = None
        if "holding" in acts:
            relation = (acts.index("holding"), "holding", len(include))
            _, held = rng.choice(relations_of("train", "holding"))
            include.append(ThingSpec(held))
        scene = draw_scene(
            rng,
            split,
            include,
            place=place,
            relation=relation,
            count=things,
            fill_persons=0,
        )
        return scene, _deeds(scene, named)

    return first_accepted(draw, "panel")


def _deeds(scene: Scene, named: dict[str, Person]) -> list[Deed]:
    """What the named characters do, from left to right."""
    name_of = {person: name for name, person in named.items()}
    held = {
        item.subject: scene.things[item.object]
        for item in scene.relations
        if item.predicate == "holding"
    }
    deeds = []
    for index, thing in sorted(enumerate(scene.things), key=lambda pair: pair[1].x):
        if thing.person in name_of and thing.act is not None:
            thing_held = held.get(index)
            words = None if thing_held is None else f"{thing_held.color} {thing_held.kind}"
            deeds.append(Deed(name_of[thing.person], thing.act, words))
    return deeds
