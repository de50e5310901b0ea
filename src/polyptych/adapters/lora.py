"""LoRA beside the methods: one PEFT adapter that trains, saves and switches off both."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from polyptych.adapters.adapt import method_modules
from polyptych.errors import PolyptychError


def lora_config(
    model: Any,
    *,
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    vision: bool = False,
) -> Any:
    """A ``peft.LoraConfig`` for an adapted model.

    The methods go along as ``modules_to_save``: PEFT trains copies of them, writes them into its
    file, and puts the ones it found back where the adapter is off (DPO's reference).

    Args:
        model: A model that :func:`polyptych.adapters.adapt.adapt` has put methods on.
        rank: Of the low-rank updates.
        alpha: Their scale; None: twice the rank.
        dropout: Before them.
        vision: Also in the vision tower, which otherwise stays as it is.

    Raises:
        PolyptychError: If PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise PolyptychError("LoRA needs peft: pip install 'polyptych[train]'") from error
    decoder = model.get_decoder()
    roots = [name for name, module in model.named_modules() if module is decoder]
    if vision:
        roots.append(_vision_root(model))
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules="|".join(_linears(model, root) for root in roots),
        modules_to_save=method_modules(model),
    )


def _linears(model: nn.Module, root: str) -> str:
    """A pattern over the linear layers of one part, and of no other."""
    part = model.get_submodule(root)
    names = (name for name, module in part.named_modules() if type(module) is nn.Linear)
    return rf"{re.escape(root)}\.(?:{'|'.join(map(re.escape, names))})"


def _vision_root(model: Any) -> str:
    """The part that holds the vision encoder."""
    names = ("vision_tower", "visual", "vision_model")
    for name, _ in model.named_modules():
        if name.rsplit(".", 1)[-1] in names:
            return name
    raise PolyptychError(f"{model.config.model_type}: no vision tower among {', '.join(names)}")
