"""SIMA at its published size over LLaVA-1.5-13B: as :mod:`polyptych.recipes.sima_7b`.

arXiv 2405.15973. The released script, which bears the name of this size, says three epochs; the
paper trains it for one, in 7 hours on one A100.
"""

from __future__ import annotations

from typing import Any

from polyptych.models.llava import PolyptychLlavaConfig
from polyptych.recipes import sima_7b
from polyptych.recipes.camml_13b import VICUNA_13B

CONFIG: dict[str, Any] = {**sima_7b.CONFIG, "text_config": VICUNA_13B}
"""LLaVA-1.5-13B."""


def model_config() -> PolyptychLlavaConfig:
    """The config as the model takes it."""
    return PolyptychLlavaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


SETTINGS = sima_7b.SETTINGS.model_copy(update={"epochs": 1})
"""The paper's training."""
