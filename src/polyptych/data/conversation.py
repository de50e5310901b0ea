"""Messages become one row of segments: text, images, and which of it the model has to say.

A template is a few strings. ``plain`` is the published BLIP-2 family's: the prompt, then the
answer, nothing between; ``vicuna_v1`` is that of LLaVA-1.5. Models with a chat template of their
own are served by their own processors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyptych.schema import Block, ImageBlock, Message, TextBlock


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the row: ``text`` is None for an image; ``is_target`` marks what is learned."""

    text: str | None
    is_target: bool = False
    is_context: bool = False
    """The place of what the example's shots become; ``text`` is None here, too."""


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


@dataclass(frozen=True, slots=True)
class ContextTemplate:
    """How a question says that it has shots, and how a shot's turns become one text."""

    before: str
    """What the question begins with, before the context tokens."""
    after: str
    """What follows these."""
    with_image: str = "The image for this question: "
    """Before the image, which moves to the front where it is the only one."""
    after_image: str = "\nThe question is: "
    with_images: str = "The images are part of the question. The question is: "
    """Before a question of several images, which stay where they are."""
    without_image: str = "There is no image for this question. The question is: "
    between_turns: str = "\n"
    """Between the turns of a shot."""


def _context_template(kind: str, space: str = " ", between_turns: str = "\n") -> ContextTemplate:
    """The published wording; ``space`` is missing in the released code."""
    return ContextTemplate(
        before="This is the useful context information for this question: ",
        after=(
            f", which contains previous {kind}question answering examples, please use this "
            f"context information to answer{space}the following {kind}question. "
        ),
        between_turns=between_turns,
    )


CONTEXT_TEMPLATES = {
    "instruction": _context_template(""),
    "science": _context_template("scientific "),
    "released_instruction": _context_template("", space="", between_turns=""),
    "released_science": _context_template("scientific ", space="", between_turns=""),
    # For models of a few layers, to which every word of an instruction is a cost.
    "brief": ContextTemplate(
        before="context: ",
        after=" ",
        with_image="image: ",
        after_image=" ",
        with_images="",
        without_image="",
        between_turns=" ",
    ),
}


def shot_text(messages: Sequence[Message], context: str) -> str:
    r"""All that is said in a shot, without its images and without roles.

    ``[user: image "What is it?"], "A dog." -> "What is it?\nA dog."``
    """
    texts = (message.text.strip() for message in messages)
    return CONTEXT_TEMPLATES[context].between_turns.join(text for text in texts if text)


def render(
    messages: Sequence[Message], template: str, *, with_target: bool, context: str | None = None
) -> list[Segment]:
    r"""Lay the turns out in a row.

    Without target, the last answer is left out and the row ends where the model has to speak::

        [user: image "What is it?"], "qa"  ->  "question: " <image> "What is it? answer: "
        the same, "vicuna_v1"  ->  "A chat … USER: " <image> "\nWhat is it? ASSISTANT:"

    Neighboring text pieces are joined, so that a tokenizer sees whole words.

    Args:
        messages: The turns.
        template: Name in :data:`TEMPLATES`.
        with_target: Whether the last answer belongs to the row.
        context: Name in :data:`CONTEXT_TEMPLATES`, where the first question has shots.
    """
    parts = TEMPLATES[template]
    turns = list(messages)
    first = next((turn for turn in turns if turn.role == "user"), None)
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
        content: Sequence[Block] = message.content
        if context is not None and message is first:
            asked = CONTEXT_TEMPLATES[context]
            pieces += [Segment(asked.before), Segment(None, is_context=True)]
            content = _after_context(message, asked)
        pieces += [Segment(text, is_target=answers) for text in _texts(content, parts)]
        if answers and parts.answer_end is not None:
            pieces.append(Segment(parts.answer_end, is_target=True))
        if is_system:
            pieces.append(Segment(parts.after_system))
    if turns and turns[-1].role != "assistant":
        pieces.append(Segment(parts.before_assistant))
    return _join(pieces)


def _after_context(message: Message, asked: ContextTemplate) -> list[Block]:
    """The question as it goes on behind the context tokens."""
    if message.image_count == 0:
        return [TextBlock(asked.after + asked.without_image), *message.content]
    if message.image_count > 1:
        return [TextBlock(asked.after + asked.with_images), *message.content]
    question = TextBlock(asked.after_image + message.text.strip())
    return [TextBlock(asked.after + asked.with_image), ImageBlock(), question]


def _texts(content: Sequence[Block], parts: Template) -> Iterator[str | None]:
    """A message's pieces of text, None for an image."""
    leading = True
    for block, following in zip(content, (*content[1:], None), strict=True):
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
