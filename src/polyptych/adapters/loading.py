"""Loading whatever can answer: a model of this package, or one of transformers with methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from polyptych.adapters.adapt import adapt
from polyptych.adapters.families import FAMILIES
from polyptych.adapters.files import CONFIG_FILE
from polyptych.models.checkpoint import load_model, resolve
from polyptych.models.llava_conversion import layout_of


def load_any(
    name: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any]:
    """Load a model with its processor, in eval mode.

    Args:
        name: What :func:`polyptych.models.checkpoint.load_model` takes; or a folder that an adapted
            model was saved in; or a folder or hub name of a base of a known family, whose methods
            are then none.
        dtype: Type to compute in.
        device: Where to put the model.

    Raises:
        PolyptychError: If it is neither, or cannot be read.
    """
    path = resolve(name)
    if not _is_of_transformers(path):
        return load_model(name, dtype=dtype, device=device)
    model, processor = adapt(path, dtype=dtype)
    return model.eval().to(device), processor


def _is_of_transformers(path: str) -> bool:
    if Path(path, CONFIG_FILE).exists():
        return True
    try:
        fields = PreTrainedConfig.get_config_dict(path)[0]
    except OSError:
        return False  # the other loader says what is wrong
    return fields.get("model_type") in FAMILIES and layout_of(fields) is None
