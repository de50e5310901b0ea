"""Low-rank adapters (LoRA, arXiv 2106.09685) on the language model of a vision-language model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from polyptych.errors import PolyptychError

if TYPE_CHECKING:
    from peft import LoraConfig

CONNECTOR = "connector"
"""The part that may be trained beside the adapters; the vision encoder never is."""


def lora_config(model: Any, *, rank: int, alpha: int, train_connector: bool = False) -> LoraConfig:
    """Adapters on every linear layer of the language model but its head.

    The vision encoder and what a method adds outside of the language model get none (the published
    script matched CLIP's layers by their names, too).

    Args:
        model: A vision-language model of this package or of transformers.
        rank: r.
        alpha: Adapters are scaled by alpha / r.
        train_connector: Learn a copy of the connector beside them.

    Raises:
        PolyptychError: Without peft.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise PolyptychError("LoRA needs peft: pip install 'polyptych[train]'") from error
    head, (root, language) = model.get_output_embeddings(), language_part(model)
    leaves = {
        name.rpartition(".")[2]
        for name, module in language.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,  # the published trainer switches it off
        target_modules=rf"{re.escape(root)}\..*\.({'|'.join(sorted(leaves))})",
        modules_to_save=[CONNECTOR] if train_connector else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in language.modules()),
    )


def language_part(model: Any) -> tuple[str, nn.Module]:
    """The language model and its name; in a model of transformers, the decoder without its head."""
    language = getattr(model, "language_model", None) or model.get_decoder()
    return next(found for found in model.named_modules() if found[1] is language)
