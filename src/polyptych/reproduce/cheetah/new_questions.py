"""More training examples for the Cheetah study's backbone, from the pictures that are there.

A language model of a few layers learns thousands of drawn examples by heart and nothing that holds
for other pictures (measured: training loss 0.23, and no kind of thing named right). These are other
questions about other pairs of the same pictures, so that every answer has to be read from them.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from polyptych.reproduce.cheetah.detail_questions import ALONE, DECOYS, QUESTIONS, WEIGHTS, Question
from polyptych.reproduce.cheetah.salience import INSTRUCTIONS, captions_for, named_things
from polyptych.reproduce.sam.variety import numbered_pictures
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.storybook.graph import Scene, scene_from_json
from polyptych.storybook.tasks import change_captioning
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import PERSON

Picture = tuple[ImageRef, Mapping[str, Any]]
"""An image and its scene as JSON."""


def recaptioned(pictures: Sequence[Picture], *, count: int, seed: int = 0) -> Iterator[Example]:
    """Captions of pictures that were drawn for other tasks."""
    rng = random.Random(f"recaptioned/{seed}")
    for number, (image, scene) in enumerate(rng.sample(pictures, min(count, len(pictures)))):
        references = captions_for(scene_from_json(dict(scene)))
        question = (ImageBlock(), TextBlock(f" {rng.choice(INSTRUCTIONS)}"))
        answer = Message("assistant", (TextBlock(rng.choice(references)),))
        yield Example(
            f"recaptioned-{number}", (Message("user", question), answer), (image,), references
        )


def changed_back(examples: Sequence[Example], *, seed: int = 0) -> Iterator[Example]:
    """Every change told the other way round: from the second picture to the first."""
    rng = random.Random(f"changed back/{seed}")
    for example in examples:
        change = reverse(example.metadata["change"])
        yield numbered_pictures(
            f"{example.id}-back",
            example.images[::-1],
            rng.choice(change_captioning.QUESTIONS),
            change_captioning.captions_for(change),
            rng,
            {"change": change},
        )


def reverse(change: Mapping[str, str]) -> dict[str, str]:
    """What undoes a change; what has been added is deleted, a new color is the old one."""
    other = {"add": "delete", "delete": "add"}.get(change["type"], change["type"])
    turned = {"type": other}
    for name in ("kind", "color", "size"):
        old, new = change.get(name), change.get(f"new_{name}")
        changes = new is not None or change["type"] == "delete"
        if old is not None:
            turned[f"new_{name}" if changes else name] = old
        if new is not None:
            turned[name] = new
    return turned


def requestioned(pictures: Sequence[Picture], *, count: int, seed: int = 0) -> Iterator[Example]:
    """Detail questions about new pairs of pictures.

    As in :mod:`polyptych.reproduce.cheetah.detail_questions`, half of those about colors and kinds
    ask for what captions name, answers are equally likely, and many other pictures would give
    another.

    Args:
        pictures: Of training.
        count: How many questions.
        seed: Another seed asks others.
    """
    rng = random.Random(f"requestioned/{seed}")
    by_answer: dict[tuple[Question, bool], dict[str, list[_Found]]]
    by_answer = defaultdict(lambda: defaultdict(list))
    by_word: dict[tuple[Question, str], list[_Found]] = defaultdict(list)
    for place, (_, scene) in enumerate(pictures):
        for question, word, answer, named in _askable(scene_from_json(dict(scene))):
            by_answer[question, named][answer].append(_Found(word, answer, place))
            by_word[question, word].append(_Found(word, answer, place))
    for number in range(count):
        question = rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
        named = question != "act" and rng.random() < 0.5
        answers = by_answer[question, named]
        asked = rng.choice(answers[rng.choice(sorted(answers))])
        decoy = rng.choice(by_word[question, asked.word])
        if decoy.answer == asked.answer or rng.random() > DECOYS:
            decoy = _Found("", "", rng.randrange(len(pictures)))
        focus = rng.randrange(2)
        pair = (asked, decoy) if focus == 0 else (decoy, asked)
        words = (asked.word, focus + 1) if asked.word else (focus + 1,)
        yield numbered_pictures(
            f"requestioned-{number}",
            [pictures[found.place][0] for found in pair],
            QUESTIONS[question].format(*words),
            (f"{with_article(asked.answer) if question == 'kind' else asked.answer}.",),
            rng,
            {"question": question, "answer": asked.answer, "named": named},
        )


class _Found(NamedTuple):
    """Something that may be asked of a picture."""

    word: str
    answer: str
    place: int


def _askable(scene: Scene) -> Iterator[tuple[Question, str, str, bool]]:
    """Questions with one answer in a scene: type, word, answer, and whether a caption says it."""
    kinds = Counter(thing.kind for thing in scene.things)
    colors = Counter(thing.color for thing in scene.things)
    named = named_things(scene)
    for index, thing in enumerate(scene.things):
        if thing.kind == PERSON:
            if kinds[PERSON] == 1 and thing.act in ALONE:
                yield "act", "", thing.act, False
            continue
        if kinds[thing.kind] == 1:
            yield "color", thing.kind, thing.color, index in named
        if colors[thing.color] == 1:
            yield "kind", thing.color, thing.kind, index in named
