"""CaMML in the published order of work, for comparison: a plain transcription of its algorithm.

Written from a description of the released code, not from the code: all images through CLIP (all of
its layers, of which the last is not read), the two perceivers shot by shot, two calls of the
context perceiver, masks of ones that are made and added everywhere, attention written out (also in
CLIP and LLaMA, as their versions of that time did), logits of all positions. To generate, the
released command line keeps nothing: every new token runs all of it again.

It uses the parameters of one of our models, so both sides compute the same numbers. What would be
slower for reasons that have nothing to do with the algorithm (tokenizing texts and moving them
inside the forward pass) is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyptych.methods.camml.model import PolyptychCammlForConditionalGeneration
from polyptych.methods.camml.perceivers import Perceiver
from published_blip2 import additive, bert_attention, bert_feed_forward


@dataclass(slots=True)
class Question:
    """One example: its words around the two placeholders, its image, its shots."""

    before: Tensor  # (1, L) words before the context
    between: Tensor  # (1, L) words between context and image
    after: Tensor  # (1, L) the question, and what has been answered so far
    image: Tensor  # (1, 3, S, S)
    shot_images: Tensor  # (K, 3, S, S)
    shot_texts: Sequence[Tensor]  # K of (1, L_k)


class PublishedCamml:
    """The published order of work over the parameters of ``model``.

    Args:
        model: Of a CLIP and a LLaMA; its own two are copied, to run with written-out attention.
    """

    def __init__(self, model: PolyptychCammlForConditionalGeneration) -> None:
        self.clip = copy.deepcopy(model.vision_encoder.model)
        self.layer = model.vision_encoder.choice.layer
        self.projector = model.connector.layers
        self.language_model = copy.deepcopy(model.language_model)
        for part in (self.clip, self.language_model):
            part.set_attn_implementation("eager")
        self.camml = model.camml

    @torch.no_grad()
    def forward(self, question: Question) -> Tensor:
        """Logits of all positions (1, T, V)."""
        seen = self.encode(question.image)
        retrieved = self.encode(question.shot_images)
        context = self.context(retrieved, question.shot_texts)
        embed = self.language_model.get_input_embeddings()
        embeddings = torch.cat(
            [embed(question.before), context, embed(question.between), seen, embed(question.after)],
            dim=1,
        )
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=mask, use_cache=False
        ).logits

    @torch.no_grad()
    def generate(self, question: Question, new_tokens: int) -> Tensor:
        """Greedy ids (1, new tokens), everything anew for each."""
        answer = question.after[:, :0]
        for _ in range(new_tokens):
            longer = copy.copy(question)
            longer.after = torch.cat([question.after, answer], dim=1)
            answer = torch.cat([answer, self.forward(longer)[:, -1:].argmax(-1)], dim=1)
        return answer

    def encode(self, pixels: Tensor) -> Tensor:
        """``(I, 3, S, S)`` -> visual tokens (I, P, D_llm) of the chosen layer."""
        states = self.clip(pixel_values=pixels, output_hidden_states=True).hidden_states
        return self.projector(states[self.layer][:, 1:])

    def context(self, retrieved: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """2Q context tokens (1, 2Q, D_llm)."""
        camml, embed = self.camml, self.language_model.get_input_embeddings()
        visions, languages = [], []
        for image, ids in zip(retrieved.split(1), texts, strict=True):
            words = camml.text_projection(embed(ids))
            patches = camml.image_projection(image)
            visions.append(perceive(camml.vision_perceiver, patches, words))
            languages.append(perceive(camml.language_perceiver, words, patches))
        reader = camml.context_perceiver
        of_vision = perceive(reader, reader.vision_queries, torch.cat(visions, dim=1))
        of_text = perceive(reader, reader.text_queries, torch.cat(languages, dim=1))
        return torch.cat(
            [reader.vision_projection(of_vision), reader.text_projection(of_text)], dim=1
        )


def perceive(perceiver: Perceiver, rows: Tensor, source: Tensor) -> Tensor:
    """A perceiver, layer by layer, with masks of ones."""
    own = additive(torch.ones(rows.shape[:2]))
    theirs = additive(torch.ones(source.shape[:2]))
    hidden = perceiver.embedding_norm(rows)
    for layer in perceiver.layers:
        attended = bert_attention(layer.self_attention, hidden, hidden, own)
        hidden = layer.self_attention_norm(attended + hidden)
        if layer.has_cross_attention:
            attended = bert_attention(layer.cross_attention, hidden, source, theirs)
            hidden = layer.cross_attention_norm(attended + hidden)
        hidden = bert_feed_forward(layer.query_ffn, hidden)
    return hidden
