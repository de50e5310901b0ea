"""CaMML's perceivers: shots become a fixed number of context tokens.

arXiv 2401.03149, section 3. Of each retrieved shot k, the image's visual tokens and the text's word
embeddings are narrowed to the perceivers' width, v_k and t_k, and read each other; a third
perceiver, used once per modality, reads all shots with Q learned queries:

    V_k = VisionPerceiver(v_k; t_k)        T_k = LanguagePerceiver(t_k; v_k)
    C_vision = W_v ContextPerceiver(q_vision; V_1 .. V_K)
    C_text   = W_t ContextPerceiver(q_text;   T_1 .. T_K)

The language model reads [C_vision, C_text]: 2Q context tokens, whatever the number of shots. A
perceiver is a trimmed Q-Former; its layers are those of :mod:`polyptych.connectors.qformer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import InstructBlipQFormerConfig

from polyptych.connectors.qformer import KeyValue, MultiHeadAttention, QFormerLayer
from polyptych.errors import PolyptychError
from polyptych.methods.camml.shots import ShotTokens, pad_ragged, ranks, sums_over_examples


class Perceiver(nn.Module):
    """Rows attend to each other and, in every second layer, to a source.

    The figure draws the look at the source in every layer; the released code, and ours, has it
    where the index is a multiple of ``cross_attention_frequency``. The source enters without a
    norm.

    Args:
        config: Sizes; ``encoder_hidden_size`` is the source's width.
    """

    layers: Sequence[QFormerLayer]

    def __init__(self, config: InstructBlipQFormerConfig) -> None:
        super().__init__()
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        layers = nn.ModuleList(
            QFormerLayer(config, index % config.cross_attention_frequency == 0, reads_text=False)
            for index in range(config.num_hidden_layers)
        )
        self.layers = cast("Sequence[QFormerLayer]", layers)

    def key_values(self, source: Float[Tensor, "X L D"]) -> list[KeyValue | None]:
        """What each layer reads of the source; None where it does not look."""
        return [
            layer.cross_attention.project(source) if layer.has_cross_attention else None
            for layer in self.layers
        ]

    def forward(
        self,
        rows: Float[Tensor, "X R D"],
        source: Sequence[KeyValue | None],
        rows_mask: Bool[Tensor, "X R"] | None = None,
        source_mask: Bool[Tensor, "X L"] | None = None,
    ) -> Float[Tensor, "X R D"]:
        """All layers; masks are true where something stands, None where nothing is padding."""
        hidden = self.dropout(self.embedding_norm(rows))
        own = None if rows_mask is None else rows_mask[:, None, None]
        theirs = None if source_mask is None else source_mask[:, None, None]
        for layer, key_value in zip(self.layers, source, strict=True):
            hidden = layer(hidden, hidden.shape[1], own, key_value, theirs)
        return hidden


class VisionPerceiver(Perceiver):
    """The patches of a shot read its words."""


class LanguagePerceiver(Perceiver):
    """The words of a shot read its patches."""


class ContextPerceiver(Perceiver):
    """Q learned queries per modality read all shots of an example.

    Args:
        config: Sizes.
        num_query_tokens: Q.
        language_width: D_llm.
    """

    def __init__(
        self, config: InstructBlipQFormerConfig, num_query_tokens: int, language_width: int
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.vision_queries = nn.Parameter(torch.zeros(1, num_query_tokens, width))
        self.text_queries = nn.Parameter(torch.zeros(1, num_query_tokens, width))
        self.vision_projection = nn.Linear(width, language_width)  # W_v
        self.text_projection = nn.Linear(width, language_width)  # W_t

    @property
    def _looks(self) -> list[MultiHeadAttention]:
        return [layer.cross_attention for layer in self.layers if layer.has_cross_attention]

    def project(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """What is read of each token: keys and values of the layers that look, side by side."""
        parts = [linear(tokens) for look in self._looks for linear in (look.key, look.value)]
        return torch.cat(parts, dim=-1)

    def project_places(self, places: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """What a place adds to that: the same, but for the biases."""
        weights = [linear.weight for look in self._looks for linear in (look.key, look.value)]
        return functional.linear(places, torch.cat(weights))

    def read(
        self,
        vision: Float[Tensor, "N W"],
        vision_lengths: Int[Tensor, " B"],
        language: Float[Tensor, "M W"],
        language_lengths: Int[Tensor, " B"],
    ) -> Float[Tensor, "B C D_llm"]:
        """C = 2Q context tokens per example from projected shots; both modalities in one pass."""
        lengths = torch.cat([vision_lengths, language_lengths])
        padded, mask = pad_ragged(torch.cat([vision, language]), lengths)  # (2B, L, W)
        parts = iter(padded.chunk(2 * len(self._looks), dim=-1))
        source: list[KeyValue | None] = [
            layer.cross_attention.split_heads(next(parts), next(parts))
            if layer.has_cross_attention
            else None
            for layer in self.layers
        ]
        examples = len(vision_lengths)
        queries = torch.cat([self.vision_queries, self.text_queries])
        queries = queries.repeat_interleave(examples, dim=0)
        of_vision, of_text = self(queries, source, source_mask=mask).chunk(2)
        return torch.cat([self.vision_projection(of_vision), self.text_projection(of_text)], dim=1)


class CaMML(nn.Module):
    """Everything between a shot's visual tokens and words, and the context tokens.

    Args:
        config: Sizes of all three perceivers.
        num_query_tokens: Q.
        language_width: D_llm.
        text_positions: Longest text in tokens whose order is told; 0: a text is a bag of words, as
            in the released code.
        shot_positions: Most shots whose order is told; 0: shots are a set, as in the released code.
    """

    def __init__(
        self,
        config: InstructBlipQFormerConfig,
        num_query_tokens: int,
        language_width: int,
        text_positions: int = 0,
        shot_positions: int = 0,
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.image_projection = nn.Linear(language_width, width)
        self.text_projection = nn.Linear(language_width, width)
        self.vision_perceiver = VisionPerceiver(config)
        self.language_perceiver = LanguagePerceiver(config)
        self.context_perceiver = ContextPerceiver(config, num_query_tokens, language_width)
        self.text_positions = nn.Embedding(text_positions, width) if text_positions else None
        self.shot_positions = nn.Embedding(shot_positions, width) if shot_positions else None

    def read_shots(
        self,
        visual_tokens: Float[Tensor, "N D_llm"],
        visual_lengths: Int[Tensor, " S"],
        words: Float[Tensor, "S L D_llm"],
        words_mask: Bool[Tensor, "S L"],
    ) -> ShotTokens:
        """V_k and T_k of all shots, each by itself, as the Context Perceiver reads them.

        One pass per perceiver.

        Raises:
            PolyptychError: If a text is longer than positions are known.
        """
        patches, patches_mask = pad_ragged(self.image_projection(visual_tokens), visual_lengths)
        text = self.text_projection(words)
        if self.text_positions is not None:
            text = text + _first_rows(self.text_positions, text.shape[1], "words of a shot")
        text_mask = None if bool(words_mask.all()) else words_mask
        vision = self.vision_perceiver(
            patches, self.vision_perceiver.key_values(text), patches_mask, text_mask
        )
        language = self.language_perceiver(
            text, self.language_perceiver.key_values(patches), text_mask, patches_mask
        )
        patch_rows = vision.flatten(0, 1) if patches_mask is None else vision[patches_mask]
        project = self.context_perceiver.project
        return ShotTokens(
            project(patch_rows),
            visual_lengths,
            project(language[words_mask]),
            words_mask.sum(dim=1),
        )

    def context_tokens(
        self, shots: ShotTokens, counts: Int[Tensor, " B"]
    ) -> Float[Tensor, "X C D_llm"]:
        """2Q context tokens for each of the X examples that has shots.

        Raises:
            PolyptychError: If an example has more shots than positions are known.
        """
        vision, language = shots.vision, shots.language
        if self.shot_positions is not None:
            rows = _first_rows(self.shot_positions, int(counts.max()), "shots")
            places = self.context_perceiver.project_places(rows)[ranks(counts)]
            vision = vision + places.repeat_interleave(shots.vision_lengths, dim=0)
            language = language + places.repeat_interleave(shots.language_lengths, dim=0)
        has_shots = counts > 0
        return self.context_perceiver.read(
            vision,
            sums_over_examples(shots.vision_lengths, counts)[has_shots],
            language,
            sums_over_examples(shots.language_lengths, counts)[has_shots],
        )


def _first_rows(table: nn.Embedding, count: int, what: str) -> Tensor:
    if count > table.num_embeddings:
        raise PolyptychError(f"{count} {what} for {table.num_embeddings} positions")
    return table.weight[:count]
