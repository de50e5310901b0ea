"""An example becomes token ids: one placeholder id per visual token, labels on the answers.

Image tokens are never cut. Where a prompt is longer than the context, words of the prompt go (see
:func:`_fit`), and what went is reported with the example's id.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

from polyptych.data.conversation import TEMPLATES, Segment, render, shot_text
from polyptych.errors import PolyptychError
from polyptych.schema import IGNORE_INDEX, Example

logger = logging.getLogger(__name__)

Layout = Literal["interleaved", "images_first"]


@dataclass(frozen=True, slots=True)
class TokenizationSettings:
    """How rows are laid out; saved with the processor."""

    tokens_per_image: int = 32
    """Placeholders per image: the connector's query tokens Q."""
    layout: Layout = "interleaved"
    """``interleaved``: images stand where the instruction puts them. ``images_first``: all images,
    then all text, as the released SAM does."""
    template: str = "plain"
    """Name in :data:`polyptych.data.conversation.TEMPLATES`."""
    max_length: int | None = None
    """The language model's context in tokens, visual tokens included; None for no limit."""
    max_prompt_tokens: int | None = None
    """Limit on the prompt's text alone, cut from its beginning (released: 128 in training)."""
    max_target_tokens: int | None = None
    """Limit on the answer, cut from its end (released: 256)."""
    max_instruction_tokens: int = 128
    """Limit on what the Q-Former reads of the instruction."""
    context_tokens: int = 0
    """Placeholders in a row whose example has shots, however many; 0: shots are not read."""
    context_template: str = "instruction"
    """Name in :data:`polyptych.data.conversation.CONTEXT_TEMPLATES`."""
    max_shot_tokens: int = 2048
    """Limit on a shot's text, cut from its end."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One row of ids, before padding. ``labels`` align with ``input_ids``."""

    input_ids: list[int]
    labels: list[int]
    last_prompt: int
    instruction_ids: list[int]
    image_count: int
    visual_prefix: int
    """Leading placeholders in the ``images_first`` layout; 0 otherwise."""
    cut: str = ""
    shots: tuple[list[int], ...] = ()
    """Ids of each shot's text; none where shots are not read."""


def encode_example(
    example: Example,
    *,
    tokenizer: Any,
    qformer_tokenizer: Any,
    image_token_id: int,
    settings: TokenizationSettings,
    with_target: bool,
    context_token_id: int | None = None,
) -> EncodedExample:
    """Tokenize one example.

    For two images of 2 tokens (``#`` the placeholder) and "qa"::

        <s> question : # # # # what is shared ? answer : a dog </s>
        labels:  -100 everywhere but on "a dog </s>"; last_prompt: the ":" before "a dog"

    An example with shots also gets ``settings.context_tokens`` times ``context_token_id``.

    Raises:
        PolyptychError: If placeholders and images differ, the instruction or a shot's text is
            empty, or the images alone do not fit the context; names the example and both numbers.
    """
    shots = _shots(example, tokenizer, settings)
    segments = render(
        example.messages,
        settings.template,
        with_target=with_target,
        context=settings.context_template if shots else None,
    )
    places = sum(segment.text is None and not segment.is_context for segment in segments)
    if places != len(example.images):
        raise PolyptychError(
            f"example {example.id}: {places} image placeholders for {len(example.images)} images"
        )
    instruction = " ".join(m.text for m in example.prompt if m.role != "assistant").strip()
    if not instruction:
        raise PolyptychError(f"example {example.id}: the instruction is empty")

    pieces = _tokenize(segments, tokenizer, image_token_id, context_token_id, settings)
    pieces, cut = _fit(pieces, example.id, settings)
    if cut:
        logger.warning("%s", cut)
    ids = [token for piece in pieces for token in piece.ids]
    labels = [
        token if piece.kind == "answer" else IGNORE_INDEX for piece in pieces for token in piece.ids
    ]
    answer = len(pieces[-1].ids) if with_target and example.target is not None else 0
    prefix = places * settings.tokens_per_image if settings.layout == "images_first" else 0
    side = "left" if settings.layout == "images_first" else "right"
    return EncodedExample(
        input_ids=ids,
        labels=labels,
        last_prompt=len(ids) - answer - 1,
        instruction_ids=_instruction_ids(
            instruction, qformer_tokenizer, settings.max_instruction_tokens, side
        ),
        image_count=places,
        visual_prefix=prefix,
        cut=cut,
        shots=shots,
    )


def _shots(
    example: Example, tokenizer: Any, settings: TokenizationSettings
) -> tuple[list[int], ...]:
    """Ids of each shot's text, a bos in front, where shots are read."""
    if settings.context_tokens == 0 or not example.shots:
        return ()
    if settings.layout != "interleaved":
        raise PolyptychError(
            f"example {example.id}: {len(example.shots)} shots have no place in the layout "
            f"{settings.layout}"
        )
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = []
    for number, shot in enumerate(example.shots, start=1):
        text = shot_text(shot.messages, settings.context_template)
        if not text:
            raise PolyptychError(f"example {example.id}: shot {number} ({shot.id}) has no text")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        encoded.append([*bos, *ids][: settings.max_shot_tokens])
    return tuple(encoded)


@dataclass(frozen=True, slots=True)
class _Piece:
    ids: list[int]
    kind: Literal["bos", "image", "context", "text", "answer"]


def _tokenize(
    segments: list[Segment],
    tokenizer: Any,
    image_token_id: int,
    context_token_id: int | None,
    settings: TokenizationSettings,
) -> list[_Piece]:
    """Pieces of ids; a bos before the first text piece, an eos after each answer.

    No eos where the template ends answers by a text of its own.
    """
    eos = [] if TEMPLATES[settings.template].answer_end else [tokenizer.eos_token_id]
    pieces: list[_Piece] = []
    image = _Piece([image_token_id] * settings.tokens_per_image, "image")
    for segment in segments:
        if segment.is_context:
            assert context_token_id is not None  # whoever sets context_tokens has one
            pieces.append(_Piece([context_token_id] * settings.context_tokens, "context"))
        elif segment.text is None:
            pieces.append(image)
        elif segment.is_target:
            ids = tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            ids = [*ids, *eos][: settings.max_target_tokens]
            pieces.append(_Piece(ids, "answer"))
        else:
            ids = tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            pieces.append(_Piece(ids, "text"))
    bos = [] if tokenizer.bos_token_id is None else [_Piece([tokenizer.bos_token_id], "bos")]
    if settings.layout == "interleaved":
        return bos + pieces
    images = [piece for piece in pieces if piece.kind == "image"]
    words = _joined([piece for piece in pieces if piece.kind != "image"])
    if settings.max_prompt_tokens is not None:
        end = len(words) - 1 if segments[-1].is_target else len(words)
        limit = settings.max_prompt_tokens - len(bos)
        words = _from_the_right(words[:end], limit) + words[end:]
    return images + bos + words


def _joined(pieces: list[_Piece]) -> list[_Piece]:
    """Neighboring texts, between which an image stood, as one piece."""
    joined: list[_Piece] = []
    for piece in pieces:
        if joined and joined[-1].kind == piece.kind == "text":
            joined[-1] = _Piece(joined[-1].ids + piece.ids, "text")
        else:
            joined.append(piece)
    return joined


def _from_the_right(pieces: list[_Piece], limit: int) -> list[_Piece]:
    """The last ``limit`` ids."""
    excess = sum(len(piece.ids) for piece in pieces) - limit
    kept = []
    for piece in pieces:
        take = min(max(excess, 0), len(piece.ids))
        kept.append(_Piece(piece.ids[take:], piece.kind))
        excess -= take
    return kept


def _fit(
    pieces: list[_Piece], example_id: str, settings: TokenizationSettings
) -> tuple[list[_Piece], str]:
    """Cut prompt words until the row fits; images, bos and the answer stay.

    Words in the middle go first, oldest first, since the first piece (the instruction) and the last
    one (the question) say what is asked; only then those two, from their beginning.
    """
    length = sum(len(piece.ids) for piece in pieces)
    excess = length - (settings.max_length or length)
    if excess <= 0:
        return pieces, ""
    words = [index for index, piece in enumerate(pieces) if piece.kind == "text"]
    order = words[1:-1] + words[:1] + words[-1:] if len(words) > 1 else words
    kept, removed = list(pieces), 0
    for index in order:
        take = min(excess - removed, len(kept[index].ids))
        kept[index] = _Piece(kept[index].ids[take:], "text")
        removed += take
    if removed < excess:
        fixed = length - removed
        raise PolyptychError(
            f"example {example_id}: {fixed} tokens of images and answer do not fit a context of "
            f"{settings.max_length}"
        )
    cut = (
        f"example {example_id}: cut {removed} prompt tokens (of {length}) to fit a context of "
        f"{settings.max_length}; image tokens are kept"
    )
    return kept, cut


def _instruction_ids(text: str, tokenizer: Any, limit: int, side: str) -> list[int]:
    """What the Q-Former reads, with its tokenizer's special tokens."""
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    end = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    room = limit - len(start) - len(end)
    words = words[-room:] if side == "left" else words[:room]
    return [*start, *words, *end]
