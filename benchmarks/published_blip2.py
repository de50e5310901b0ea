"""What the published code of SAM and of Cheetah share, written out in their order of work.

Both build on the published BLIP-2: a pre-norm vision transformer and a BERT-shaped Q-Former, with
attention written out everywhere (scores, softmax, product) and additive masks. All parameters are
those of one of our models, so that both sides of a comparison compute the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyptych.connectors.qformer import FeedForward, MultiHeadAttention


def additive(mask: Tensor) -> Tensor:
    """1 = visible -> 0, 0 = hidden -> -10000, shaped to be added to attention scores."""
    return (1.0 - mask[:, None, None, :]) * -10000.0


def encode_image(vision: nn.Module, pixels: Tensor) -> Tensor:
    """The pre-norm vision transformer on one image of each example, with its final norm."""
    embeddings = vision.embeddings
    patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    hidden = torch.cat([embeddings.class_embedding.expand(len(pixels), -1, -1), patches], dim=1)
    hidden = hidden + embeddings.position_embedding
    for block in vision.encoder.layers:
        hidden = hidden + _vision_attention(block.self_attn, block.layer_norm1(hidden))
        mlp, normed = block.mlp, block.layer_norm2(hidden)
        hidden = hidden + mlp.fc2(functional.gelu(mlp.fc1(normed)))
    return vision.post_layernorm(hidden)


def _vision_attention(attention: nn.Module, hidden: Tensor) -> Tensor:
    batch, length, width = hidden.shape
    qkv = attention.qkv(hidden).reshape(batch, length, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    attended = scores.softmax(dim=-1) @ value
    return attention.projection(attended.transpose(1, 2).reshape(batch, length, width))


def bert_attention(
    attention: MultiHeadAttention, hidden: Tensor, source: Tensor, mask: Tensor
) -> Tensor:
    """Attention of a Q-Former layer; keys and values are computed anew in every call."""

    def split(states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], attention.heads, -1).permute(0, 2, 1, 3)

    key, value = split(attention.key(source)), split(attention.value(source))
    query = split(attention.query(hidden))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    attended = (scores + mask).softmax(dim=-1) @ value
    attended = attended.permute(0, 2, 1, 3).contiguous()
    return attention.output(attended.view(hidden.shape))


def bert_feed_forward(part: FeedForward, hidden: Tensor) -> Tensor:
    """The feed-forward part of a Q-Former layer."""
    return part.norm(part.down(functional.gelu(part.up(hidden))) + hidden)
