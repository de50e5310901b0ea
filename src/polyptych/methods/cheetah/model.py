"""Cheetah: VPG-C (arXiv 2308.04152) on the BLIP-2 base.

The base is unchanged but for one hook on decoder layer k, which acts while prompts are read and
sees nothing in the steps after: the cache holds what it has changed.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.language.prefill import Prefill
from polyptych.methods.cheetah.layer_hook import ReattendsAtLayer, check_injection_layer
from polyptych.methods.cheetah.vpgc import VPGC
from polyptych.models.blip2 import PolyptychBlip2Config, PolyptychBlip2ForConditionalGeneration


class PolyptychCheetahConfig(PolyptychBlip2Config):
    """The BLIP-2 base's config and where VPG-C acts.

    Args:
        injection_layer: Decoder layer k (counted from 0) that is entered by changed states; the
            guidance is the output of the layer below. Default: half of the layers.
    """

    model_type = "polyptych_cheetah"

    def __init__(self, injection_layer: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.injection_layer = check_injection_layer(
            injection_layer, self.text_config.num_hidden_layers
        )


class PolyptychCheetahForConditionalGeneration(
    ReattendsAtLayer, PolyptychBlip2ForConditionalGeneration
):
    """The BLIP-2 base with VPG-C over its Q-Former."""

    config_class = PolyptychCheetahConfig
    config: PolyptychCheetahConfig
    vpgc: VPGC

    def _build_vpgc(self, language_width: int) -> VPGC:
        width = self.config.qformer_config.hidden_size
        return VPGC(language_width, width, self.config.num_query_tokens)

    def residual_details(
        self, hidden: Float[Tensor, "C T D_llm"], prefill: Prefill
    ) -> Float[Tensor, "N D_llm"]:
        """The connector's Q-Former looks again, guided by the last prompt token."""
        return self.vpgc.residual_details(hidden, prefill, self.connector.qformer)

    def visual_tokens_per_image(self, image_features: Float[Tensor, "I P D_v"]) -> int:
        """The number of queries."""
        return self.config.num_query_tokens

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VPGC):
            nn.init.normal_(module.query_tokens, std=0.02)

    @torch.no_grad()
    def copy_queries_to_vpgc(self) -> None:
        """Start the second look's queries from the first look's (after loading a base)."""
        self.vpgc.query_tokens.copy_(self.connector.qformer.query_tokens)
