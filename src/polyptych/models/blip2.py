"""The BLIP-2 base: vision encoder -> Q-Former -> projection -> any decoder of transformers.

BLIP-2 (arXiv 2301.12597) and InstructBLIP (2305.06500), generalized to any number of images per
example, interleaved with text. SAM and Cheetah build on it. The language model is an unmodified
``AutoModelForCausalLM``; the vision encoder is one of :mod:`polyptych.vision.encoder`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, InstructBlipQFormerConfig, PreTrainedConfig

from polyptych.connectors.connector import ConnectorOutput, QFormerConnector
from polyptych.connectors.qformer import QFormer
from polyptych.models.vision_language import VisionLanguageModel, as_config
from polyptych.vision.encoder import feature_width


class PolyptychBlip2Config(PreTrainedConfig):
    """Sizes of the three parts and how they meet.

    Args:
        vision_config: Config (or dict) of an EVA-CLIP, CLIP, SigLIP or ResNet model.
        qformer_config: ``InstructBlipQFormerConfig`` (or dict); its ``encoder_hidden_size`` is set
            to the vision encoder's width.
        text_config: Config (or dict) of any causal language model.
        num_query_tokens: Visual tokens Q per image.
        image_token_id: The placeholder id. It may lie outside the vocabulary (converted models).
        instruction_aware: Whether the Q-Former reads the instruction.
        visual_token_width: Waist of the projection, None for none.
    """

    model_type = "polyptych_blip2"
    sub_configs = {  # noqa: RUF012  (the name and type that transformers reads)
        "vision_config": AutoConfig,
        "qformer_config": InstructBlipQFormerConfig,
        "text_config": AutoConfig,
    }

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        qformer_config: dict[str, Any] | InstructBlipQFormerConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        num_query_tokens: int = 32,
        image_token_id: int | None = None,
        instruction_aware: bool = True,
        visual_token_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = as_config(vision_config, "instructblip_vision_model")
        self.text_config = as_config(text_config, "llama")
        if isinstance(qformer_config, InstructBlipQFormerConfig):
            qformer_config = copy.deepcopy(qformer_config)
        else:
            qformer_config = InstructBlipQFormerConfig(**(qformer_config or {}))
        qformer_config.encoder_hidden_size = feature_width(self.vision_config)
        self.qformer_config = qformer_config
        self.num_query_tokens = num_query_tokens
        self.image_token_id = (
            self.text_config.vocab_size if image_token_id is None else image_token_id
        )
        self.instruction_aware = instruction_aware
        self.visual_token_width = visual_token_width
        super().__init__(**kwargs)

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens per image: the Q-Former's queries."""
        return self.num_query_tokens


class PolyptychBlip2ForConditionalGeneration(VisionLanguageModel):
    """The base whose connector is a Q-Former; ``connector`` is what methods exchange."""

    config_class: type[PolyptychBlip2Config] = PolyptychBlip2Config
    config: PolyptychBlip2Config
    connector: QFormerConnector
    _no_split_modules = ["QFormerLayer", "InstructBlipEncoderLayer"]  # noqa: RUF012

    @property
    def reads_images_alone(self) -> bool:
        """Unless the Q-Former reads the instruction."""
        return not self.config.instruction_aware

    def _build_connector(self, language_width: int) -> QFormerConnector:
        config = self.config
        return QFormerConnector(
            config.qformer_config,
            config.num_query_tokens,
            language_width,
            config.visual_token_width,
            config.instruction_aware,
        )

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QFormer):
            torch.nn.init.normal_(module.query_tokens, std=0.02)

    def connect(
        self,
        image_features: Float[Tensor, "I P D_v"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None = None,
        instruction_mask: Int[Tensor, "B T_q"] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> ConnectorOutput:
        """Q-Former and projection; the instruction is read where the config says so."""
        aware = self.config.instruction_aware
        return self.connector(
            image_features,
            image_counts,
            instruction_ids if aware else None,
            instruction_mask if aware else None,
            record,
        )
