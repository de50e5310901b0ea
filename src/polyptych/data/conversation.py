"""Messages become one row of segments: text, images, and which of it the model has to say.

A template is four strings. ``plain`` is the published BLIP-2 family's: the prompt, then the answer,
nothing between. Models with a chat template of their own are served by their own processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyptych.schema import ImageBlock, Message


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the row: ``text`` is None for an image; ``is_target`` marks what is learned."""

    text: str | None
    is_target: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around the turns."""

    before_user: str
    before_assistant: str
    between_turns: str


TEMPLATES = {
    "plain": Template(before_user="", before_assistant="", between_turns="\n"),
    "qa": Template(before_user="question: ", before_assistant=" answer: ", between_turns="\n"),
}


def render(messages: Sequence[Message], template: str, *, with_target: bool) -> list[Segment]:
    """Lay the turns out in a row.

    Without target, the last answer is left out and the row ends where the model has to speak::

        [user: image "What is it?"], "qa"  ->  "question: " <image> "What is it? answer: "

    Neighboring text pieces are joined, so that a tokenizer sees whole words.
    """
    parts = TEMPLATES[template]
    turns = list(messages)
    if not with_target and turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    pieces: list[Segment] = []
    for index, message in enumerate(turns):
        if index and message.role != "assistant":
            pieces.append(Segment(parts.between_turns))
        answers = message.role == "assistant"
        pieces.append(Segment(parts.before_assistant if answers else parts.before_user))
        for block in message.content:
            text = None if isinstance(block, ImageBlock) else block.text
            pieces.append(Segment(text, is_target=answers))
    if turns and turns[-1].role != "assistant":
        pieces.append(Segment(parts.before_assistant))
    return _join(pieces)


def _join(pieces: Sequence[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for piece in pieces:
        if piece.text == "":
            continue
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.text is not None
            and piece.text is not None
            and last.is_target == piece.is_target
        ):
            joined[-1] = Segment(last.text + piece.text, last.is_target)
        else:
            joined.append(piece)
    return joined
