"""Vision encoders behind one protocol: ``pixel_values (I, 3, H, W) -> image_features (I, P, D_v)``.

EVA-CLIP, CLIP and SigLIP are the unmodified models of transformers. What differs between them is
data (:class:`FeatureChoice`): which layer is read, whether the class token stays, which final norm
applies. Preprocessing belongs to the weights and is saved beside them by the processor.

A ResNet is here, too: convolutions learn the shapes of small pictures in a tenth of the steps that
a ViT from nothing needs, so the bundled models, trained on a CPU in minutes, have one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionModel
from transformers.models.resnet.modeling_resnet import ResNetModel
from transformers.models.siglip.modeling_siglip import SiglipVisionModel


@dataclass(frozen=True, slots=True)
class FeatureChoice:
    """Which of an encoder's outputs become image features."""

    layer: int
    """Index into the hidden states; -1 is the encoder's final output with its final norm (the last
    hidden state without it has the number of layers as index)."""
    keep_class_token: bool
    """Whether the class token counts as a patch (P = patches + 1)."""
    has_class_token: bool
    """Whether the encoder has one at all."""
    is_map: bool = False
    """Whether the output is a convolutional map (I, D_v, h, w), which carries no positions."""


_MODELS: dict[str, tuple[Any, FeatureChoice]] = {
    "instructblip_vision_model": (
        InstructBlipVisionModel,
        FeatureChoice(layer=-1, keep_class_token=True, has_class_token=True),
    ),
    "clip_vision_model": (
        CLIPVisionModel,
        FeatureChoice(layer=-2, keep_class_token=False, has_class_token=True),
    ),
    "siglip_vision_model": (
        SiglipVisionModel,
        FeatureChoice(layer=-1, keep_class_token=False, has_class_token=False),
    ),
    "resnet": (
        ResNetModel,
        FeatureChoice(layer=-1, keep_class_token=False, has_class_token=False, is_map=True),
    ),
}

EVA_FINAL_NORM_EPS = 1e-5
"""`ln_vision` of the original BLIP-2 family is a plain torch LayerNorm; the blocks' norms use 1e-6.
transformers gives both the blocks' value, which moves features by about 1e-5."""

CPU_PIXELS = 4 * 224 * 224
"""Pixels that a CPU encodes together: its caches hold the activations of a few images only, and a
batch of eight at 224 x 224 (width 256) took 8 to 25 % longer than two of four."""


def feature_choice(config: PreTrainedConfig) -> FeatureChoice:
    """What an encoder of this config gives unless a model asks for something else of it.

    Raises:
        ValueError: For an encoder that is not in the list, naming those that are.
    """
    if config.model_type not in _MODELS:
        raise ValueError(
            f"no vision encoder for model type {config.model_type!r}; known: {sorted(_MODELS)}"
        )
    return _MODELS[config.model_type][1]


def hidden_state_choice(
    config: PreTrainedConfig, layer: int, keep_class_token: bool
) -> FeatureChoice:
    """One of the hidden states, untouched by the final norm, as the LLaVA family reads them.

    Args:
        config: The encoder's.
        layer: 0 is what the embeddings give, -1 what the last layer gives.
        keep_class_token: Whether the class token, if any, counts as a patch.

    Raises:
        ValueError: For an encoder that is not in the list or a layer that it does not have.
    """
    choice = feature_choice(config)
    depth = len(config.depths) if choice.is_map else config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"vision feature layer {layer} of an encoder of {depth} layers")
    return replace(choice, layer=layer % (depth + 1), keep_class_token=keep_class_token)


def patch_count(config: PreTrainedConfig, choice: FeatureChoice) -> int | None:
    """P of an image of the encoder's own size; None where it has none (convolutions)."""
    if choice.is_map:
        return None
    patches = (config.image_size // config.patch_size) ** 2
    return patches + (choice.has_class_token and choice.keep_class_token)


def feature_width(config: PreTrainedConfig) -> int:
    """Width D_v of the features that an encoder of this config gives."""
    sizes = getattr(config, "hidden_sizes", None)
    return sizes[-1] if sizes else config.hidden_size


def grid_positions(height: int, width: int, channels: int) -> Float[Tensor, "P D_v"]:
    """Fixed sine-cosine positions of a grid's cells: half of the channels say the row.

    For convolutional maps, as in DETR (arXiv 2005.12872).
    """
    frequencies = 100.0 ** -torch.linspace(0, 1, channels // 4)

    def encode(count: int) -> Tensor:
        angles = torch.arange(count)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class VisionEncoder(nn.Module):
    """Turns pixels into patch features; the same call for every supported encoder.

    Args:
        config: Config of an EVA-CLIP (``instructblip_vision_model``), CLIP, SigLIP or ResNet model.
        choice: What of its outputs is read; None for the encoder's usual one.

    Raises:
        ValueError: For an encoder that is not in the list, naming those that are.
    """

    def __init__(self, config: PreTrainedConfig, choice: FeatureChoice | None = None) -> None:
        super().__init__()
        self.choice = feature_choice(config) if choice is None else choice
        model_class = _MODELS[config.model_type][0]
        # The type is the caller's choice, not that of the file which the config came with.
        self.model = model_class._from_config(config, dtype=torch.get_default_dtype())
        if config.model_type == "instructblip_vision_model":
            self.model.post_layernorm.eps = EVA_FINAL_NORM_EPS
        self.config = config
        self.cpu_pixels = CPU_PIXELS

    @property
    def hidden_size(self) -> int:
        """Width D_v of the features."""
        return feature_width(self.config)

    def forward(self, pixel_values: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I P D_v"]:
        """Encode all images of a batch, in order."""
        if self.training or pixel_values.device.type != "cpu":
            return self._encode(pixel_values)
        height, width = pixel_values.shape[-2:]
        parts = pixel_values.split(max(1, self.cpu_pixels // (height * width)))
        return torch.cat([self._encode(part) for part in parts])

    def _encode(self, pixel_values: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I P D_v"]:
        if self.choice.layer == -1:
            features = self.model(pixel_values=pixel_values).last_hidden_state
        elif (layer := self._unread_layer) is not None:
            features = self._before_layer(layer, pixel_values)
        else:
            states = self.model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
            features = states[self.choice.layer]
        if self.choice.is_map:
            height, width = features.shape[-2:]
            features = features.flatten(2).transpose(1, 2)
            positions = grid_positions(height, width, features.shape[-1])
            return features + positions.to(features)
        if self.choice.has_class_token and not self.choice.keep_class_token:
            features = features[:, 1:]
        return features

    @property
    def _unread_layer(self) -> int | None:
        """The first layer behind what is read; None where every layer counts, and for maps."""
        if self.choice.is_map:
            return None
        depth = self.config.num_hidden_layers
        layer = self.choice.layer % (depth + 1)
        return layer if layer < depth else None

    def _before_layer(
        self, layer: int, pixel_values: Float[Tensor, "I 3 H W"]
    ) -> Float[Tensor, "I P D_v"]:
        """What enters a layer; that layer and those behind it, which nobody reads, do not run."""
        handle = self.model.encoder.layers[layer].register_forward_pre_hook(
            _stop, prepend=True, with_kwargs=True
        )
        try:
            self.model(pixel_values=pixel_values)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise AssertionError(f"{type(self.model).__name__} does not run its layer {layer}")


class _Reached(Exception):
    """Carries hidden states out of an encoder whose remaining layers are not wanted."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else kwargs["hidden_states"])
