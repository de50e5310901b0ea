"""What the base of the SIMA study learns from: descriptions with mistakes, questions, comparisons.

The mistakes are there on purpose. A base that was told of things that are not in its pictures does
so itself, and then there is something to improve.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from polyptych.evaluation.scorers import Measurement, Scorer
from polyptych.evaluation.scoring.chair import (
    ObjectFinder,
    ObjectWords,
    chair_scorer,
    storybook_words,
)
from polyptych.evaluation.tasks.pope_building import CATEGORIES, Category, build_questions
from polyptych.methods.sima.practice import critic_examples, spoil
from polyptych.methods.sima.prompts import BRIEF, CriticFormat
from polyptych.schema import Example, ImageBlock, Message, Prediction, TextBlock
from polyptych.storybook.generation import make_examples, to_example
from polyptych.storybook.vocabulary import Split

FINDER = ObjectFinder(storybook_words(), "fixed")
"""Of the kinds in a description."""

FORMS = tuple(
    CriticFormat(BRIEF, metrics=metrics, ground_truth=ground_truth)
    for metrics in (True, False)
    for ground_truth in (True, False)
)
"""All that a critic of the study may be told; the base has practised each equally often."""


def descriptions(
    split: Split, *, count: int, seed: int, things: tuple[int, int]
) -> Iterator[Example]:
    """Pictures with true descriptions; ``objects`` in the metadata are for CHAIR and POPE."""
    for story in make_examples("description", count=count, split=split, seed=seed, things=things):
        example = to_example(story)
        yield replace(example, metadata={**example.metadata, "objects": objects_of(example)})


def objects_of(example: Example) -> list[str]:
    """Kinds that the true description names, clothes among them: who wears a dress shows one."""
    return sorted({mention.name for mention in FINDER.find(example.references[0])[1]})


Spoil = Callable[[random.Random, Example, int], str]
"""Tells an example's answer with so many mistakes."""


def spoiled(rng: random.Random, example: Example, mistakes: int) -> str:
    """A drawn picture's description with wrong words."""
    assert example.target is not None
    return spoil(rng, example.target, mistakes)


def with_mistakes(
    examples: Iterable[Example], share: float, most: int, tell: Spoil = spoiled
) -> Iterator[Example]:
    """Examples of which a share, by chance, is answered with 1 to ``most`` wrong words."""
    for example in examples:
        rng = random.Random(f"mistakes/{example.id}")
        if rng.random() < share:
            wrong = tell(rng, example, rng.randint(1, most))
            answer = Message("assistant", (TextBlock(wrong),))
            example = replace(example, messages=(*example.prompt, answer))
        yield example


def existence_questions(
    pictures: Sequence[Example], seed: int, categories: Sequence[Category] = CATEGORIES
) -> Iterator[Example]:
    """POPE's questions about pictures: one thing that is there and one that is not.

    Args:
        pictures: Examples of :func:`descriptions`.
        seed: Another one asks for other things.
        categories: How absent things are chosen.
    """
    table = {example.id: example.metadata["objects"] for example in pictures}
    by_id = {example.id: example for example in pictures}
    for category in categories:
        for row in build_questions(table, category, per_image=1, seed=seed):
            question = (ImageBlock(), TextBlock(f" {row['text']}"))
            yield Example(
                id=f"{row['image']}-{category}-{row['label']}",
                messages=(
                    Message("user", question),
                    Message("assistant", (TextBlock(f"{row['label']}."),)),
                ),
                images=by_id[row["image"]].images,
                references=(row["label"],),
                metadata={"task": "polling", "category": category},
            )


def comparisons(
    split: Split, *, count: int, seed: int, things: tuple[int, int]
) -> Iterator[Example]:
    """Practice for the judge, an equal part in each of :data:`FORMS`."""
    for place, form in enumerate(FORMS):
        yield from critic_examples(
            count=count // len(FORMS), split=split, seed=seed + place, form=form, things=things
        )


def corpus_chair(words: ObjectWords) -> Scorer:
    """CHAIR's numbers; those that are ratios of sums have no item values to be averaged."""
    judge, sums = chair_scorer(words, "fixed"), ("chair_i", "recall")

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        return [
            replace(m, per_item=m.per_item and not m.name.startswith(sums))
            for m in judge(examples, predictions)
        ]

    return score
