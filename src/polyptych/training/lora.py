"""Low-rank adapters (LoRA, arXiv 2106.09685) on the language model of a vision-language model."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

CONNECTOR = "connector"
"""The part that may be trained beside the adapters; the vision encoder never is."""


def lora_config(model: Any, *, rank: int, alpha: int, train_connector: bool = False) -> LoraConfig:
    """Adapters on every linear layer of the language model but its head.

    The vision encoder and what a method adds outside of the language model get none (the published
    script matched CLIP's layers by their names, too).

    Args:
        model: A vision-language model of this package.
        rank: r.
        alpha: Adapters are scaled by alpha / r.
        train_connector: Learn a copy of the connector beside them.
    """
    head = model.get_output_embeddings()
    leaves = {
        name.rpartition(".")[2]
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,  # the published trainer switches it off
        target_modules=rf"language_model\..*\.({'|'.join(sorted(leaves))})",
        modules_to_save=[CONNECTOR] if train_connector else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.language_model.modules()),
    )
