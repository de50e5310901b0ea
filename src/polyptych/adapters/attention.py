"""What the methods' modules share: attention over padded groups, at the borders of an adapter."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from polyptych.connectors.attention import attend

HEAD_WIDTH = 32
"""Channels of an attention head inside an adapter."""


class CrossAttention(nn.Module):
    """Rows read a source; multi-head, without a projection at the end.

    Args:
        width: Of rows and source; a multiple of :data:`HEAD_WIDTH`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def forward(
        self,
        rows: Float[Tensor, "X R W"],
        source: Float[Tensor, "X L W"],
        allowed: Bool[Tensor, "X _ L"] | None = None,
        score: Float[Tensor, "X L"] | None = None,
    ) -> Float[Tensor, "X R W"]:
        """Rows look where ``allowed`` is true; ``score`` is added to the logits of the source."""
        query, key, value = (
            states.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for states in (self.query(rows), *self.key_value(source).chunk(2, dim=-1))
        )
        mask = None if allowed is None else allowed[:, None]
        read = attend(query, key, value, mask, score)
        return read.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Two layers with a norm before them and the input added after them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, states: Float[Tensor, "X R W"]) -> Float[Tensor, "X R W"]:
        """Every row by itself."""
        return states + self.down(functional.gelu(self.up(self.norm(states))))


def fitting_width(hidden_size: int) -> int:
    """Channels of an adapter by the decoder's: a quarter, in whole heads, 512 at most."""
    heads = max(1, round(hidden_size / 4 / HEAD_WIDTH))
    return min(512, heads * HEAD_WIDTH)
