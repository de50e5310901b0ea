"""The seam of VPG-C in a model: one hook before decoder layer k.

The language model stays the unmodified class of transformers. The hook is registered once, so that
it is still there when activation checkpointing runs the layer again in backward; the current
:class:`~polyptych.language.prefill.Prefill` (or None, in every step after) switches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.errors import PolyptychError
from polyptych.language.halves import decoder_layers
from polyptych.language.prefill import Prefill
from polyptych.models.vision_language import VisionLanguageModel


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

    @contextmanager
    def vpgc_disabled(self) -> Iterator[None]:
        """The base model, bit for bit, inside the block."""
        self.vpgc_enabled = False
        try:
            yield
        finally:
            self.vpgc_enabled = True
