"""How the published Cheetah code answers: sampling, an end by id sequences, cleaned text.

The published chat stops a whole batch where its first row has ended; here every row ends by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from polyptych.methods.cheetah.model import PolyptychCheetahForConditionalGeneration
from polyptych.methods.cheetah.released import VARIANTS
from polyptych.schema import Batch

SAMPLING = {"do_sample": True, "top_p": 0.9, "temperature": 1.0, "num_beams": 1}
"""The published chat, for the benchmark, too; without a seed."""

MAX_NEW_TOKENS = 300
"""Longest published answer."""


class StopAtIds(StoppingCriteria):
    """Ends each row whose last new ids are one of some sequences.

    Args:
        stop_ids: The sequences.
        prompt_width: Columns of the prompt, in which nothing ends.
    """

    def __init__(self, stop_ids: Sequence[Sequence[int]], prompt_width: int) -> None:
        self.stop_ids, self.prompt_width = [torch.tensor(ids) for ids in stop_ids], prompt_width

    def __call__(
        self, input_ids: Int[Tensor, "C L"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " C"]:
        """Which rows have just ended."""
        new = input_ids[:, self.prompt_width :]
        ended = new.new_zeros(len(new), dtype=torch.bool)
        for ids in self.stop_ids:
            if new.shape[1] >= len(ids):
                ended |= (new[:, -len(ids) :] == ids.to(new.device)).all(dim=1)
        return ended


@torch.no_grad()
def released_generate(
    model: PolyptychCheetahForConditionalGeneration,
    batch: Batch,
    variant: str = "vicuna",
    *,
    pad_token_id: int,
    end_token_id: int = 2,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **settings: Any,
) -> Int[Tensor, "B L"]:
    """New ids of every prompt by the published rules; rows that have ended go on with pads.

    Args:
        model: In eval mode.
        batch: Prompts, as :func:`polyptych.methods.cheetah.released.released_batch` makes them.
        variant: Name in :data:`polyptych.methods.cheetah.released.VARIANTS`.
        pad_token_id: Fills rows.
        end_token_id: Ends a row in both variants.
        max_new_tokens: Longest answer.
        **settings: Of ``generate``, in place of those in :data:`SAMPLING`.
    """
    width = batch["input_ids"].shape[1]
    generator: Any = model  # transformers types its `self` by a protocol that no model meets
    sequences = generator.generate(
        **batch,
        **{**SAMPLING, **settings},
        max_new_tokens=max_new_tokens,
        eos_token_id=end_token_id,
        pad_token_id=pad_token_id,
        stopping_criteria=StoppingCriteriaList([StopAtIds(VARIANTS[variant].stop_ids, width)]),
    )
    return sequences[:, width:]


def released_texts(tokenizer: Any, ids: Int[Tensor, "B L"], variant: str = "vicuna") -> list[str]:
    """Decoded answers, cut at the variant's end mark and behind a last ``Assistant:``."""
    end = VARIANTS[variant].end_mark
    texts = tokenizer.batch_decode(ids)
    answers = [text.removeprefix("<unk>").removeprefix("<s>").split(end)[0] for text in texts]
    if variant == "vicuna":
        answers = [answer.split("Assistant:")[-1].replace("</s>", "") for answer in answers]
    return [answer.strip() for answer in answers]
