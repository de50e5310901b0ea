"""Attention whose keys may carry a learned score, fused."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

_EXTRA = 8
"""Channels added for the score: one is used, and CUDA's kernels want whole multiples of eight."""


def attend(
    query: Float[Tensor, "X H R D"],
    key: Float[Tensor, "X H L D"],
    value: Float[Tensor, "X H L D"],
    mask: Bool[Tensor, "X _ _ L"] | None = None,
    score: Float[Tensor, "X L"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "X H R D"]:
    """``softmax(q k / sqrt(D) + s) v`` over the keys that are visible.

    A learned score cannot be a mask: fused kernels give masks no gradient, and the logits of all
    pairs would be written out. So it is one more channel of the keys, which every query meets with
    a one.

    Args:
        query: Rows in heads.
        key: Keys in heads.
        value: Values in heads.
        mask: True where a row may look; each row sees one key at least.
        score: s, of each key and equal in all heads; finite.
        dropout: Share of weights that are dropped.
    """
    if score is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout
        )
    width, scale = query.shape[-1], query.shape[-1] ** -0.5
    channel = (score / scale).to(key.dtype)[:, None, :, None].expand(*key.shape[:3], 1)
    attended = functional.scaled_dot_product_attention(
        functional.pad(query, (0, _EXTRA), value=1.0),
        functional.pad(torch.cat([key, channel], dim=-1), (0, _EXTRA - 1)),
        functional.pad(value, (0, _EXTRA)),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scale,
    )
    return attended[..., :width]
