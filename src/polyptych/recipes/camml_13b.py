"""CaMML at its published size over LLaVA-1.5-13B: as :mod:`polyptych.recipes.camml_7b`.

arXiv 2401.03149. The released script of this size cannot start (it names options that its parser
has lost); what stands here is what it says, with the perceivers of the 7B one.
"""

from __future__ import annotations

from typing import Any

from polyptych.methods.camml.model import PolyptychCammlConfig
from polyptych.recipes import camml_7b
from polyptych.training.recipe import ModelRecipe

VICUNA_13B: dict[str, Any] = {
    **camml_7b.VICUNA_7B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}

CONFIG: dict[str, Any] = {**camml_7b.CONFIG, "text_config": VICUNA_13B}


def model_config() -> PolyptychCammlConfig:
    """The config as the model takes it."""
    return PolyptychCammlConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


RECIPE = camml_7b.RECIPE.model_copy(
    update={
        "name": "camml-13b",
        "model": ModelRecipe(config=CONFIG, layout=camml_7b.RECIPE.model.layout),
    }
)
"""The released training: one epoch."""
