"""What the published Cheetah code does around the model: prompts, row layout, stopping.

Not needed to use the method, but to be equal to its released form (arXiv 2308.04152) in every id:

- The prompt is cut at its images and each piece is tokenized alone (as everywhere here), but in a
  batch each piece is also *padded* alone, so that the images of all rows stand in the same places:
  on the right in training, where pads in the middle count as positions, on the left in chat.
- In training the answer stands right behind the prompt's last word and the last piece's padding
  behind the answer.
- Vicuna is asked with other spaces than it was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import normalizers
from torch import Tensor
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.tokenization import EncodedExample
from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.model import PolyptychCheetahForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import (
    IGNORE_INDEX,
    Batch,
    Block,
    Example,
    ImageBlock,
    ImageRef,
    Message,
    TextBlock,
)
from polyptych.training.freezing import select_trainable

RELEASED_TRAINABLE = ("vpgc",)
"""The published setting trains VPG-C's two linears and its queries, nothing else."""


@dataclass(frozen=True, slots=True)
class ReleasedVariant:
    """What differs between the two published models, beside their language model."""

    training_template: str
    """Row template of training, in :data:`polyptych.data.conversation.TEMPLATES`."""
    chat_template: str
    """Row template of chat."""
    max_target_tokens: int
    """Limit on the answer with its end, cut from the right."""
    pad_token: str
    """What fills rows."""
    stop_ids: tuple[tuple[int, ...], ...]
    """An answer ends where its last ids are one of these."""
    end_mark: str
    """Where the decoded text is cut."""


VARIANTS = {
    "vicuna": ReleasedVariant(
        training_template="vicuna_v0_training",
        chat_template="vicuna_v0",
        max_target_tokens=160,
        pad_token="</s>",
        stop_ids=((835,), (2277, 29937)),  # "###" at the start of a word and within
        end_mark="###",
    ),
    "llama2": ReleasedVariant(
        training_template="llama2",
        chat_template="llama2",
        max_target_tokens=360,
        pad_token="<unk>",
        stop_ids=((2,),),
        end_mark="</s>",
    ),
}

IMAGE_MARK = re.compile("<Img><HereForImage></Img>|<ImageHere>|<image>")
"""How prompts name an image's place: as the published code does, or as we do."""


def freeze_to_released(model: PolyptychCheetahForConditionalGeneration) -> list[str]:
    """Freeze all but the five tensors that the published setting trains; returns their names."""
    return select_trainable(model, RELEASED_TRAINABLE)


# --- prompts -------------------------------------------------------------------------------------


def training_content(instruction: str) -> tuple[Block, ...]:
    """An instruction with image marks as message content, its spaces as they are."""
    blocks: list[Block] = []
    for index, piece in enumerate(IMAGE_MARK.split(instruction)):
        blocks += [ImageBlock()] * (index > 0)
        blocks += [TextBlock(piece)] * bool(piece)
    return tuple(blocks)


def chat_content(instruction: str) -> tuple[Block, ...]:
    """The same as the published chat builds it: blank pieces dropped, a space at every seam."""
    blocks: list[Block] = []
    for index, piece in enumerate(IMAGE_MARK.split(instruction)):
        if index > 0:
            blocks += [TextBlock(" ")] * bool(blocks)
            blocks.append(ImageBlock())
        if piece.strip():
            blocks.append(TextBlock(f" {piece}" if blocks else piece))
    return tuple(blocks)


def released_example(instruction: str, target: str | None = None) -> Example:
    """One published prompt: with a target a training example, without a chat request."""
    content = chat_content(instruction) if target is None else training_content(instruction)
    messages = [Message("user", content)]
    if target is not None:
        messages.append(Message("assistant", (TextBlock(target),)))
    images = (ImageRef(data=b""),) * messages[0].image_count  # rows need their number only
    return Example("prompt", tuple(messages), images)


# --- rows ----------------------------------------------------------------------------------------


def released_tokenizer(folder: str | Path, variant: str = "vicuna") -> PreTrainedTokenizerFast:
    """LLaMA's tokenizer as the published code sets it up: bos 1, eos 2, padding by variant.

    Every text gets a blank in front, also one that begins with a blank, as SentencePiece does it.
    """
    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special["pad_token"] = VARIANTS[variant].pad_token
    backend = LlamaTokenizer.from_pretrained(folder, **special).backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = None  # which adds a blank only where there is none
    backend.model.unk_token = "<unk>"  # transformers leaves this unset and drops unknown pieces
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def released_image_processor(image_size: int = 224) -> BlipImageProcessorPil:
    """The published evaluation transform: squeezed to a square, bicubic; CLIP's mean and deviation.

    Args:
        image_size: Side of the square in pixels.
    """
    return BlipImageProcessorPil(size={"height": image_size, "width": image_size})


def released_processor(
    tokenizer: PreTrainedTokenizerFast,
    variant: str = "vicuna",
    *,
    image_token_id: int,
    image_size: int = 224,
    tokens_per_image: int = 32,
    training: bool = False,
) -> PolyptychProcessor:
    """The published preprocessing (evaluation transform) and prompts.

    Args:
        tokenizer: See :func:`released_tokenizer`.
        variant: Name in :data:`VARIANTS`.
        image_token_id: The model's placeholder id.
        image_size: See :func:`released_image_processor`.
        tokens_per_image: Visual tokens per image.
        training: Whether prompts are those of training or of chat.
    """
    chosen = VARIANTS[variant]
    return PolyptychProcessor(
        released_image_processor(image_size),
        tokenizer,
        image_token_id=image_token_id,
        tokens_per_image=tokens_per_image,
        template=chosen.training_template if training else chosen.chat_template,
        max_target_tokens=chosen.max_target_tokens,
    )


@dataclass(frozen=True, slots=True)
class ReleasedRow:
    """A row before padding: the n + 1 pieces of text around n images, and the answer."""

    pieces: tuple[tuple[int, ...], ...]
    """The first starts with bos; the answer is not among them."""
    target: tuple[int, ...] = ()


def split_row(row: EncodedExample, image_token_id: int, tokens_per_image: int) -> ReleasedRow:
    """Cut an encoded row at its images and before its answer."""
    pieces: list[tuple[int, ...]] = []
    start = index = 0
    while index <= row.last_prompt:
        if row.input_ids[index] == image_token_id:
            pieces.append(tuple(row.input_ids[start:index]))
            start = index = index + tokens_per_image
        else:
            index += 1
    pieces.append(tuple(row.input_ids[start : row.last_prompt + 1]))
    return ReleasedRow(tuple(pieces), tuple(row.input_ids[row.last_prompt + 1 :]))


def lay_out(
    rows: Sequence[ReleasedRow],
    *,
    image_token_id: int,
    tokens_per_image: int,
    pad_token_id: int,
    training: bool,
) -> Batch:
    """Published padding of rows with equally many images.

    Two rows of one image (``#``), pieces "a b | c" and "d | e f", answers "x" and "y z"::

        training   a b # c x . .      chat   a b # . c
                   d . # e f y z             . d # e f

    Raises:
        PolyptychError: If rows have different numbers of images.
    """
    counts = sorted({len(row.pieces) - 1 for row in rows})
    if len(counts) > 1:
        raise PolyptychError(
            f"the published layout takes equally many images in all rows; got {counts[0]} and "
            f"{counts[-1]}"
        )
    pad = _Padding(pad_token_id, right=training)
    image = torch.full((len(rows), tokens_per_image), image_token_id)
    columns = []
    for index in range(counts[0] + 1):
        if index:
            columns.append((image, torch.ones_like(image)))
        columns.append(pad([row.pieces[index] for row in rows]))
    ids, mask = (torch.cat(parts, dim=1) for parts in zip(*columns, strict=True))
    batch = Batch(image_counts=torch.full((len(rows),), counts[0]))
    if training:
        targets, target_mask = pad([row.target for row in rows])
        return batch | _with_targets(ids, mask, targets, target_mask)
    batch |= Batch(input_ids=ids, attention_mask=mask)
    batch["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    batch["last_prompt"] = torch.full((len(rows),), ids.shape[1] - 1)
    return batch


@dataclass(frozen=True, slots=True)
class _Padding:
    pad_token_id: int
    right: bool

    def __call__(self, pieces: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(len(piece) for piece in pieces)
        ids = torch.full((len(pieces), width), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, piece in enumerate(pieces):
            start = 0 if self.right else width - len(piece)
            ids[row, start : start + len(piece)] = torch.tensor(piece, dtype=torch.long)
            mask[row, start : start + len(piece)] = 1
        return ids, mask


def _with_targets(ids: Tensor, mask: Tensor, targets: Tensor, target_mask: Tensor) -> Batch:
    """Put each answer behind its prompt's last word; pads in the middle count as positions."""
    columns = torch.arange(mask.shape[1])
    last_prompt = (mask * columns).argmax(dim=1)
    labels = targets.masked_fill(target_mask == 0, IGNORE_INDEX)
    rows: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    nothing = torch.full_like(ids, IGNORE_INDEX)
    for name, prompts, answers in (
        ("input_ids", ids, targets),
        ("attention_mask", mask, target_mask),
        ("labels", nothing, labels),
    ):
        for prompt, answer, last in zip(prompts, answers, last_prompt.tolist(), strict=True):
            rows[name].append(torch.cat([prompt[: last + 1], answer, prompt[last + 1 :]]))
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    length = stacked["input_ids"].shape[1]
    positions = torch.arange(length).expand(len(ids), -1)
    return Batch(**stacked, position_ids=positions, last_prompt=last_prompt)  # type: ignore[typeddict-item]


def released_batch(
    processor: PolyptychProcessor,
    instructions: Sequence[str],
    pixel_values: Float[Tensor, "I 3 H W"],
    targets: Sequence[str] | None = None,
) -> Batch:
    """Prompts with image marks and their images in the published layout.

    Args:
        processor: See :func:`released_processor`, ``training`` where targets are given.
        instructions: What is asked, with a mark at every image's place.
        pixel_values: All images, row by row.
        targets: Answers to train on; None makes prompts to answer.
    """
    answers = [None] * len(instructions) if targets is None else targets
    rows = [
        split_row(
            processor.encode(released_example(text, answer), with_target=answer is not None),
            processor.image_token_id,
            processor.tokens_per_image,
        )
        for text, answer in zip(instructions, answers, strict=True)
    ]
    batch = lay_out(
        rows,
        image_token_id=processor.image_token_id,
        tokens_per_image=processor.tokens_per_image,
        pad_token_id=processor.pad_token_id,
        training=targets is not None,
    )
    batch["pixel_values"] = pixel_values
    return batch
