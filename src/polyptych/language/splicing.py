"""Visual tokens take the places that the tokenizer reserved for them, one id per token."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyptych.errors import PolyptychError


def embed_text(
    table: nn.Module, input_ids: Int[Tensor, "B T"], visual_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T D_llm"]:
    """Word embeddings; placeholders (which may lie outside the vocabulary) get those of id 0."""
    return table(input_ids.masked_fill(visual_mask, 0))


def splice_visual_tokens(
    embeddings: Float[Tensor, "B T D_llm"],
    visual_mask: Bool[Tensor, "B T"],
    visual_tokens: Float[Tensor, "N D_llm"],
    tokens_per_example: Int[Tensor, " B"],
) -> Float[Tensor, "B T D_llm"]:
    """Put each visual token at its placeholder, in order.

    Raises:
        PolyptychError: If a row has another number of placeholders than its images have tokens;
            names the row and both numbers.
    """
    places = visual_mask.sum(dim=1)
    if not torch.equal(places, tokens_per_example):
        row = int((places != tokens_per_example).nonzero()[0, 0])
        raise PolyptychError(
            f"row {row} of the batch has {int(places[row])} image placeholders for "
            f"{int(tokens_per_example[row])} visual tokens"
        )
    tokens = visual_tokens.to(embeddings.dtype)
    return embeddings.masked_scatter(visual_mask[..., None], tokens)


def repeat_examples(
    visual_tokens: Float[Tensor, "N D_llm"], tokens_per_example: Int[Tensor, " B"], copies: int
) -> tuple[Float[Tensor, "M D_llm"], Int[Tensor, " C"]]:
    """Each example's tokens ``copies`` times in a row: the order of rows under beam search."""
    if copies == 1:
        return visual_tokens, tokens_per_example
    parts = visual_tokens.split(tokens_per_example.tolist())
    repeated = torch.cat([part for part in parts for _ in range(copies)])
    return repeated, tokens_per_example.repeat_interleave(copies)
