"""Messages become one row of segments: text, images, and which of it the model has to say.

A template is a few strings. ``plain`` is the published BLIP-2 family's: the prompt, then the
answer, nothing between; ``vicuna_v1`` is that of LLaVA-1.5. Models with a chat template of their
own are served by their own processors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyptych.schema import ImageBlock, Message, TextBlock


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
    system: str = ""
    """What the row begins with, unless the messages begin with a system message of their own;
    empty: there is nothing, and a system message reads like a user's."""
    after_system: str = ""
    after_leading_image: str = ""
    """What follows an image that no text precedes in its message, unless it stands there anyway."""
    start: str = ""
    """What every row begins with, before everything else."""
    before_image: str = ""
    after_image: str = ""
    answer_end: str | None = None
    """Text that ends an answer and is learned with it; None: the tokenizer's end token does."""


TEMPLATES = {
    "plain": Template(before_user="", before_assistant="", between_turns="\n"),
    "qa": Template(before_user="question: ", before_assistant=" answer: ", between_turns="\n"),
    "vicuna_v1": Template(
        before_user="USER: ",
        before_assistant=" ASSISTANT:",  # the tokenizer of Llama begins an answer with a blank
        between_turns="",  # an end token closes the answer
        system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        after_system=" ",
        after_leading_image="\n",
    ),
    # Vicuna's first version, with marks around images: "###" begins and ends every turn.
    "vicuna_v0": Template(
        start="###",
        before_user="Human: ",
        before_assistant="###Assistant:",
        between_turns="",
        before_image="<Img>",
        after_image="</Img>",
        answer_end="###",
    ),
    # The same with the other blanks that it was trained with.
    "vicuna_v0_training": Template(
        start="###",
        before_user="Human: ",
        before_assistant=" ###Assistant: ",
        between_turns="",
        before_image="<Img>",
        after_image="</Img>",
        answer_end="###",
    ),
    "llama2": Template(
        start="[INST] <<SYS>>\n\n<</SYS>>\n\n",
        before_user="",
        before_assistant=" [/INST]",
        between_turns="<s>[INST] ",
        before_image="<Img>",
        after_image="</Img>",
    ),
}


def render(messages: Sequence[Message], template: str, *, with_target: bool) -> list[Segment]:
    r"""Lay the turns out in a row.

    Without target, the last answer is left out and the row ends where the model has to speak::

        [user: image "What is it?"], "qa"  ->  "question: " <image> "What is it? answer: "
        the same, "vicuna_v1"  ->  "A chat … USER: " <image> "\nWhat is it? ASSISTANT:"

    Neighboring text pieces are joined, so that a tokenizer sees whole words.
    """
    parts = TEMPLATES[template]
    turns = list(messages)
    if not with_target and turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    pieces: list[Segment] = [Segment(parts.start)]
    if parts.system and not (turns and turns[0].role == "system"):
        pieces.append(Segment(parts.system + parts.after_system))
    for index, message in enumerate(turns):
        if index and message.role != "assistant":
            pieces.append(Segment(parts.between_turns))
        answers = message.role == "assistant"
        is_system = message.role == "system" and bool(parts.system)
        before = parts.before_assistant if answers else "" if is_system else parts.before_user
        pieces.append(Segment(before))
        pieces += [Segment(text, is_target=answers) for text in _texts(message, parts)]
        if answers and parts.answer_end is not None:
            pieces.append(Segment(parts.answer_end, is_target=True))
        if is_system:
            pieces.append(Segment(parts.after_system))
    if turns and turns[-1].role != "assistant":
        pieces.append(Segment(parts.before_assistant))
    return _join(pieces)


def _texts(message: Message, parts: Template) -> Iterator[str | None]:
    """The message's pieces of text, None for an image."""
    leading = True
    for block, following in zip(message.content, (*message.content[1:], None), strict=True):
        if isinstance(block, ImageBlock):
            yield parts.before_image
            yield None
            yield parts.after_image
            has_it = isinstance(following, TextBlock) and following.text.startswith(
                parts.after_leading_image
            )
            if leading and not has_it:
                yield parts.after_leading_image
        else:
            leading = leading and not block.text.strip()
            yield block.text


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
