"""The LLaVA base: vision encoder -> projector -> any decoder of transformers.

LLaVA (arXiv 2304.08485) and LLaVA-1.5 (2310.03744), generalized to any number of images per
example, interleaved with text. CaMML and SIMA build on it. Unlike transformers' LLaVA, the
placeholder may lie outside the vocabulary, so that the original checkpoints (32,000 words, no
``<image>`` among them) need no added rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from polyptych.connectors.connector import ConnectorOutput
from polyptych.connectors.projector import MLPProjector, ProjectorType
from polyptych.models.vision_language import VisionLanguageModel, as_config
from polyptych.vision.encoder import (
    FeatureChoice,
    VisionEncoder,
    feature_choice,
    hidden_state_choice,
    patch_count,
)

SelectStrategy = Literal["default", "full"]


class PolyptychLlavaConfig(PreTrainedConfig):
    """Sizes of the two towers and how they meet.

    Args:
        vision_config: Config (or dict) of a CLIP, SigLIP, EVA-CLIP or ResNet model.
        text_config: Config (or dict) of any causal language model.
        projector_type: See :class:`polyptych.connectors.projector.MLPProjector`.
        vision_feature_layer: Index into the vision encoder's hidden states (without its final
            norm). Default: the published -2 for a ViT with class token, -1 for the others.
        vision_feature_select_strategy: ``default`` drops the class token, ``full`` keeps it.
        image_token_id: The placeholder id; default: the first one outside the vocabulary.

    Raises:
        ValueError: For an unknown vision encoder, or a layer that it does not have.
    """

    model_type = "polyptych_llava"
    sub_configs = {  # noqa: RUF012  (the name and type that transformers reads)
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
    }

    def __init__(
        self,
        vision_config: Mapping[str, Any] | PreTrainedConfig | None = None,
        text_config: Mapping[str, Any] | PreTrainedConfig | None = None,
        projector_type: ProjectorType = "mlp2x_gelu",
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: SelectStrategy = "default",
        image_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = as_config(vision_config, "clip_vision_model")
        self.text_config = as_config(text_config, "llama")
        self.projector_type = projector_type
        if vision_feature_layer is None:
            vision_feature_layer = -2 if feature_choice(self.vision_config).has_class_token else -1
        self.vision_feature_layer = vision_feature_layer
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.image_token_id = (
            self.text_config.vocab_size if image_token_id is None else image_token_id
        )
        super().__init__(**kwargs)
        _ = self.feature_choice  # refuses a layer that the encoder does not have

    @property
    def feature_choice(self) -> FeatureChoice:
        """What of the vision encoder's outputs is read."""
        return hidden_state_choice(
            self.vision_config,
            self.vision_feature_layer,
            keep_class_token=self.vision_feature_select_strategy == "full",
        )

    @property
    def tokens_per_image(self) -> int | None:
        """P of an image of the vision encoder's own size: 576 for LLaVA-1.5, 256 at 224 pixels.

        None where the config does not say (convolutions take any size).
        """
        return patch_count(self.vision_config, self.feature_choice)


class PolyptychLlavaForConditionalGeneration(VisionLanguageModel):
    """The base whose connector is an MLP over patches; ``forward`` and ``generate`` as for all.

    It reads no instruction: ``qformer_input_ids`` of a batch are passed over.
    """

    config_class: type[PolyptychLlavaConfig] = PolyptychLlavaConfig
    config: PolyptychLlavaConfig
    connector: MLPProjector
    _no_split_modules = ["CLIPEncoderLayer", "SiglipEncoderLayer"]  # noqa: RUF012

    @property
    def reads_images_alone(self) -> bool:
        """Always: neither other images nor words reach the projector."""
        return True

    def _build_vision_encoder(self) -> VisionEncoder:
        return VisionEncoder(self.config.vision_config, self.config.feature_choice)

    def _build_connector(self, language_width: int) -> MLPProjector:
        return MLPProjector(
            self.vision_encoder.hidden_size, language_width, self.config.projector_type
        )

    def connect(
        self,
        image_features: Float[Tensor, "I P D_v"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None = None,
        instruction_mask: Int[Tensor, "B T_q"] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> ConnectorOutput:
        """Project every patch; images do not see each other, nor the instruction."""
        return self.connector(image_features)
