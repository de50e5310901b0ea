"""CaMML on any base: retrieved examples become context tokens at reserved places of the prompt.

arXiv 2401.03149. The perceivers are those of :mod:`polyptych.methods.camml.perceivers`; a shot's
visual tokens and words are what the base itself makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig

from polyptych.adapters.attention import HEAD_WIDTH, fitting_width
from polyptych.adapters.method import BaseSizes, check_width
from polyptych.methods.camml.perceivers import CaMML

_INITIALIZER_RANGE = 0.02


@dataclass(frozen=True, slots=True)
class Camml:
    """CaMML's context tokens before the question."""

    name: ClassVar[str] = "camml"
    seam: ClassVar[str] = "context"

    width: int | None = None
    """Channels of the perceivers; None: by the base's width."""
    num_query_tokens: int = 128
    """Q: an example with shots has 2Q context tokens, however many shots (paper: 128)."""
    layers: int = 2
    """Of each perceiver."""

    def fitted(self, base: BaseSizes) -> Camml:
        """With every size filled in."""
        chosen = replace(self, width=self.width or fitting_width(base.hidden_size))
        check_width(self.name, chosen.width)
        return chosen

    def build(self, base: BaseSizes) -> nn.Module:
        """The module of a fitted method."""
        assert self.width is not None
        config = InstructBlipQFormerConfig(
            hidden_size=self.width,
            encoder_hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // HEAD_WIDTH,
            hidden_dropout_prob=0.0,  # the other adapters have none either
            attention_probs_dropout_prob=0.0,
        )
        return ContextTokens(config, self.num_query_tokens, base.hidden_size)


class ContextTokens(CaMML):
    """CaMML's perceivers in one call, as an adapter is called."""

    def __init__(
        self, config: InstructBlipQFormerConfig, num_query_tokens: int, language_width: int
    ) -> None:
        super().__init__(config, num_query_tokens, language_width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_INITIALIZER_RANGE)
                nn.init.zeros_(module.bias)
        for queries in (
            self.context_perceiver.vision_queries,
            self.context_perceiver.text_queries,
        ):
            nn.init.normal_(queries, std=_INITIALIZER_RANGE)

    def forward(
        self,
        words: Float[Tensor, "S L D_llm"],
        words_mask: Bool[Tensor, "S L"],
        visual_tokens: Float[Tensor, "N D_llm"],
        visual_lengths: Int[Tensor, " S"],
        counts: Int[Tensor, " B"],
    ) -> Float[Tensor, "X C D_llm"]:
        """2Q context tokens for each of the X examples that has shots."""
        dtype = self.image_projection.weight.dtype
        shots = self.read_shots(
            visual_tokens.to(dtype), visual_lengths, words.to(dtype), words_mask
        )
        return self.context_tokens(shots, counts)
