"""The seam of VPG-C in a model: one hook before decoder layer k.

The language model stays the unmodified class of transformers. The hook is registered once, so that
it is still there when activation checkpointing runs the layer again in backward; the current
:class:`~polyptych.language.prefill.Prefill` (or None, in every step after) switches it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.utils import ModelOutput

from polyptych.errors import PolyptychError
from polyptych.language.halves import (
    decoder_layers,
    has_halves,
    lower_half,
    upper_half_of_model,
)
from polyptych.language.prefill import Prefill
from polyptych.language.splicing import embed_text
from polyptych.models.incremental import PromptMemory, key_values
from polyptych.models.small_decoders import acts_on_prompts_only
from polyptych.models.vision_language import VisionLanguageModel, VisionLanguageOutput
from polyptych.schema import IGNORE_INDEX


def check_injection_layer(layer: int | None, num_layers: int) -> int:
    """The layer k before which residuals are added; half of the layers by default (16 of 32).

    Raises:
        PolyptychError: If the decoder has no such layer, or nothing would lie below it.
    """
    layer = num_layers // 2 if layer is None else layer
    if not 0 < layer < num_layers:
        raise PolyptychError(
            f"injection_layer {layer} is not between 1 and {num_layers - 1}, "
            f"the last of {num_layers} decoder layers"
        )
    return layer


class ReattendsAtLayer(VisionLanguageModel):
    """Puts a form of VPG-C before decoder layer ``config.injection_layer`` of a base."""

    vpgc: nn.Module
    vpgc_enabled: bool
    """False leaves the base as it is; see :meth:`vpgc_disabled`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vpgc = self._build_vpgc(self.language_model.config.hidden_size)
        self.vpgc_enabled = True
        self._prefill_in_progress: Prefill | None = None
        layers = decoder_layers(self.get_decoder())
        layers[config.injection_layer].register_forward_pre_hook(self._inject, with_kwargs=True)
        self.post_init()

    def _build_vpgc(self, language_width: int) -> nn.Module:
        raise NotImplementedError

    def residual_details(
        self, hidden: Float[Tensor, "C T D_llm"], prefill: Prefill
    ) -> Float[Tensor, "N D_llm"]:
        """What each visual token has missed, given the states that enter layer k."""
        raise NotImplementedError

    def _decode(
        self, inputs_embeds: Tensor, *, prefill: Prefill | None = None, **kwargs: Any
    ) -> Any:
        self._prefill_in_progress = prefill if self.vpgc_enabled else None
        return super()._decode(inputs_embeds, prefill=prefill, **kwargs)

    @acts_on_prompts_only
    def _inject(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before layer k: add what was missed to the hidden states of the visual tokens."""
        prefill = self._prefill_in_progress
        if prefill is None:
            return None
        hidden, *rest = args
        if hidden.shape[:2] != prefill.visual_mask.shape:
            raise PolyptychError(
                f"layer {self.config.injection_layer} sees {hidden.shape[1]} of "
                f"{prefill.visual_mask.shape[1]} positions: VPG-C needs the whole prompt at once"
            )
        residual = self.residual_details(hidden, prefill)
        changed = prefill.add_to_visual_tokens(hidden, residual)
        if prefill.record is not None:
            prefill.record.update({"vpgc.before": hidden, "vpgc.after": changed})
        return (changed, *rest), kwargs

    # Training: nothing below layer k is trained, so that it can be computed once for all epochs.

    @torch.inference_mode()
    def lower_states(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        pixel_values: Float[Tensor, "I 3 H W"] | None = None,
        image_features: Float[Tensor, "I P D_v"] | None = None,
        image_counts: Int[Tensor, " B"] | None = None,
        **unused: Any,
    ) -> Float[Tensor, "B T D_llm"]:
        """What enters layer k: a fixed function of the row and its images."""
        visual_mask = input_ids == self.config.image_token_id
        states = embed_text(self.get_input_embeddings(), input_ids, visual_mask)
        if pixel_values is not None or image_features is not None:
            connected = self.encode_images(pixel_values, image_features, image_counts)
            assert image_counts is not None  # encode_images has refused that
            states = self._splice(states, visual_mask, connected, image_counts)
        lower = lower_half(self.get_decoder(), self.config.injection_layer)
        return lower(
            inputs_embeds=states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state

    def lower_fingerprint(self, image_processor: Any) -> str:
        """A hash of everything that decides :meth:`lower_states`.

        Raises:
            PolyptychError: If some of it is trained.
        """
        lower = lower_half(self.get_decoder(), self.config.injection_layer)
        parts = {"vision": self.vision_encoder, "connector": self.connector, "decoder": lower}
        digest = hashlib.sha256(json.dumps(image_processor.to_dict(), sort_keys=True).encode())
        for part, module in parts.items():
            for name, value in module.named_parameters():
                if value.requires_grad:
                    raise PolyptychError(
                        f"states that enter layer {self.config.injection_layer} cannot be kept: "
                        f"{part}.{name} below it is trained"
                    )
                digest.update(name.encode())
                digest.update(value.detach().float().cpu().numpy().tobytes())
        return f"layer {self.config.injection_layer} of {digest.hexdigest()[:16]}"

    def _decode_above(
        self,
        lower_states: Float[Tensor, "B T D_llm"],
        visual_mask: Bool[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | None,
        position_ids: Int[Tensor, "B T"] | None,
        labels: Int[Tensor, "B T"] | None,
        image_features: Float[Tensor, "I P D_v"] | None,
        image_counts: Int[Tensor, " B"],
        last_prompt: Int[Tensor, " B"] | None,
        num_items_in_batch: Any = None,
    ) -> VisionLanguageOutput:
        """Layer k and above; logits from the first column with a label on, (B, K, V)."""
        self._prefill_in_progress = None
        if image_features is not None and self.vpgc_enabled:
            per_image = self.visual_tokens_per_image(image_features)
            lengths = image_counts.new_full((len(image_features),), per_image)
            self._prefill_in_progress = Prefill(
                visual_mask, image_counts, lengths, image_features, last_prompt
            )
        keep = 0
        if labels is not None:
            labelled = (labels != IGNORE_INDEX).any(dim=0).nonzero()
            keep = labels.shape[1] - max(0, int(labelled[0, 0]) - 1) if len(labelled) else 1
            labels = labels[:, -keep:]
        logits = self._upper_half()(
            inputs_embeds=lower_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            logits_to_keep=keep,
        ).logits
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
        return VisionLanguageOutput(loss=loss, logits=logits)

    def _upper_half(self) -> Any:
        return upper_half_of_model(self.language_model, self.config.injection_layer)

    # Conversations: the guidance changes with every question, so layers from k on read all again.

    def _read_more(
        self,
        inputs_embeds: Float[Tensor, "1 T D_llm"],
        prefill: Prefill | None,
        memory: PromptMemory,
    ) -> tuple[ModelOutput, list[tuple[Tensor, Tensor]], Tensor | None]:
        """Layers below k read what is new, those above the whole prompt."""
        if not has_halves(self.get_decoder()):
            output = self._decode(
                inputs_embeds,
                prefill=prefill,
                past_key_values=DynamicCache(),
                use_cache=True,
                logits_to_keep=1,
            )
            return output, [], None
        layer, known = self.config.injection_layer, memory.shared_length(inputs_embeds)
        cache = memory.cache(known)
        states = lower_half(self.get_decoder(), layer)(
            inputs_embeds=inputs_embeds[:, known:], past_key_values=cache, use_cache=True
        ).last_hidden_state
        if memory.states is not None:
            states = torch.cat([memory.states[:, :known], states], dim=1)
        self._prefill_in_progress = prefill if self.vpgc_enabled else None
        output = self._upper_half()(
            inputs_embeds=states, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
        )
        output.past_key_values.layers[:layer] = cache.layers
        return output, key_values(cache, layer), states

    def visual_tokens_per_image(self, image_features: Float[Tensor, "I P D_v"]) -> int:
        """How many visual tokens the connector makes of an image."""
        raise NotImplementedError

    @contextmanager
    def vpgc_disabled(self) -> Iterator[None]:
        """The base model, bit for bit, inside the block."""
        self.vpgc_enabled = False
        try:
            yield
        finally:
            self.vpgc_enabled = True
