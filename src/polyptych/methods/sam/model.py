"""SAM: Semantic Alignment for Multimodal LLMs (arXiv 2408.12867), on the BLIP-2 base.

Not Segment Anything, nor sharpness-aware minimization. The only change to the base is the
connector: the visual tokens of an example's images are extracted together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from polyptych.connectors.connector import (
    ConnectorOutput,
    QFormerConnector,
    example_of_image,
)
from polyptych.methods.sam.guidance import PaperGuidance, ReleasedGuidance
from polyptych.models.blip2 import PolyptychBlip2Config, PolyptychBlip2ForConditionalGeneration
from polyptych.vision.encoder import feature_width

Guidance = Literal["off", "released", "paper"]


class PolyptychSamConfig(PolyptychBlip2Config):
    """The base's config and how images guide each other.

    Args:
        guidance: ``released`` (equal to the published code), ``paper`` (the method figure), or
            ``off`` (images read alone); see :mod:`polyptych.methods.sam.guidance`.
        exchange_from: Layer l of the ``paper`` form. Default: the last layer before ``exchange_to``
            that looks at images.
        exchange_to: Layer k of the ``paper`` form. Default: the one before the Q-Former's last
            layer with cross-attention, so that guidance is followed by a second look.
    """

    model_type = "polyptych_sam"

    def __init__(
        self,
        guidance: Guidance = "paper",
        exchange_from: int | None = None,
        exchange_to: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.guidance = guidance
        frequency = self.qformer_config.cross_attention_frequency
        last_look = (self.qformer_config.num_hidden_layers - 1) // frequency * frequency
        self.exchange_to = last_look - 1 if exchange_to is None else exchange_to
        self.exchange_from = (
            self.exchange_to // frequency * frequency if exchange_from is None else exchange_from
        )


class SamConnector(QFormerConnector):
    """A Q-Former whose images guide each other."""

    guidance: ReleasedGuidance | PaperGuidance | None
    guidance_enabled: bool
    """False reads images alone for a while; see ``guidance_disabled`` of the model."""

    def __init__(self, config: PolyptychSamConfig, language_width: int) -> None:
        super().__init__(
            config.qformer_config,
            config.num_query_tokens,
            language_width,
            config.visual_token_width,
            config.instruction_aware,
        )
        vision_width = feature_width(config.vision_config)
        self.guidance = None
        if config.guidance == "released":
            self.guidance = ReleasedGuidance(config.qformer_config.hidden_size, vision_width)
        elif config.guidance == "paper":
            self.guidance = PaperGuidance(
                self.qformer, vision_width, config.exchange_from, config.exchange_to
            )
        elif config.guidance != "off":
            raise ValueError(f"guidance is off, released or paper, not {config.guidance!r}")
        self.guidance_enabled = True

    def forward(
        self,
        image_features: Float[Tensor, "I P D_v"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None = None,
        instruction_mask: Int[Tensor, "B T_q"] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> ConnectorOutput:
        """Visual tokens of all images, each extracted with its example's other images in view."""
        if self.guidance is None or not self.guidance_enabled:
            return super().forward(
                image_features, image_counts, instruction_ids, instruction_mask, record
            )
        hidden = self.guidance(
            self.qformer,
            image_features,
            example_of_image(image_counts),
            image_counts,
            instruction_ids,
            instruction_mask,
            record,
        )
        if record is not None:
            record["qformer.last_hidden_state"] = hidden
        return self.output(hidden[:, : self.qformer.num_query_tokens])


class PolyptychSamForConditionalGeneration(PolyptychBlip2ForConditionalGeneration):
    """The BLIP-2 base with :class:`SamConnector`; everything else is inherited."""

    config_class = PolyptychSamConfig
    config: PolyptychSamConfig
    connector: SamConnector

    def _build_connector(self, language_width: int) -> SamConnector:
        return SamConnector(self.config, language_width)

    @property
    def reads_images_alone(self) -> bool:
        """Not where they guide each other."""
        alone = self.connector.guidance is None or not self.connector.guidance_enabled
        return alone and super().reads_images_alone

    def copy_qformer_to_w_former(self) -> None:
        """Start the ``paper`` form's W-former from the current Q-Former (after loading a base)."""
        guidance = self.connector.guidance
        if isinstance(guidance, PaperGuidance):
            own = guidance.w_former.tower.state_dict()
            theirs = self.connector.qformer.state_dict()
            guidance.w_former.tower.load_state_dict({name: theirs[name] for name in own})

    @contextmanager
    def guidance_disabled(self) -> Iterator[None]:
        """Read images alone inside the block (candidate ranking of the released code does)."""
        self.connector.guidance_enabled = False
        try:
            yield
        finally:
            self.connector.guidance_enabled = True
