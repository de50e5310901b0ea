"""SAM (Semantic Alignment for Multimodal LLMs) on visual tokens of any base and any number.

arXiv 2408.12867, carried over from the Q-Former (:mod:`polyptych.methods.sam.guidance`) to bases
whose connector is none. Per image j, with visual tokens X_j:

    h_j = W_h norm(X_j)                                  first stream: the initial visual tokens
    s_j = pool(h_j)                                      32 to 64 tokens, by a learned score
    w_j = s_j + told(s_j);  w_j reads {s_i : i != j}     second stream: contextual semantics
    X_j = X_j + W_0 read(h_j; w_j)                       assisted visual token extraction, W_0 = 0

What the second stream looks for is told by the current image; what it finds is chosen among pooled
tokens of the *other* images, whose learned score is added to the attention (the paper's adaptive
adjustment). No token ever meets all tokens of other images: cost is N P + (I P)^2 for I images of
an example and P pooled tokens each. A lone image is left untouched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyptych.adapters.attention import CrossAttention, FeedForward, fitting_width
from polyptych.adapters.method import BaseSizes, check_width
from polyptych.adapters.numbering import FlatPrefill
from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.errors import PolyptychError
from polyptych.methods.camml.shots import pad_ragged
from polyptych.methods.sam.guidance import context_mask, image_slots


@dataclass(frozen=True, slots=True)
class Sam:
    """SAM's guidance among the images of an example."""

    name: ClassVar[str] = "sam"
    seam: ClassVar[str] = "guidance"

    width: int | None = None
    """Channels of both streams; None: by the base's width."""
    pooled_tokens: int = 32
    """P: tokens of each image that the other images can read. Images that have no more of them are
    read whole."""
    layers: int = 1
    """Times that the second stream reads the other images."""

    def fitted(self, base: BaseSizes) -> Sam:
        """With every size filled in."""
        chosen = replace(self, width=self.width or fitting_width(base.hidden_size))
        check_width(self.name, chosen.width)
        if chosen.pooled_tokens < 1 or chosen.layers < 1:
            raise PolyptychError(
                f"sam: {chosen.pooled_tokens} pooled tokens, {chosen.layers} layers; 1 or more each"
            )
        return chosen

    def build(self, base: BaseSizes) -> nn.Module:
        """The module of a fitted method."""
        assert self.width is not None
        return CrossImageGuidance(base.hidden_size, self.width, self.pooled_tokens, self.layers)


class CrossImageGuidance(nn.Module):
    """Both streams; the residual of each visual token.

    Args:
        hidden_size: D_llm.
        width: W, channels of both streams.
        pooled_tokens: P.
        layers: Of the second stream.
    """

    def __init__(self, hidden_size: int, width: int, pooled_tokens: int, layers: int) -> None:
        super().__init__()
        self.pooled_tokens = pooled_tokens
        self.norm = nn.LayerNorm(hidden_size)
        self.narrow = nn.Linear(hidden_size, width)
        self.score = nn.Linear(width, 1)
        self.query_to_w = nn.Linear(width, width)
        self.w_former = nn.ModuleList(_WFormerLayer(width) for _ in range(layers))
        self.read_back = CrossAttention(width)
        self.w_to_query = ZeroLinear(width, hidden_size)

    def forward(self, prefill: FlatPrefill) -> Float[Tensor, "N D_llm"]:
        """What the other images add to each visual token; zero for a lone image."""
        tokens, counts = prefill.visual_tokens, prefill.image_counts
        lengths, several = prefill.tokens_per_image, counts[counts > 1]
        guided = (counts > 1)[prefill.example]  # (I,)
        if bool(guided.all()) and len(several):  # nothing to select: two copies of N D_llm less
            return self._exchange(tokens, lengths, several)
        if len(several) == 0:
            return torch.zeros_like(tokens)
        chosen = guided.repeat_interleave(lengths)
        residual = self._exchange(tokens[chosen], lengths[guided], several)
        return torch.zeros_like(tokens).masked_scatter(chosen[:, None], residual)

    def _exchange(
        self,
        tokens: Float[Tensor, "M D_llm"],
        lengths: Int[Tensor, " G"],
        counts: Int[Tensor, " C"],
    ) -> Float[Tensor, "M D_llm"]:
        """The residual of C examples with several images each, G images in all."""
        flat = self.narrow(self.norm(tokens.to(self.score.weight.dtype)))  # h_j
        pooled, score, filled = pool(flat, self.score(flat)[:, 0], lengths, self.pooled_tokens)
        semantics = self._second_stream(pooled, score, filled, counts)
        padded, mask = pad_ragged(flat, lengths)
        found = self.read_back(padded, semantics, filled[:, None])
        found = found.flatten(0, 1) if mask is None else found[mask]
        return self.w_to_query(found).to(tokens.dtype)

    def _second_stream(
        self,
        pooled: Float[Tensor, "G P W"],
        score: Float[Tensor, "G P"],
        filled: Bool[Tensor, "G P"],
        counts: Int[Tensor, " C"],
    ) -> Float[Tensor, "G P W"]:
        """Contextual semantics of the G images of C examples, each with other images."""
        image, present = image_slots(counts, torch.arange(len(counts), device=counts.device))
        places = score.shape[1]
        visible = context_mask(filled[image] & present[..., None], places)[:, 0]  # (C, J P, J P)
        source = pooled[image].flatten(1, 2)
        told = (pooled + self.query_to_w(pooled))[image].flatten(1, 2)
        for layer in self.w_former:
            told = layer(told, source, visible, score[image].flatten(1))
        return told.unflatten(1, (-1, places))[present]


class _WFormerLayer(nn.Module):
    """The second stream reads the pooled tokens of other images once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width)
        self.merge = nn.Linear(width, width)
        self.feed_forward = FeedForward(width)

    def forward(
        self,
        rows: Float[Tensor, "C R W"],
        source: Float[Tensor, "C R W"],
        visible: Bool[Tensor, "C R R"],
        score: Float[Tensor, "C R"],
    ) -> Float[Tensor, "C R W"]:
        """``visible`` keeps a row away from its own image."""
        rows = rows + self.merge(self.attention(self.norm(rows), source, visible, score))
        return self.feed_forward(rows)


def pool(
    flat: Float[Tensor, "N W"],
    score: Float[Tensor, " N"],
    lengths: Int[Tensor, " G"],
    places: int,
) -> tuple[Float[Tensor, "G P W"], Float[Tensor, "G P"], Bool[Tensor, "G P"]]:
    """Each image's tokens as at most P, in order: neighbors merge by the softmax of a score.

    Memory is linear in the tokens. An image of n <= P tokens keeps them all, in its first n places.

    Returns:
        Pooled tokens, the score of each (the log of its summed weights' mean; 0 where none is), and
        where there is one.
    """
    image = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    start = lengths.cumsum(0) - lengths
    order = torch.arange(len(flat), device=flat.device) - start[image]
    used = lengths.clamp(max=places)
    place = order * used[image] // lengths[image]
    index, size = image * places + place, len(lengths) * places
    top = score.new_full((size,), float("-inf")).scatter_reduce(0, index, score.detach(), "amax")
    weight = (score - top[index]).exp()
    total = weight.new_zeros(size).index_add(0, index, weight)
    count = weight.new_zeros(size).index_add(0, index, torch.ones_like(weight))
    share = weight / total[index]
    shares = share[:, None] * flat
    pooled = shares.new_zeros(size, flat.shape[1]).index_add(0, index, shares)
    filled = count > 0
    mean = torch.where(filled, total, 1.0).log() - count.clamp(min=1).log() + top
    mean = torch.where(filled, mean, 0.0)
    shape = (len(lengths), places)
    return pooled.view(*shape, -1), mean.view(shape), filled.view(shape)
