"""LoRA beside the methods: one PEFT adapter that trains, saves and switches off both."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from polyptych.adapters.adapt import method_modules
from polyptych.errors import PolyptychError
from polyptych.training.lora import lora_config as language_config

_VISION_PARTS = ("vision_tower", "visual", "vision_model")


def lora_config(
    model: Any, *, rank: int = 16, alpha: int | None = None, vision: bool = False
) -> Any:
    """A ``peft.LoraConfig`` for an adapted model.

    The methods go along as ``modules_to_save``: PEFT trains copies of them, writes them into its
    file, and puts the ones it found back where the adapter is off (DPO's reference).

    Args:
        model: A model that :func:`polyptych.adapters.adapt.adapt` has put methods on.
        rank: Of the low-rank updates.
        alpha: Their scale is alpha / rank; None: twice the rank.
        vision: Also in the vision tower, which otherwise stays as it is.

    Raises:
        PolyptychError: If PEFT is not installed.
    """
    config = language_config(model, rank=rank, alpha=2 * rank if alpha is None else alpha)
    config.modules_to_save = method_modules(model)
    if vision:
        config.target_modules = f"{config.target_modules}|{_vision_linears(model)}"
    return config


def _vision_linears(model: Any) -> str:
    """A pattern over the linear layers of the vision tower."""
    roots = (n for n, _ in model.named_modules() if n.rpartition(".")[2] in _VISION_PARTS)
    root = next(roots, None)
    if root is None:
        raise PolyptychError(
            f"{model.config.model_type}: no vision tower among {', '.join(_VISION_PARTS)}"
        )
    part = model.get_submodule(root)
    names = (name for name, module in part.named_modules() if type(module) is nn.Linear)
    return rf"{re.escape(root)}\.(?:{'|'.join(map(re.escape, names))})"
