"""What the published SAM code does around the model: row layout and candidate ranking.

Not needed to use the method, but to be equal to its released form (arXiv 2408.12867) in every id:
all images first, then the raw text; the Q-Former's text and, in training, the prompt are cut from
the left; between the images and the shorter prompts of a batch stand pads; candidates are ranked
with guidance off. Generation is in :mod:`polyptych.methods.sam.released_generation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.collation import Collator
from polyptych.data.tokenization import EncodedExample
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import IGNORE_INDEX, Batch, Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.training.freezing import select_trainable

RELEASED_TRAINABLE = ("connector.guidance",)
"""The published setting trains adaptive adjustment and the two exchange layers, nothing else."""


def freeze_to_released(model: PolyptychSamForConditionalGeneration) -> list[str]:
    """Freeze all but the six tensors that the published setting trains; returns their names."""
    return select_trainable(model, RELEASED_TRAINABLE)


def released_language_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Vicuna's tokenizer as the published code sets it up: ``</s>`` (2) is also bos, ``[PAD]`` new.

    A piece outside the vocabulary is id 0. (The published code renames the unknown token to
    ``</s>`` as well, but SentencePiece goes on giving id 0.)
    """
    special: dict[str, Any] = {
        "bos_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "[PAD]",
    }
    backend = LlamaTokenizer.from_pretrained(folder, **special).backend_tokenizer
    # transformers leaves this unset, and then drops unknown pieces; Vicuna's own has byte fallback.
    # LlamaTokenizer would forget it again when it is loaded, so the plain class holds the result.
    backend.model.unk_token = "<unk>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def released_qformer_tokenizer(folder: str | Path) -> BertTokenizer:
    """Lower-casing WordPiece with the extra token ``[DEC]``, which fixes the vocabulary's size."""
    return BertTokenizer.from_pretrained(folder, bos_token="[DEC]")


def released_image_processor(image_size: int = 224) -> BlipImageProcessorPil:
    """The published evaluation transform: squeezed to a square, bicubic; CLIP's mean and deviation.

    Args:
        image_size: Side of the square in pixels.
    """
    return BlipImageProcessorPil(size={"height": image_size, "width": image_size})


def released_processor(
    language_tokenizer: PreTrainedTokenizerFast,
    qformer_tokenizer: BertTokenizer,
    *,
    image_size: int = 224,
    tokens_per_image: int = 32,
    max_text_tokens: int = 128,
    max_output_tokens: int = 256,
    training: bool = False,
) -> PolyptychProcessor:
    """The published preprocessing (evaluation transform) and row layout.

    Args:
        language_tokenizer: See :func:`released_language_tokenizer`.
        qformer_tokenizer: See :func:`released_qformer_tokenizer`.
        image_size: See :func:`released_image_processor`.
        tokens_per_image: Visual tokens per image.
        max_text_tokens: Limit on the Q-Former's text and, in training, on the prompt (with bos).
        max_output_tokens: Limit on the target, counting a bos that is then dropped.
        training: Whether prompts are cut; the published generation cuts only the Q-Former's text.
    """
    return PolyptychProcessor(
        released_image_processor(image_size),
        language_tokenizer,
        qformer_tokenizer,
        image_token_id=len(language_tokenizer),  # outside the vocabulary: no text can be an image
        tokens_per_image=tokens_per_image,
        layout="images_first",
        template="plain",
        max_prompt_tokens=max_text_tokens if training else None,
        max_target_tokens=max_output_tokens - 1,
        max_instruction_tokens=max_text_tokens,
    )


def released_rows(
    processor: PolyptychProcessor,
    prompts: Sequence[str],
    image_counts: Sequence[int],
    targets: Sequence[str] | None = None,
) -> list[EncodedExample]:
    """Raw prompts over images -> rows of ids, with targets to train on or without.

    ``{image#1}`` and the like in a prompt stay literal text, as in the published code.
    """
    rows = []
    for index, (prompt, count) in enumerate(zip(prompts, image_counts, strict=True)):
        messages = [Message("user", (*[ImageBlock()] * count, TextBlock(prompt)))]
        if targets is not None:
            messages.append(Message("assistant", (TextBlock(targets[index]),)))
        refs = (ImageRef(data=b""),) * count  # rows need the number of images only
        example = Example(f"prompt {index + 1}", tuple(messages), refs)
        rows.append(processor.encode(example, with_target=targets is not None))
    return rows


def released_batch(
    processor: PolyptychProcessor,
    prompts: Sequence[str],
    pixel_values: Float[Tensor, "I 3 H W"],
    image_counts: Sequence[int],
    targets: Sequence[str] | None = None,
) -> Batch:
    """A batch of :func:`released_rows` with its images: to train on, or prompts to answer."""
    rows = released_rows(processor, prompts, image_counts, targets)
    batch = Collator(processor, training=targets is not None).pad(rows)
    batch["pixel_values"] = pixel_values
    return batch


@torch.no_grad()
def rank_candidates(
    model: PolyptychSamForConditionalGeneration,
    processor: PolyptychProcessor,
    prompts: Sequence[str],
    candidates: Sequence[str],
    pixel_values: Float[Tensor, "I 3 H W"],
    image_counts: Sequence[int],
) -> Int[Tensor, "B candidates"]:
    """Indices of the candidates from the likeliest to the unlikeliest, for every prompt.

    As the published ``predict_class``: guidance is off, candidates have no end token, and the loss
    of a candidate is divided by the length of the whole padded row, equal for all of them. So the
    order is that of the *summed* token losses, and long candidates rank low.
    """
    features = model.vision_encoder(pixel_values)
    collator = Collator(processor, training=True)
    prompt_rows = released_rows(processor, prompts, image_counts)
    losses = []
    for candidate in candidates:
        ids = processor.tokenizer(candidate, add_special_tokens=False)["input_ids"]
        rows = [
            replace(row, input_ids=row.input_ids + ids, labels=row.labels + ids)
            for row in prompt_rows
        ]
        batch = collator.pad(rows)
        labels = batch.pop("labels")[:, 1:]
        with model.guidance_disabled():
            logits = model(**batch, image_features=features).logits[:, :-1]
        token_losses = cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none"
        )
        losses.append(token_losses.sum(dim=1))
    return torch.stack(losses, dim=1).argsort(dim=1)
