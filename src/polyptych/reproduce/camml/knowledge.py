"""Sets of the CaMML study: close pictures, facts to retrieve, and worlds in which facts differ.

Storybook's ``knowledge_qa`` asks for facts that stand in another record only. A *world* is one way
in which these facts could be: it gives the answers of each sort to other persons and things. Every
training example lives in a world of its own, shots and answer alike, so that nothing can be learned
by heart and what the shots say has to be read. One more world is the edited datastore.
"""

from __future__ import annotations

import io
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data.records import read_records, write_records
from polyptych.retrieval.neighbors import NeighborTable
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.storybook.generation import make_examples
from polyptych.storybook.rendering import draw_with_masks
from polyptych.storybook.scenes import Scene
from polyptych.storybook.tasks.base import StoryExample
from polyptych.storybook.tasks.knowledge_qa import (
    ATTRIBUTES,
    FACT_REQUESTS,
    FACTS,
    PERSON_ATTRIBUTES,
    Entity,
    entities_of,
)
from polyptych.storybook.vocabulary import Split

PICTURE_SIZE = 48
"""Side of a picture in pixels: the middle of a drawn one of 96, with who or what it is about."""

THINGS = (1, 2)
"""Least and greatest number of things that are drawn."""

ANSWERS = {name: attribute.answers for name, attribute in ATTRIBUTES.items()}
"""All answers of each sort."""

FACTS_FILE, QUESTIONS_FILE, NEIGHBORS_FILE = "facts.jsonl", "questions.jsonl", "neighbors.arrow"


# --- Facts and questions --------------------------------------------------------------------------


def draw_knowledge(folder: Path, split: Split, *, count: int, seed: int) -> None:
    """Write questions, and each fact that they ask for once, with pictures of their own.

    Args:
        folder: Gets ``facts.jsonl`` and ``questions.jsonl``.
        split: Owns the persons and things; no fact of another split is about one of them.
        count: Questions.
        seed: Another seed draws others.
    """
    stories = list(
        make_examples("knowledge_qa", count=2 * count, split=split, seed=seed, things=THINGS)
    )
    facts = {story.metadata["fact_id"]: story for story in stories if _is_fact(story)}
    write_records(folder / FACTS_FILE, map(close_up, facts.values()))
    write_records(
        folder / QUESTIONS_FILE, (close_up(story) for story in stories if not _is_fact(story))
    )


def _is_fact(story: StoryExample) -> bool:
    return story.metadata["role"] == "fact"


def close_up(story: StoryExample) -> Example:
    """The record with a picture of its subject alone; a question's answer is one word or phrase."""
    truth = {name: story.metadata[name] for name in ("fact_id", "entity", "attribute", "answer")}
    messages = story.messages
    if not _is_fact(story):
        answer = Message("assistant", (TextBlock(f"{truth['answer']}."),))
        messages = (*messages[:-1], answer)
    picture = cut_out(story.scenes[0], subject(story))
    return Example(story.id, messages, (picture,), story.references, metadata=truth)


def subject(story: StoryExample) -> int:
    """Which thing of the picture a record is about: its only person, or its only one of a kind."""
    truth = story.metadata
    of_person = truth["attribute"] in PERSON_ATTRIBUTES
    return next(
        index
        for index, thing in enumerate(story.scenes[0].things)
        if (thing.person is not None if of_person else truth["entity"] == _described(thing))
    )


def _described(thing: Any) -> str:
    return f"{thing.color} {thing.kind}"


def cut_out(scene: Scene, index: int) -> ImageRef:
    """The part of a drawn picture around one thing, as PNG."""
    picture, owner = draw_with_masks(scene, 2 * PICTURE_SIZE)
    rows, columns = np.where(owner == index)
    top, left = (
        min(max((int(places.min()) + int(places.max()) - PICTURE_SIZE) // 2, 0), PICTURE_SIZE)
        for places in (rows, columns)
    )
    buffer = io.BytesIO()
    picture.crop((left, top, left + PICTURE_SIZE, top + PICTURE_SIZE)).save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


# --- Worlds ---------------------------------------------------------------------------------------


class World:
    """Other answers: those of each sort go round, so that every fact differs from the true one.

    Args:
        seed: Another seed makes another world.
        answers: Those of each sort; what is of another sort stays as it is.
    """

    def __init__(self, seed: str, answers: Mapping[str, Sequence[str]] = ANSWERS) -> None:
        rng = random.Random(f"world/{seed}")
        self.answers: dict[str, dict[str, str]] = {}
        for name, possible in answers.items():
            order = list(possible)
            rng.shuffle(order)
            self.answers[name] = dict(zip(order, [*order[1:], order[0]], strict=True))

    def retold(self, example: Example) -> Example:
        """A fact or question as it is in this world: answer, references and truth."""
        truth = example.metadata
        if truth["attribute"] not in self.answers:
            return example
        old = truth["answer"]
        new = self.answers[truth["attribute"]][old]
        word = re.compile(rf"\b{re.escape(old)}\b")
        *asked, told = example.messages
        return replace(
            example,
            messages=(*asked, Message(told.role, (TextBlock(word.sub(new, told.text)),))),
            references=tuple(word.sub(new, reference) for reference in example.references),
            metadata={**truth, "answer": new},
        )


# --- Questions with shots -------------------------------------------------------------------------


class Datastore:
    """The facts of a split, and which of them stand nearest to each of its questions.

    Args:
        folder: With facts, questions and their neighbors.
    """

    def __init__(self, folder: Path) -> None:
        self.facts = list(read_records(folder / FACTS_FILE))
        self.questions = list(read_records(folder / QUESTIONS_FILE))
        self._by_id = {fact.id: fact for fact in self.facts}
        self._by_fact = defaultdict(list)
        for fact in self.facts:
            self._by_fact[fact.metadata["fact_id"]].append(fact)
        self._neighbors = NeighborTable(folder / NEIGHBORS_FILE)

    def retrieved(self, question: Example, count: int) -> list[Example]:
        """The nearest facts, best first."""
        return [self._by_id[hit.id] for hit in self._neighbors.hits(question)[:count]]

    def drawn(self, count: int, seed: str) -> list[Example]:
        """Facts by chance, the same for the same seed."""
        return random.Random(f"drawn/{seed}").sample(self.facts, count)

    def asked_for(self, question: Example) -> list[Example]:
        """The one fact that answers; of several, one. A question's own record is none."""
        facts = self._by_fact[question.metadata["fact_id"]]
        return [fact for fact in facts if fact.id != question.id][:1]

    def with_answer(self, question: Example, shots: list[Example], seed: str) -> list[Example]:
        """The shots; where none of them answers, the fact that does in place of one by chance."""
        if not _answers(question, shots):
            place = random.Random(f"answer/{seed}").randrange(len(shots))
            shots = [*shots[:place], *self.asked_for(question), *shots[place + 1 :]]
        return shots


def with_shots(question: Example, shots: Sequence[Example], world: World | None) -> Example:
    """A question with shots, all of one world (None: as they were drawn).

    The truth says whether the shots have what is asked for.
    """
    if world is not None:
        question, shots = world.retold(question), [world.retold(shot) for shot in shots]
    found = _answers(question, shots)
    told = tuple(replace(shot, references=(), metadata={}) for shot in shots)
    return replace(question, shots=told, metadata={**question.metadata, "found": found})


def _answers(question: Example, shots: Sequence[Example]) -> bool:
    return any(shot.metadata["fact_id"] == question.metadata["fact_id"] for shot in shots)


def concatenated(example: Example) -> Example:
    """Shots written into the prompt, pictures and words, before the question and its picture."""
    if not example.shots:
        return example
    blocks: list[Block] = [TextBlock("context: ")]
    for shot in example.shots:
        said = " ".join(message.text.strip() for message in shot.messages)
        blocks += [*([ImageBlock()] * len(shot.images)), TextBlock(f" {said} ")]
    first, *rest = example.messages
    images = [image for shot in example.shots for image in shot.images]
    return replace(
        example,
        messages=(replace(first, content=(*blocks, TextBlock("image: "), *first.content)), *rest),
        images=(*images, *example.images),
        shots=(),
    )


# --- What the base learns -------------------------------------------------------------------------

_DESCRIBE = ("What is this?", "Describe the picture.", "Who or what is shown?")


def base_examples(
    facts: Sequence[Example], split: Split, *, count: int, seed: int
) -> list[Example]:
    """What a language model that sees brings along: naming a picture, and reading for an answer.

    A third each: a picture to name; a question over facts that name whom they are about, in words;
    and the same about a picture. Every text is of a world of its own.

    Args:
        facts: With the pictures.
        split: Of the facts.
        count: How many examples.
        seed: Another seed makes others.
    """
    entities = {entity.description: entity for group in entities_of(split) for entity in group}
    return list(_base_examples(facts, entities, count, random.Random(f"base/{split}/{seed}")))


def _base_examples(
    facts: Sequence[Example], entities: Mapping[str, Entity], count: int, rng: random.Random
) -> Iterator[Example]:
    for number in range(count):
        fact, sort = rng.choice(facts), number % 3
        description = fact.metadata["entity"]
        blocks: list[Block] = [ImageBlock()]
        if sort == 0:
            blocks.append(TextBlock(f" {rng.choice(_DESCRIBE)}"))
            answer = description
        else:
            world = World(f"base/{rng.random()}")
            truth = fact.metadata
            answer = world.answers[truth["attribute"]][truth["answer"]]
            others = rng.sample(facts, rng.randint(0, 3))
            told = [_in_words(each, entities, world, rng) for each in others]
            told.insert(rng.randint(0, len(told)), _in_words(fact, entities, world, rng))
            called = f"the {description}" if sort == 1 else entities[description].called
            asked = ATTRIBUTES[truth["attribute"]].question.format(called)
            question: list[Block] = [TextBlock(f"context: {' '.join(told)} ")]
            if sort == 1:
                blocks = [*question, TextBlock(asked)]
            else:
                blocks = [*question, TextBlock("image: "), *blocks, TextBlock(f" {asked}")]
        yield Example(
            f"base-{number:06d}",
            (Message("user", tuple(blocks)), Message("assistant", (TextBlock(f"{answer}."),))),
            fact.images if any(isinstance(block, ImageBlock) for block in blocks) else (),
            references=(f"{answer}.",),
            metadata={"sort": ("name", "read", "see and read")[sort], "answer": answer},
        )


def _in_words(
    fact: Example, entities: Mapping[str, Entity], world: World, rng: random.Random
) -> str:
    """A fact that names whom it is about by a description, as its picture would."""
    truth = fact.metadata
    entity, attribute = entities[truth["entity"]], ATTRIBUTES[truth["attribute"]]
    answer = world.answers[truth["attribute"]][truth["answer"]]
    told = attribute.statement.format(entity.name, answer=answer)
    called = f"the {entity.description}"
    text = rng.choice(FACTS).format(name=entity.name, it=called, told=told)
    return f"{rng.choice(FACT_REQUESTS).format(called)} {text}"


# --- Judging --------------------------------------------------------------------------------------


def knowledge_correct(text: str, truth: Mapping[str, Any]) -> bool:
    """Whether an answer names what the datastore says, and nothing else of the same sort."""
    return _named(text, truth["attribute"]) == {truth["answer"]}


def named_correct(text: str, truth: Mapping[str, Any]) -> bool:
    """Whether a base's answer is the expected words."""
    return _plain(text) == _plain(truth["answer"])


def _named(text: str, attribute: str) -> set[str]:
    plain = f" {_plain(text)} "
    return {answer for answer in ATTRIBUTES[attribute].answers if f" {_plain(answer)} " in plain}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))
