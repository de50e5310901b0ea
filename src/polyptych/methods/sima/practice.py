"""Comparisons to practise judging on: drawn pictures, whose truth decides every verdict.

A model that has only learned to describe cannot be asked which of two descriptions is better. These
are examples for its training, in the very words that its critic will be asked in: the description
of a drawn picture, told twice, with another number of mistakes in each.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from polyptych.methods.sima.prompts import BRIEF, VERDICTS, CriticFormat
from polyptych.methods.sima.truth import description_truth
from polyptych.schema import Example, Message, TextBlock
from polyptych.storybook.generation import IMAGE_SIZE, make_examples, to_example
from polyptych.storybook.vocabulary import COLORS, KINDS, PLACES, SIZES, Split

MOST_MISTAKES = 4
"""In one of the two descriptions."""


def critic_examples(
    *,
    count: int,
    split: Split,
    seed: int,
    form: CriticFormat | None = None,
    things: tuple[int, int] = (2, 4),
    size: int = IMAGE_SIZE,
) -> Iterator[Example]:
    """Draw comparisons; the answer is ``1`` or ``2``, each as often as the other.

    Args:
        count: How many.
        split: Split of the pictures.
        seed: Another seed draws another set.
        form: What the critic is told; default: the brief prompt with all its parts.
        things: Least and greatest number of things in a picture.
        size: Width and height of a picture in pixels.
    """
    form = form or CriticFormat(BRIEF)
    stories = make_examples("description", count=count, split=split, seed=seed, things=things)
    for number, story in enumerate(stories):
        rng = random.Random(f"comparison/{split}/{seed}/{number}")
        example = to_example(story, size)
        shown = rng.choice(example.references)
        case = practice_case(rng, form, example, shown, *_unequally_true(rng, example))
        identity = f"comparison-{split}-{seed}-{number:06d}"
        yield replace(case, id=identity, metadata={"task": "comparison", "split": split})


def practice_case(
    rng: random.Random,
    form: CriticFormat,
    asked: Example,
    ground_truth: str,
    better: str,
    worse: str,
) -> Example:
    """One comparison with its verdict, in the words of a critic.

    Args:
        rng: Decides which answer comes first.
        form: What the critic is told.
        asked: The question that was answered, with its pictures.
        ground_truth: Shown where the form says so.
        better: The truer answer.
        worse: The other one.
    """
    verdict = rng.choice(VERDICTS)
    first, second = (better, worse) if verdict == VERDICTS[0] else (worse, better)
    question = [block for message in asked.prompt for block in message.content]
    messages = form.messages(question, ground_truth if form.ground_truth else None, first, second)
    return Example(
        id=asked.id,
        messages=(*messages, Message("assistant", (TextBlock(verdict),))),
        images=asked.images,
        references=(verdict,),
    )


def _unequally_true(rng: random.Random, example: Example) -> tuple[str, str]:
    """Two descriptions of a picture, the truer one first."""
    while True:
        mistakes = rng.sample(range(MOST_MISTAKES + 1), 2)
        told = [spoil(rng, rng.choice(example.references), count) for count in mistakes]
        values = [description_truth(text, example.metadata) for text in told]
        if values[0] != values[1]:
            return (told[0], told[1]) if values[0] > values[1] else (told[1], told[0])


def spoil(rng: random.Random, text: str, mistakes: int) -> str:
    """A description with some of its words exchanged for others of their sort.

    ``"a small red ball on the beach", 2 -> "a small blue kite on the beach"``
    """
    places = list(_WORDS.finditer(text))
    chosen = rng.sample(places, min(mistakes, len(places)))
    for match in sorted(chosen, key=lambda match: match.start(), reverse=True):
        word = match[0]
        sort = next(words for words in _SORTS if word in words)
        other = rng.choice([candidate for candidate in sort if candidate != word])
        text = text[: match.start()] + other + text[match.end() :]
    return with_articles(text)


def with_articles(text: str) -> str:
    """``"a orange"`` -> ``"an orange"``: a wrong article would give an exchanged word away."""
    return re.sub(r"\ban? (?=(\w))", _article, text)


def _article(match: re.Match[str]) -> str:
    return "an " if match[1] in "aeiou" else "a "


_SORTS: tuple[Sequence[str], ...] = (
    tuple(COLORS),
    tuple(SIZES),
    tuple(KINDS),
    tuple(place.phrase for place in PLACES.values()),
)
_WORDS = re.compile(
    r"\b(?:"
    + "|".join(sorted((word for sort in _SORTS for word in sort), key=len, reverse=True))
    + r")\b(?! hair)"
)
