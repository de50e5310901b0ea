"""VPG-C over a linear or MLP connector: equation 1 of the paper, on the LLaVA base.

The released code has only the form over a Q-Former; this one follows the paper (2308.04152, section
2.2 and row 7 of its ablation).
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.errors import PolyptychError
from polyptych.language.prefill import Prefill
from polyptych.methods.cheetah.layer_hook import ReattendsAtLayer, check_injection_layer
from polyptych.methods.cheetah.vpgc import last_prompt_state
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.vision.encoder import feature_width


class LinearVPGC(nn.Module):
    """VPG-C over a linear or MLP connector (paper, equation 1); absent from the released code.

    ``X' = (W_1 g 1^T) * (W_2 X)``: the guidance chooses, channel by channel, among the linearly
    mapped image features; every patch is a visual token and gets its own residual.

    Args:
        language_width: D_llm of the decoder's hidden states.
        vision_width: D_v of the image features.
        width: Channels in which guidance and features meet; by default D_v.
    """

    def __init__(self, language_width: int, vision_width: int, width: int | None = None) -> None:
        super().__init__()
        width = width or vision_width
        self.guidance_projection = nn.Linear(language_width, width)  # W_1
        self.feature_projection = nn.Linear(vision_width, width)  # W_2
        self.residual_projection = ZeroLinear(width, language_width)  # W_r

    def residual_details(
        self, hidden: Float[Tensor, "C T D_llm"], prefill: Prefill
    ) -> Float[Tensor, "N D_llm"]:
        """What each visual token has missed of its patch.

        Raises:
            PolyptychError: If visual tokens and patches differ in number.
        """
        features = prefill.image_features.to(self.feature_projection.weight.dtype)
        tokens, patches = int(prefill.tokens_per_image.sum()), features.shape[0] * features.shape[1]
        if tokens != patches:
            raise PolyptychError(f"{tokens} visual tokens for {patches} patches: not one for each")
        guidance_hidden = last_prompt_state(hidden, prefill).to(features.dtype)
        guidance = self.guidance_projection(guidance_hidden)
        details = guidance[prefill.example][:, None] * self.feature_projection(features)
        residual = self.residual_projection(details)
        if prefill.record is not None:
            prefill.record.update(
                {"vpgc.guidance_hidden": guidance_hidden, "vpgc.guidance": guidance}
            )
            prefill.record["vpgc.residual"] = residual
        return residual.flatten(0, 1)


class PolyptychLinearCheetahConfig(PolyptychLlavaConfig):
    """The LLaVA base's config and where linear VPG-C acts.

    Args:
        injection_layer: See :class:`PolyptychCheetahConfig`.
    """

    model_type = "polyptych_cheetah_linear"

    def __init__(self, injection_layer: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.injection_layer = check_injection_layer(
            injection_layer, self.text_config.num_hidden_layers
        )


class PolyptychLinearCheetahForConditionalGeneration(
    ReattendsAtLayer, PolyptychLlavaForConditionalGeneration
):
    """The LLaVA base with the paper's linear VPG-C."""

    config_class = PolyptychLinearCheetahConfig
    config: PolyptychLinearCheetahConfig
    vpgc: LinearVPGC

    def _build_vpgc(self, language_width: int) -> LinearVPGC:
        return LinearVPGC(language_width, feature_width(self.config.vision_config))

    def residual_details(
        self, hidden: Float[Tensor, "C T D_llm"], prefill: Prefill
    ) -> Float[Tensor, "N D_llm"]:
        """The guidance weighs the image features channel by channel."""
        return self.vpgc.residual_details(hidden, prefill)

    def visual_tokens_per_image(self, image_features: Float[Tensor, "I P D_v"]) -> int:
        """One per patch."""
        return image_features.shape[1]
