"""What the sample's tasks ask, drawn from Storybook: one function per kind of DEMON task.

Each takes a source of chance and gives one sample. Their wording is Storybook's own; what they
share with DEMON is the form: interleaved images, numbered placeholders, both ways of writing
choices, answers that are texts, letters of images, or numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from polyptych.schema import ImageBlock
from polyptych.storybook.rendering import draw
from polyptych.storybook.scenes import Scene, kinds_in
from polyptych.storybook.tasks import (
    change_captioning,
    description,
    existence,
    knowledge_qa,
    storytelling,
)
from polyptych.storybook.tasks.base import StoryExample
from polyptych.storybook.vocabulary import KINDS, NAMES, Split

SPLIT: Split = "test"
"""Whose compositions the pictures show: none of them occurs in Storybook's training sets."""

SIZE = 96
"""Width and height of a picture in pixels."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a DEMON file before it is written."""

    context: str
    pictures: list[Image.Image]
    response: str | int
    choices: list[str] | None = None
    """For ``choice_list``; None where there are none or they stand in the context."""


@dataclass(frozen=True, slots=True)
class SampleTask:
    """A DEMON task that the sample has, and how one of its samples is drawn."""

    openings: tuple[str, str]
    requests: tuple[str, ...]
    make: Callable[[random.Random], Sample]

    @property
    def instructions(self) -> list[str]:
        """The templates, ten: every opening with every request."""
        return [f"{opening} {request} " for opening in self.openings for request in self.requests]


def _dialogue(rng: random.Random) -> Sample:
    """A fact is told over one picture and asked for over the next."""
    told, asked = _fact_and_question(rng)
    context = f"Turn 1: {_context(told)} Answer: {told.target} Turn 2: {_context(asked, 2)} Answer:"
    return Sample(context, _drawn([*told.scenes, *asked.scenes]), asked.target)


def _story(rng: random.Random) -> Sample:
    story = storytelling.make_example(rng, SPLIT)
    return Sample(_context(story), _drawn(story.scenes), story.target)


def _change(rng: random.Random) -> Sample:
    change = change_captioning.make_example(rng, SPLIT)
    return Sample(_context(change), _drawn(change.scenes), change.target)


def _next_panel(rng: random.Random) -> Sample:
    """The last panel among four; the choices stand in the context."""
    shown, options, letter = _panels(rng)
    first = len(shown) + 1
    listed = ", ".join(f"'Image {x}: {{image#{first + i}}} '" for i, x in enumerate("ABCD"))
    context = "".join(f"{{image#{k}}}" for k in range(1, first))
    context += f"Choice List:[{listed}]Your answer is: "
    return Sample(context, _drawn([*shown, *options]), f"Image {letter}")


def _missing_picture(rng: random.Random) -> Sample:
    """As :func:`_next_panel`, with a list of choices; the published scorer wants one as answer."""
    shown, options, letter = _panels(rng)
    first = len(shown) + 1
    context = " ".join(f"{{image#{k}}}" for k in range(1, first))
    choices = [f"Image {x}: {{image#{first + i}}}" for i, x in enumerate("ABCD")]
    return Sample(
        f"Picture series: {context} UNKNOWN ",
        _drawn([*shown, *options]),
        choices["ABCD".index(letter)],
        choices,
    )


def _missing_caption(rng: random.Random) -> Sample:
    stories = [storytelling.make_example(rng, SPLIT) for _ in range(4)]
    choices = _shuffled(rng, [story.target for story in stories])
    context = f"{_context(stories[0])} UNKNOWN "
    return Sample(context, _drawn(stories[0].scenes), stories[0].target, choices)


def _knowledge(rng: random.Random) -> Sample:
    told, asked = _fact_and_question(rng)
    truth = asked.metadata
    others = [
        a for a in knowledge_qa.ATTRIBUTES[truth["attribute"]].answers if a != truth["answer"]
    ]
    choices = _shuffled(rng, [truth["answer"], *rng.sample(others, 3)])
    context = f"{{image#1}}Source: {told.target} Question: {_context(asked, 2)} "
    context += f"Choice List:[{_quoted(choices)}] Your answer is:"
    return Sample(context, _drawn([*told.scenes, *asked.scenes]), truth["answer"])


def _table(rng: random.Random) -> Sample:
    """A table as a picture: who owns what; a second picture shows the thing that is meant."""
    scene = description.make_example(rng, SPLIT).scenes[0]
    kinds = sorted(kinds_in(scene))
    kind = rng.choice(kinds)
    others = rng.sample(sorted(set(KINDS) - set(kinds)), 3)
    rows = _shuffled(rng, [kind, *others])
    owners = rng.sample(NAMES, 4)
    page = _page([f"{thing}: {owner}" for thing, owner in zip(rows, owners, strict=True)])
    context = (
        "Table: {table#1} Picture: {image#2} Question: who owns a thing that the picture shows? "
    )
    return Sample(context, [page, *_drawn([scene])], owners[rows.index(kind)], list(owners))


def _cover(rng: random.Random) -> Sample:
    """A book cover with title and author above a picture."""
    scene = description.make_example(rng, SPLIT).scenes[0]
    authors = rng.sample(NAMES, 4)
    title = f"The {rng.choice(sorted(kinds_in(scene)))}"
    cover = Image.new("RGB", (SIZE, SIZE + 32), "white")
    cover.paste(draw(scene, SIZE), (0, 32))
    ImageDraw.Draw(cover).multiline_text((3, 1), f"{title}\nby {authors[0]}", fill="black")
    context = "{image#1}Question: who wrote this book? "
    return Sample(context, [cover], authors[0], _shuffled(rng, authors))


def _statement(rng: random.Random) -> Sample:
    asked = existence.make_example(rng, SPLIT, pictures=(2, 2))
    thing = f"{asked.metadata['color']} {asked.metadata['kind']}"
    context = (
        f"{{image#1}}{{image#2}}Relation: one of the pictures shows a thing that is a {thing}. "
    )
    context += "Choice List:['True','False']Answer: "
    answer = "True" if asked.metadata["answer"] == "yes" else "False"
    return Sample(context, _drawn(asked.scenes), answer)


def _count(rng: random.Random) -> Sample:
    """The answer is a number, in the file, too."""
    scenes = [description.make_example(rng, SPLIT).scenes[0] for _ in range(rng.randint(3, 4))]
    kind = rng.choice(sorted(set[str]().union(*map(kinds_in, scenes))))
    context = "".join(f"{{image#{k}}}" for k in range(1, len(scenes) + 1))
    context += f"How many pictures show the kind of thing called {kind}? "
    context += f"Choice List:[{_quoted(map(str, range(5)))}] Your answer is:"
    return Sample(context, _drawn(scenes), sum(kind in kinds_in(scene) for scene in scenes))


_CHOOSE = tuple(
    f"{request} You must choose your answer from the Choice List."
    for request in (
        "Find the right answer.",
        "Which one is it?",
        "Say which one fits.",
        "Give the answer.",
        "Choose what is right.",
    )
)

SAMPLE_TASKS: dict[str, SampleTask] = {
    "MMCoQA": SampleTask(
        ("Here is a talk about pictures.", "Two turns of a talk follow, each with a picture."),
        (
            "Give the answer of the last turn.",
            "Answer the last question with what was said before.",
            "What is answered at the end?",
            "Finish the talk.",
            "Say what the second turn asks for.",
        ),
        _dialogue,
    ),
    "VIST": SampleTask(
        ("Pictures and captions of a story follow.", "Read the pictures in order."),
        (
            "Write the last caption.",
            "Tell how the story ends.",
            "Say in one sentence what happens at the end.",
            "Give the caption that is missing.",
            "End the story.",
        ),
        _story,
    ),
    "Spot-the-Diff": SampleTask(
        ("Two pictures of one place follow.", "Compare the first picture with the second."),
        (
            "Say what is different.",
            "Describe the change in one sentence.",
            "Name the one change.",
            "What happened between them?",
            "Tell what changed.",
        ),
        _change,
    ),
    "COMICS_Panel": SampleTask(
        ("Which panel goes on with this story?", "Look for the next panel."), _CHOOSE, _next_panel
    ),
    "RecipeQA_VisualCloze": SampleTask(
        ("A picture of this series is missing.", "Which picture stands for UNKNOWN?"),
        _CHOOSE,
        _missing_picture,
    ),
    "RecipeQA_TextCloze": SampleTask(
        ("A caption of this story is missing.", "Which caption stands for UNKNOWN?"),
        _CHOOSE,
        _missing_caption,
    ),
    "WebQA": SampleTask(
        ("A source with a picture and a question follow.", "Look for the answer in the source."),
        _CHOOSE,
        _knowledge,
    ),
    "MultiModalQA": SampleTask(
        ("A table and a picture follow.", "Look at both, the table and the picture."),
        _CHOOSE,
        _table,
    ),
    "OCR-VQA": SampleTask(
        ("The cover of a book follows.", "Read what stands on this cover."), _CHOOSE, _cover
    ),
    "NLVR2": SampleTask(
        ("Is the sentence true for these pictures?", "Compare the sentence with both pictures."),
        _CHOOSE,
        _statement,
    ),
    "Fashion200K": SampleTask(
        ("Count through all of the pictures.", "The answer is a number."), _CHOOSE, _count
    ),
}
"""DEMON task to how the sample draws it; every category has at least one."""


def _fact_and_question(rng: random.Random) -> tuple[StoryExample, StoryExample]:
    """Linked records: both come from the same chance, so they are about the same fact."""
    seed = rng.getrandbits(64)
    return (
        knowledge_qa.make_example(random.Random(seed), SPLIT, role="fact"),
        knowledge_qa.make_example(random.Random(seed), SPLIT, role="question"),
    )


def _panels(rng: random.Random) -> tuple[list[Scene], list[Scene], str]:
    """Panels of a story without the last, four last panels, and the letter of its own."""
    stories = [storytelling.make_example(rng, SPLIT, panels=(3, 4)) for _ in range(4)]
    order = _shuffled(rng, range(4))
    options = [stories[index].scenes[-1] for index in order]
    return list(stories[0].scenes[:-1]), options, "ABCD"[order.index(0)]


def _context(story: StoryExample, first: int = 1) -> str:
    """What is asked, with placeholders numbered from ``first``."""
    parts, number = [], first
    for block in story.messages[0].content:
        if isinstance(block, ImageBlock):
            parts.append(f"{{image#{number}}}")
            number += 1
        else:
            parts.append(block.text)
    return "".join(parts)


def _drawn(scenes: Sequence[Scene]) -> list[Image.Image]:
    return [draw(scene, SIZE) for scene in scenes]


def _page(lines: Sequence[str]) -> Image.Image:
    page = Image.new("RGB", (2 * SIZE, SIZE), "white")
    ImageDraw.Draw(page).multiline_text((6, 6), "\n".join(lines), fill="black", spacing=8)
    return page


def _shuffled(rng: random.Random, items: Sequence[Any]) -> list[Any]:
    return rng.sample(items, len(items))


def _quoted(choices: Iterable[str]) -> str:
    return ",".join(f"'{choice}'" for choice in choices)
