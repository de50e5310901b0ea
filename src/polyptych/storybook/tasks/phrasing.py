"""How Storybook names things: noun phrases that all tasks share, lower-case but for names."""

from __future__ import annotations

from collections.abc import Sequence

from polyptych.storybook.vocabulary import Person


def with_article(noun_phrase: str) -> str:
    """Puts "a" or "an" before a noun phrase: "orange ball" → "an orange ball"."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def join_words(words: Sequence[str]) -> str:
    """Joins as English does: "a", "b", "c" → "a, b, and c"; "a", "b" → "a and b"."""
    if len(words) < 3:
        return " and ".join(words)
    return f"{', '.join(words[:-1])}, and {words[-1]}"


def character_phrase(person: Person) -> str:
    """A short description without article: "blond person with a crown and a blue dress".

    It names what catches the eye (color of the hair, hat, clothes), so two characters may share it.
    """
    clothes = with_article(f"{person.clothes_color} {person.clothes}")
    hair = f"{person.hair_color}-haired person"
    if person.hat is None:
        return f"{hair} in {clothes}"
    return f"{hair} with {with_article(person.hat)} and {clothes}"


def person_details(person: Person) -> str:
    """The full description: "person in a red shirt and a cap with long brown hair and glasses"."""
    worn = [with_article(f"{person.clothes_color} {person.clothes}")]
    if person.hat is not None:
        worn.append(with_article(person.hat))
    head = [f"{person.hair} {person.hair_color} hair"] + ["glasses"] * person.glasses
    return f"person in {join_words(worn)} with {join_words(head)}"
