"""LoRA (arXiv 2106.09685) on a language model that may be kept in 4 bits (QLoRA, 2305.14314).

Adapters are put into the model's own layers, so that the model stays what it is: its forward, its
parts and their names. What a run saves of itself is the plain model, adapters merged into copies
of its weights; those that train are left alone, and saving changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyptych.errors import PolyptychError
from polyptych.training.building import read_weights
from polyptych.training.lora import language_part, lora_config
from polyptych.training.recipe import LoraRecipe

_ADAPTER = "default"


def quantize(model: PreTrainedModel) -> None:
    """Keep the language model's linear layers, but its head, in 4 bits (NF4), once on a GPU.

    Raises:
        PolyptychError: Without bitsandbytes.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise PolyptychError(
            "model.quantization needs bitsandbytes: pip install bitsandbytes"
        ) from error
    head = model.get_output_embeddings()
    language: Any = language_part(model)[1]
    for name, module in [*language.named_modules()]:
        if not isinstance(module, nn.Linear) or module is head:
            continue
        small = Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
        small.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
        if module.bias is not None:
            small.bias = module.bias
        language.set_submodule(name, small)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # how PEFT knows


def add_low_rank(model: PreTrainedModel, settings: LoraRecipe) -> None:
    """Put adapters into the language model's linear layers; they change nothing until trained.

    Raises:
        PolyptychError: Without peft.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise PolyptychError("lora needs peft: pip install 'polyptych[train]'") from error
    config = lora_config(model, rank=settings.rank, alpha=settings.alpha)
    inject_adapter_in_model(config, model, adapter_name=_ADAPTER)


def learn_low_rank(model: nn.Module) -> None:
    """Let the adapters learn beside what was chosen before.

    Raises:
        PolyptychError: If a weight that has an adapter was chosen itself.
    """
    for name, layer in _adapted(model).items():
        if layer.base_layer.weight.requires_grad:
            raise PolyptychError(
                f"trainable: {name}.weight has a LoRA adapter and is chosen itself; leave the "
                "language model out of trainable, or lora out of the recipe"
            )
        for part in (layer.lora_A, layer.lora_B):
            part.requires_grad_(True)


def merged_weights(model: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """All weights under the names of the plain model, with adapters added in.

    Args:
        model: Stays as it is.
        weights: Its whole weights, where it holds only a part of them.
    """
    from peft.utils.integrations import dequantize_module_weight

    weights = dict(model.state_dict() if weights is None else weights)
    with torch.no_grad():
        for name, layer in _adapted(model).items():
            for key in [key for key in weights if key.startswith(f"{name}.")]:
                value = weights.pop(key)
                if key.startswith(f"{name}.base_layer."):
                    weights[key.replace(".base_layer.", ".")] = value
            base = dequantize_module_weight(layer.base_layer)
            weights[f"{name}.weight"] = base + layer.get_delta_weight(_ADAPTER).to(base.dtype)
    return {name: value for name, value in weights.items() if ".quant_" not in name}


def load_merged(model: nn.Module, folder: Path) -> None:
    """Make the model that of a folder which :func:`merged_weights` went into."""
    saved = read_weights(folder)
    adapted = _adapted(model)
    with torch.no_grad():
        for name, layer in adapted.items():
            layer.base_layer.weight.copy_(saved[f"{name}.weight"])
            layer.lora_B[_ADAPTER].weight.zero_()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name in saved:
                parameter.copy_(saved[name])


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A")}
