"""SAM as its published code computes it: what the benchmarks of our implementation compare to.

arXiv 2408.12867. A transcription in our own words, from a description of the released program, of
its order of work:

- images go through the vision encoder and the Q-Former one by one;
- the W stream, which is the same for all images but for its last layer, runs once per image;
- the text rows of the last Q-Former layer are computed and thrown away;
- attention is written out (scores, softmax, product) everywhere, with additive masks;
- generation repeats each prompt for every beam, and the language model reads all the copies.

Where the original would be slower for reasons that have nothing to do with its algorithm (dropout
left on in frozen layers, an older transformers), this transcription takes the faster side. It uses
the parameters of one of our models, so both sides compute the same numbers.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from polyptych.connectors.qformer import QFormerLayer
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.schema import IGNORE_INDEX
from published_blip2 import additive, bert_attention, bert_feed_forward, encode_image


class PublishedSam:
    """The published order of work over the parameters of ``model`` (``guidance="released"``).

    All inputs are unpadded: rows of equal length, J images for every one of the B examples.
    """

    def __init__(self, model: PolyptychSamForConditionalGeneration) -> None:
        self.vision = model.vision_encoder.model
        self.qformer = model.connector.qformer
        self.guidance = model.connector.guidance
        self.projection = model.connector.projection
        self.language_model = _eager_twin(model.language_model)

    def image_features(self, pixel_values: Tensor) -> list[Tensor]:
        """``(B, 3, J, H, W)`` -> J tensors (B, P, D_v)."""
        return [
            encode_image(self.vision, pixel_values[:, :, image])
            for image in range(pixel_values.shape[2])
        ]

    def visual_tokens(self, features: list[Tensor], instruction_ids: Tensor) -> Tensor:
        """``(B, 32 J, D_llm)``: every image through both streams, then projected."""
        pooled = self._pool(features)
        tokens = []
        for image in features:
            hidden = self._both_streams(image, pooled, instruction_ids)
            tokens.append(self.projection(hidden[:, : self.qformer.num_query_tokens]))
        return torch.cat(tokens, dim=1)

    def loss(self, visual_tokens: Tensor, text_ids: Tensor, target_length: int) -> Tensor:
        """Mean cross-entropy of the last ``target_length`` of ``text_ids (B, T_text)``."""
        embedded = self.language_model.get_input_embeddings()(text_ids)
        embedded = torch.cat([visual_tokens, embedded], dim=1)
        labels = torch.full(embedded.shape[:2], IGNORE_INDEX, device=embedded.device)
        labels[:, -target_length:] = text_ids[:, -target_length:]
        mask = torch.ones_like(labels)
        return self.language_model(
            inputs_embeds=embedded, attention_mask=mask, labels=labels, use_cache=False
        ).loss

    @torch.no_grad()
    def generate(self, visual_tokens: Tensor, prompt_ids: Tensor, **settings: object) -> Tensor:
        """Generated ids (B, L): transformers' ordinary search over expanded embeddings."""
        embedded = self.language_model.get_input_embeddings()(prompt_ids)
        embedded = torch.cat([visual_tokens, embedded], dim=1)
        mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        return self.language_model.generate(inputs_embeds=embedded, attention_mask=mask, **settings)

    def _pool(self, features: list[Tensor]) -> Tensor:
        """One contextual image per example: a softmax over the images at each patch position."""
        stacked = torch.stack(features, dim=1)  # (B, J, P, D_v)
        weights = self.guidance.adaptive_adjustment.score(stacked).softmax(dim=1)
        return (weights * stacked).sum(dim=1)

    def _both_streams(self, image: Tensor, pooled: Tensor, instruction_ids: Tensor) -> Tensor:
        """The Q-Former's layers on two hidden states; they exchange before the last layer."""
        num_queries = self.qformer.num_query_tokens
        hidden = self.qformer.embed(len(image), instruction_ids)
        self_mask = additive(hidden.new_ones(hidden.shape[:2]))
        image_mask = additive(image.new_ones(image.shape[:2]))
        q = w = hidden
        for layer in self.qformer.layers[:-1]:
            w = _qformer_layer(layer, w, num_queries, self_mask, pooled, image_mask)
            q = _qformer_layer(layer, q, num_queries, self_mask, image, image_mask)
        last = self.qformer.layers[-1]
        # The original adds in place, and can therefore not be differentiated in float32.
        w = w + self.guidance.query_to_w(q)
        w = _qformer_layer(last, w, num_queries, self_mask, pooled, image_mask)
        q = q + self.guidance.w_to_query(w)
        return _qformer_layer(last, q, num_queries, self_mask, image, image_mask)


def _eager_twin(model: nn.Module) -> nn.Module:
    """The same parameters (not copies) under attention that is written out."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        twin = type(model)(config).requires_grad_(False)  # assigning hands this on
    twin.load_state_dict(dict(model.named_parameters()), assign=True)
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        twin.get_submodule(parent).register_buffer(leaf, buffer, persistent=False)
    twin.generation_config = copy.deepcopy(model.generation_config)
    return twin.eval()


def _qformer_layer(
    layer: QFormerLayer,
    hidden: Tensor,
    num_queries: int,
    self_mask: Tensor,
    image: Tensor,
    image_mask: Tensor,
) -> Tensor:
    attended = bert_attention(layer.self_attention, hidden, hidden, self_mask)
    rows = layer.self_attention_norm(attended + hidden)
    queries = rows[:, :num_queries]
    if layer.has_cross_attention:
        attended = bert_attention(layer.cross_attention, queries, image, image_mask)
        queries = layer.cross_attention_norm(attended + queries)
    queries = bert_feed_forward(layer.query_ffn, queries)
    text = bert_feed_forward(layer.text_ffn, rows[:, num_queries:])
    return torch.cat([queries, text], dim=1)
