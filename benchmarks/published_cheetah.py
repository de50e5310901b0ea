"""VPG-C as its published code computes it: what the benchmarks of our implementation compare to.

arXiv 2308.04152. A transcription in our own words, from a description of the released program, of
its order of work:

- images go through the vision encoder and the Q-Former one by one, and so they do when the Q-Former
  looks a second time; keys and values of the images are computed again for that;
- the language model is a loop over its layers, with attention written out, masks of T x T, rotary
  tables of the whole context, and logits of every position;
- training computes all of it in every step;
- answers come from a greedy loop with a cache, which ends where the first row of the batch does.

Where the original would be slower for reasons that have nothing to do with its algorithm (dropout
left on in the frozen Q-Former, masks that are built twice, the bookkeeping of transformers'
``generate`` in every step), this transcription takes the faster side. It uses the parameters of one
of our models, so both sides compute the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyptych.methods.cheetah.model import PolyptychCheetahForConditionalGeneration
from polyptych.schema import IGNORE_INDEX
from published_blip2 import additive, bert_attention, bert_feed_forward, encode_image

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer."""


@dataclass(slots=True)
class Prompt:
    """A spliced prompt: every row has its images at the same places."""

    embeddings: Tensor  # (B, T, D_llm)
    spans: list[tuple[int, int]]  # where each image's visual tokens stand
    features: list[Tensor]  # of each image, (B, P, D_v)


class PublishedCheetah:
    """The published order of work over the parameters of ``model``, whose decoder is a LLaMA.

    All inputs are unpadded: rows of equal length, J images for every one of the B examples.
    """

    def __init__(self, model: PolyptychCheetahForConditionalGeneration) -> None:
        self.vision = model.vision_encoder.model
        self.qformer = model.connector.qformer
        self.projection = model.connector.projection
        self.vpgc = model.vpgc
        self.injection_layer = model.config.injection_layer
        self.decoder = model.get_decoder()
        self.head = model.get_output_embeddings()
        config = self.decoder.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.rotary = self._rotary_tables(config.max_position_embeddings)

    def encode_images(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """``(B, 3, J, S, S)`` -> J visual prompts (B, Q, D_llm) and J features (B, P, D_v)."""
        prompts, features = [], []
        for image in range(pixel_values.shape[2]):
            features.append(encode_image(self.vision, pixel_values[:, :, image]))
            queries = self.qformer.query_tokens.expand(len(pixel_values), -1, -1)
            prompts.append(self.projection(self._look(queries, features[-1])))
        return prompts, features

    def splice(self, pieces: list[Tensor], prompts: list[Tensor], features: list[Tensor]) -> Prompt:
        """Text pieces (B, L_j) and visual prompts in turn: piece, image, piece, ..., piece."""
        parts, spans, length = [], [], 0
        for index, piece in enumerate(pieces):
            parts.append(self.decoder.embed_tokens(piece))
            length += piece.shape[1]
            if index < len(prompts):
                parts.append(prompts[index])
                spans.append((length, length + prompts[index].shape[1]))
                length = spans[-1][1]
        return Prompt(torch.cat(parts, dim=1), spans, features)

    def loss(self, prompt: Prompt, answer_ids: Tensor) -> Tensor:
        """Mean cross-entropy of the answers (B, L) behind the prompts."""
        guidance_index = prompt.embeddings.shape[1] - 1
        answer = self.decoder.embed_tokens(answer_ids)
        hidden = torch.cat([prompt.embeddings, answer], dim=1)
        labels = answer_ids.new_full(hidden.shape[:2], IGNORE_INDEX)
        labels[:, -answer_ids.shape[1] :] = answer_ids
        logits = self.read(hidden, [], prompt, guidance_index)
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )

    @torch.no_grad()
    def generate(self, prompt: Prompt, new_tokens: int, eos_token_id: int | None) -> Tensor:
        """Generated ids (B, L); all rows end with the first one."""
        cache: Cache = []
        logits = self.read(prompt.embeddings, cache, prompt, prompt.embeddings.shape[1] - 1)
        ids = logits[:, -1:].argmax(dim=-1)
        rows = [ids]
        while len(rows) < new_tokens and int(ids[0]) != eos_token_id:
            logits = self.read(self.decoder.embed_tokens(ids), cache, None, 0)
            ids = logits[:, -1:].argmax(dim=-1)
            rows.append(ids)
        return torch.cat(rows, dim=1)

    def read(
        self, hidden: Tensor, cache: Cache, prompt: Prompt | None, guidance_index: int
    ) -> Tensor:
        """Logits (B, T, V); VPG-C acts where there is a prompt and nothing in the cache."""
        past = cache[0][0].shape[2] if cache else 0
        length, total = hidden.shape[1], past + hidden.shape[1]
        visible = torch.ones(length, total, dtype=torch.bool, device=hidden.device).tril(past)
        mask = torch.zeros(length, total, dtype=hidden.dtype, device=hidden.device)
        mask = mask.masked_fill(~visible, torch.finfo(hidden.dtype).min)
        mask = mask.expand(len(hidden), 1, length, total)
        positions = torch.arange(past, total, device=hidden.device)
        for index, layer in enumerate(self.decoder.layers):
            if index == self.injection_layer and prompt is not None:
                hidden = self._reintegrate(hidden, prompt, guidance_index)
            hidden = self._layer(layer, index, hidden, mask, positions, cache)
        return self.head(self.decoder.norm(hidden))

    def _reintegrate(self, hidden: Tensor, prompt: Prompt, guidance_index: int) -> Tensor:
        """One more look at each image, added at its span (in place in the original)."""
        guidance = self.vpgc.guidance_projection(hidden[:, guidance_index, None])
        queries = guidance + self.vpgc.query_tokens
        changed = hidden.clone()
        for (start, end), features in zip(prompt.spans, prompt.features, strict=True):
            details = self.vpgc.residual_projection(self._look(queries, features))
            changed[:, start:end] = hidden[:, start:end] + details
        return changed

    def _look(self, queries: Tensor, features: Tensor) -> Tensor:
        """The Q-Former on one image of each example."""
        hidden = self.qformer.embedding_norm(queries)
        self_mask = additive(hidden.new_ones(hidden.shape[:2]))
        image_mask = additive(features.new_ones(features.shape[:2]))
        for layer in self.qformer.layers:
            attended = bert_attention(layer.self_attention, hidden, hidden, self_mask)
            hidden = layer.self_attention_norm(attended + hidden)
            if layer.has_cross_attention:
                attended = bert_attention(layer.cross_attention, hidden, features, image_mask)
                hidden = layer.cross_attention_norm(attended + hidden)
            hidden = bert_feed_forward(layer.query_ffn, hidden)
        return hidden

    def _layer(
        self,
        layer: nn.Module,
        index: int,
        hidden: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Cache,
    ) -> Tensor:
        """A LLaMA layer."""
        attention, mlp = layer.self_attn, layer.mlp
        normed = layer.input_layernorm(hidden)
        query = _split(attention.q_proj(normed), self.heads)
        key = _split(attention.k_proj(normed), self.key_heads)
        value = _split(attention.v_proj(normed), self.key_heads)
        cos, sin = (table[positions][None, None] for table in self.rotary)
        query = query * cos + _rotate_half(query) * sin
        key = key * cos + _rotate_half(key) * sin
        if len(cache) > index:
            key = torch.cat([cache[index][0], key], dim=2)
            value = torch.cat([cache[index][1], value], dim=2)
            cache[index] = key, value
        else:
            cache.append((key, value))
        key = key.repeat_interleave(self.heads // self.key_heads, dim=1)
        value = value.repeat_interleave(self.heads // self.key_heads, dim=1)
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        hidden = hidden + attention.o_proj(attended)
        normed = layer.post_attention_layernorm(hidden)
        gated = functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed)
        return hidden + mlp.down_proj(gated)

    def _rotary_tables(self, length: int) -> tuple[Tensor, Tensor]:
        frequencies = self.decoder.rotary_emb.inv_freq
        positions = torch.arange(length, device=frequencies.device, dtype=torch.float32)
        angles = torch.outer(positions, frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        dtype = next(self.decoder.parameters()).dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _split(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
