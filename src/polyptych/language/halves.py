"""A decoder in two halves at layer k, sharing every weight with the whole.

What enters layer k does not depend on anything that is trained or decided above it. So it can be
computed once: for a training whose only new weights act from layer k on, and for a conversation
whose earlier turns have been read already.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The decoder's layers, by the name that all current decoders of transformers share."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise TypeError(f"{type(decoder).__name__} keeps no ModuleList of layers")
    return layers


def lower_half(decoder: nn.Module, layer: int) -> Any:
    """Everything below ``layer``: its ``last_hidden_state`` is what enters that layer, raw."""
    return _with_parts(decoder, decoder_layers(decoder)[:layer], norm=nn.Identity())


def upper_half(decoder: nn.Module, layer: int) -> Any:
    """Everything from ``layer`` on; its ``inputs_embeds`` are what the lower half returned."""
    return _with_parts(decoder, decoder_layers(decoder)[layer:])


def _with_parts(decoder: nn.Module, layers: nn.Module, **parts: nn.Module) -> Any:
    """A shallow copy: own table of children, the same children but for those given."""
    half = copy.copy(decoder)
    half._modules = {**decoder._modules, "layers": layers, **parts}
    return half
