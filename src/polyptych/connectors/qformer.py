"""Q-Former: a few learned queries read an image and the instruction, and become visual tokens.

BLIP-2 (arXiv 2301.12597), instruction-aware form of InstructBLIP (2305.06500). A BERT-shaped,
post-norm stack: queries and instruction attend to each other in every layer, only the queries look
at the image (in every ``cross_attention_frequency``-th layer), and both have feed-forward layers of
their own. Sizes are those of transformers' ``InstructBlipQFormerConfig``; the layers are ours
because three things are not to be had from transformers' version: fused attention, keys and values
of the image computed once for several passes, and two streams that exchange between layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from polyptych.connectors.attention import attend

KeyValue = tuple[Tensor, Tensor]
"""Keys and values split into heads, each (X, heads, L, head width)."""


class MultiHeadAttention(nn.Module):
    """Attention with separate projections, so that keys and values can be kept and re-used."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, source: Float[Tensor, "X L D_s"]) -> KeyValue:
        """Keys and values of a source, computed once for however many queries."""
        return self.split_heads(self.key(source), self.value(source))

    def split_heads(self, keys: Float[Tensor, "X L D"], values: Float[Tensor, "X L D"]) -> KeyValue:
        """Projected keys and values, as queries meet them."""
        return self._split(keys), self._split(values)

    def forward(
        self,
        hidden: Float[Tensor, "X R D"],
        key_value: KeyValue,
        mask: Tensor | None = None,
        score: Float[Tensor, "C L"] | None = None,
    ) -> Float[Tensor, "X R D"]:
        """Attend where ``mask`` is true; ``score`` is added to the logits of its key.

        Keys with fewer rows (C) than ``hidden`` are shared: each by X / C neighbors, whose queries
        stand one after the other in the mask.
        """
        query = self._split(self.query(hidden))
        sharing = len(query) // len(key_value[0])
        if sharing > 1:
            query = query.unflatten(0, (-1, sharing)).transpose(1, 2).flatten(2, 3)
        dropout = self.dropout if self.training else 0.0
        attended = attend(query, *key_value, mask, score, dropout)
        if sharing > 1:
            attended = attended.unflatten(2, (sharing, -1)).transpose(1, 2).flatten(0, 1)
        return self.output(attended.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def weights(
        self,
        hidden: Float[Tensor, "X R D"],
        key_value: KeyValue,
        mask: Tensor | None = None,
        score: Float[Tensor, "C L"] | None = None,
    ) -> Float[Tensor, "X L"]:
        """Where the rows look: attention averaged over heads and rows. For drawing only."""
        query = self._split(self.query(hidden))
        sharing = len(query) // len(key_value[0])
        if sharing > 1:
            query = query.unflatten(0, (-1, sharing)).transpose(1, 2).flatten(2, 3)
        scores = query @ key_value[0].transpose(-1, -2) / query.shape[-1] ** 0.5
        if score is not None:
            scores = scores + score[:, None, None]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1).mean(1).unflatten(1, (sharing, -1)).mean(2).flatten(0, 1)


class FeedForward(nn.Module):
    """The two-layer feed-forward part with its residual and post-norm."""

    def __init__(self, config: InstructBlipQFormerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """``LN(h + W2 act(W1 h))``."""
        return self.norm(hidden + self.dropout(self.down(self.activation(self.up(hidden)))))


class QFormerLayer(GradientCheckpointingLayer):
    """One layer; ``has_cross_attention`` follows the index rule of the published models."""

    def __init__(
        self, config: InstructBlipQFormerConfig, has_cross_attention: bool, reads_text: bool = True
    ) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        drop = config.attention_probs_dropout_prob
        self.has_cross_attention = has_cross_attention
        self.self_attention = MultiHeadAttention(width, width, heads, drop)
        self.self_attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        if has_cross_attention:
            self.cross_attention = MultiHeadAttention(
                width, config.encoder_hidden_size, heads, drop
            )
            self.cross_attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query_ffn = FeedForward(config)
        if reads_text:
            self.text_ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: Float[Tensor, "X S D_q"],
        num_queries: int,
        self_mask: Bool[Tensor, "X 1 1 S"] | None,
        image: KeyValue | None,
        image_mask: Tensor | None = None,
        image_score: Tensor | None = None,
        queries_only: bool = False,
        example: Int[Tensor, " I"] | None = None,
    ) -> Float[Tensor, "Y R D_q"]:
        """One step of the stack.

        ``image`` holds this layer's keys and values (None in layers without cross-attention).
        ``queries_only`` leaves out the text rows of the result, which nobody reads after the last
        layer (R = Q instead of S). With ``example``, ``hidden`` has one row per example: images of
        an example are equal until they are looked at, that is, up to the first such layer.
        """
        rows = hidden[:, :num_queries] if queries_only else hidden
        attended = self.self_attention(rows, self.self_attention.project(hidden), self_mask)
        rows = self.self_attention_norm(rows + self.dropout(attended))
        queries, text = rows[:, :num_queries], rows[:, num_queries:]
        if example is not None:
            queries = queries[example]
        if self.has_cross_attention:
            attended = self.cross_attention(queries, image, image_mask, image_score)
            queries = self.cross_attention_norm(queries + self.dropout(attended))
        queries = self.query_ffn(queries)
        if text.shape[1] == 0:
            return queries
        text = self.text_ffn(text)
        return torch.cat([queries, text if example is None else text[example]], dim=1)


class QFormer(nn.Module):
    """The whole stack, with its queries and text embeddings.

    Args:
        config: Sizes; ``encoder_hidden_size`` is the width D_v of the image features.
        num_query_tokens: Queries Q, hence visual tokens per image.
        reads_text: Whether instructions are read; False leaves out the weights for them.
    """

    layers: Sequence[QFormerLayer]
    """An ``nn.ModuleList``, whose own type forgets what it holds."""

    def __init__(
        self, config: InstructBlipQFormerConfig, num_query_tokens: int, reads_text: bool = True
    ) -> None:
        super().__init__()
        self.config, self.num_query_tokens = config, num_query_tokens
        self.query_tokens = nn.Parameter(torch.zeros(1, num_query_tokens, config.hidden_size))
        if reads_text:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
            self.position_embeddings = nn.Embedding(
                config.max_position_embeddings, config.hidden_size
            )
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        layers = nn.ModuleList(
            QFormerLayer(config, index % config.cross_attention_frequency == 0, reads_text)
            for index in range(config.num_hidden_layers)
        )
        self.layers = cast("Sequence[QFormerLayer]", layers)

    def embed(
        self,
        batch: int,
        instruction_ids: Int[Tensor, "B T_q"] | None,
    ) -> Float[Tensor, "B S D_q"]:
        """Queries (which get no position) followed by the instruction's embeddings; one norm."""
        hidden = self.query_tokens.expand(batch, -1, -1)
        if instruction_ids is not None:
            positions = torch.arange(instruction_ids.shape[1], device=instruction_ids.device)
            text = self.word_embeddings(instruction_ids) + self.position_embeddings(positions)
            hidden = torch.cat([hidden, text], dim=1)
        return self.dropout(self.embedding_norm(hidden))

    def self_mask(
        self, instruction_mask: Int[Tensor, "B T_q"] | None
    ) -> Bool[Tensor, "B 1 1 S"] | None:
        """Which rows may be attended to; None when all may (then attention takes a faster path)."""
        if instruction_mask is None or bool(instruction_mask.all()):
            return None
        visible = instruction_mask.new_ones(len(instruction_mask), self.num_query_tokens)
        return torch.cat([visible, instruction_mask], dim=1).bool()[:, None, None]

    def image_key_values(
        self, image_features: Float[Tensor, "X P D_v"], layers: Sequence[int] | None = None
    ) -> list[KeyValue | None]:
        """Each layer's keys and values of the image; None where there is no cross-attention."""
        wanted = range(len(self.layers)) if layers is None else layers
        return [
            layer.cross_attention.project(image_features)
            if layer.has_cross_attention and index in wanted
            else None
            for index, layer in enumerate(self.layers)
        ]

    def forward(
        self,
        hidden: Float[Tensor, "I S D_q"],
        images: Sequence[KeyValue | None],
        mask: Bool[Tensor, "I 1 1 S"] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "I Q D_q"]:
        """All layers, from embedded rows and each layer's keys and values of the images."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if record is not None:
                self.record_attention(record, index, hidden, images[index])
            hidden = layer(
                hidden, self.num_query_tokens, mask, images[index], queries_only=index == last
            )
            if record is not None:
                record[f"qformer.layer.{index}"] = hidden
        return hidden

    def record_attention(
        self, record: dict[str, Tensor], index: int, hidden: Tensor, image: KeyValue | None
    ) -> None:
        """Keep where the queries look in their own image (I, P): ``attention.layer.<index>``.

        Taken at the layer's input, before its self-attention: cheap, and close enough to draw.
        """
        if image is not None:
            queries = hidden[:, : self.num_query_tokens]
            record[f"attention.layer.{index}"] = self.layers[index].cross_attention.weights(
                queries, image
            )
