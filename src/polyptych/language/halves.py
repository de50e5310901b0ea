"""A decoder in two halves at layer k, sharing every weight with the whole.

What enters layer k does not depend on anything that is trained or decided above it. So it can be
computed once: for a training whose only new weights act from layer k on, and for a conversation
whose earlier turns have been read already.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from polyptych.errors import PolyptychError


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The decoder's layers, by the name that all current decoders of transformers share."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise PolyptychError(f"{type(decoder).__name__} keeps no list of layers under that name")
    return layers


def has_halves(decoder: nn.Module) -> bool:
    """Whether positions enter a decoder in its layers (rotary ones), not in front of them."""
    return hasattr(decoder, "rotary_emb")


def lower_half(decoder: nn.Module, layer: int) -> Any:
    """Everything below ``layer``: its ``last_hidden_state`` is what enters that layer, raw.

    Raises:
        PolyptychError: If the decoder treats its input in another place than in its layers, so that
            its halves would not add up to the whole.
    """
    if not has_halves(decoder):
        raise PolyptychError(
            f"{type(decoder).__name__} adds positions before its first layer; only decoders with "
            "rotary positions can be run in halves"
        )
    return _with_children(decoder, layers=decoder_layers(decoder)[:layer], norm=nn.Identity())


def upper_half(decoder: nn.Module, layer: int) -> Any:
    """Everything from ``layer`` on; its ``inputs_embeds`` are what the lower half returned."""
    half = _with_children(decoder, layers=decoder_layers(decoder)[layer:])
    kinds = getattr(half.config, "layer_types", None)
    if kinds is not None:
        # Decoders that mix kinds of attention look them up by a layer's place in the list.
        half.config = copy.copy(half.config)
        half.config.layer_types = kinds[layer:]
    return half


def upper_half_of_model(language_model: Any, layer: int) -> Any:
    """The upper half with the language model's head."""
    decoder = language_model.get_decoder()
    name = next(n for n, child in language_model.named_children() if child is decoder)
    return _with_children(language_model, **{name: upper_half(decoder, layer)})


def _with_children(module: nn.Module, **children: nn.Module) -> Any:
    """A shallow copy with a table of children of its own, some of them exchanged."""
    half = copy.copy(module)
    half._modules = {**module._modules, **children}
    return half
