"""Prompts of unequal length on a CPU: read one by one where padding costs more than company saves.

Eight prompts with one to eight images are as long as the longest when they are read together, and
half of what is read is padding. A GPU does not mind; on a CPU each padded token costs as much as a
real one, and rows of hundreds of tokens gain nothing from each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from polyptych.language.prefill import Prefill

CALL = 300_000_000
"""Multiplications that take as long as one more call of a decoder of some layers: about 3 ms."""


def costs_less_alone(
    language_model: nn.Module, mask: Int[Tensor, "B T"] | None, cache: Cache | None
) -> bool:
    """Whether the padding of these prompts, to be read into ``cache``, is worth avoiding."""
    if mask is None or mask.ndim != 2 or mask.device.type != "cpu" or len(mask) == 1:
        return False
    if cache is not None and (
        type(cache) is not DynamicCache
        or cache.get_seq_length() > 0
        or any(type(layer) is not DynamicLayer for layer in cache.layers)
    ):
        return False
    if bool((mask[:, 1:] < mask[:, :-1]).any()):  # something is left out that is not in front
        return False
    padding = mask.numel() - int(mask.sum())
    weights = sum(weight.numel() for weight in language_model.parameters())
    return padding * weights > CALL * (len(mask) - 1)


def read_one_by_one(
    decode: Callable[..., Any],
    inputs_embeds: Float[Tensor, "B T D_llm"],
    prefill: Prefill,
    mask: Int[Tensor, "B T"],
) -> CausalLMOutputWithPast:
    """Logits (B, 1, V) of the last positions and the cache, as if padded rows had been read.

    Args:
        decode: Calls the language model.
        inputs_embeds: Rows, padded on the left.
        prefill: What is known of all of them.
        mask: Where they are not padding.
    """
    length, logits, rows = mask.shape[1], [], []
    for row, real in enumerate(mask.sum(dim=1).tolist()):
        output = decode(
            inputs_embeds[row : row + 1, length - real :],
            prefill=prefill.of_example(row, length - real),
            attention_mask=None,
            position_ids=None,
            past_key_values=None,
            use_cache=True,
            logits_to_keep=1,
        )
        logits.append(output.logits)
        rows.append([(layer.keys, layer.values) for layer in output.past_key_values.layers])
    layers = [
        tuple(
            torch.cat([functional.pad(x, (0, 0, length - x.shape[2], 0)) for x in parts])
            for parts in zip(*layer, strict=True)
        )
        for layer in zip(*rows, strict=True)
    ]
    return CausalLMOutputWithPast(logits=torch.cat(logits), past_key_values=DynamicCache(layers))
