"""Two answers behind one prompt in one row: who sees whom.

Nothing here knows of a model's family: a decoder of transformers takes a mask over pairs of
positions in place of one over positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from polyptych.errors import PolyptychError
from polyptych.training.labelled import chosen_states

PROMPT, CHOSEN, REJECTED = range(3)
"""What a column of a row belongs to."""

_OWN = frozenset({"attention_mask", "branch", "pair", "reference_log_probs"})
"""Fields of a batch that do not go to the model as they are; nor do those that say what counts."""


def branching_mask(
    attention_mask: Int[Tensor, "B T"], branch: Int[Tensor, " T"]
) -> Bool[Tensor, "B 1 T T"]:
    """Whether a position (rows) sees another one (columns).

    It sees what stands before it in the prompt or in its own answer, and no padding; but padding
    sees itself, since attention to nothing is no number.
    """
    before = torch.ones(len(branch), len(branch), dtype=torch.bool, device=branch.device).tril()
    related = (branch == PROMPT) | (branch[:, None] == branch)
    seen = (before & related) & attention_mask.bool()[:, None, :]
    return (seen | torch.eye(len(branch), dtype=torch.bool, device=branch.device))[:, None]


def scored_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (K, V) of the positions that predict an answer's token, of no other.

    Args:
        model: A vision-language model of this package or an adapted base, also with LoRA or
            wrapped for several processes.
        batch: Of one of the collators in :mod:`polyptych.training.preference_data`.
    """
    inner = getattr(model, "module", model)
    mask = batch["attention_mask"]
    if "branch" in batch:
        mask = _as_attention_takes_it(inner, branching_mask(mask, batch["branch"]))
    inputs = {
        name: value
        for name, value in batch.items()
        if name not in _OWN and not name.startswith("scored_")
    }
    rows, columns = batch["scored_rows"], batch["scored_columns"]
    with chosen_states(inner.get_output_embeddings(), rows, columns):
        return model(**inputs, attention_mask=mask, use_cache=False).logits


def _as_attention_takes_it(model: Any, mask: Tensor) -> Tensor:
    """A mask over pairs of positions; ``eager`` attention adds it, where others select."""
    if model.get_decoder().config._attn_implementation != "eager":
        return mask
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def check_branching(model: Any, longest: int) -> None:
    """Refuse decoders that do not let a mask say who sees whom.

    Args:
        model: A vision-language model of this package.
        longest: Positions of the longest row.

    Raises:
        PolyptychError: For attention that takes no such mask, or that looks no further back than a
            window which is shorter than the rows.
    """
    config = model.get_decoder().config
    if config._attn_implementation not in ("sdpa", "eager"):
        raise PolyptychError(
            f"preference tuning needs attention 'sdpa' or 'eager', not "
            f"{config._attn_implementation!r}: load the model with one of them"
        )
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest and ("sliding_attention" in kinds or not kinds):
        raise PolyptychError(
            f"a {config.model_type} looks back {window} positions; rows have up to {longest}: "
            "set max_length lower"
        )
