"""CaMML at its published size for ScienceQA, 13B: wide perceivers, 128 queries, three shots.

arXiv 2401.03149; as :mod:`polyptych.recipes.camml_sqa_7b`. The perceivers of this size are 4,608
wide (with twelve heads and BERT's feed-forward width all the same): 0.9 billion parameters.
"""

from __future__ import annotations

from typing import Any

from polyptych.methods.camml.model import PolyptychCammlConfig
from polyptych.recipes import camml_7b, camml_13b, camml_sqa_7b
from polyptych.training.recipe import DataRecipe, ModelRecipe

CONFIG: dict[str, Any] = {
    **camml_sqa_7b.CONFIG,
    "num_query_tokens": 128,  # 256 context tokens
    "perceiver_config": {**camml_7b.PERCEIVER, "hidden_size": 4608},
    "text_config": {**camml_13b.VICUNA_13B, **camml_sqa_7b.VICUNA_V1_3},
}


def model_config() -> PolyptychCammlConfig:
    """The config as the model takes it."""
    return PolyptychCammlConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


RECIPE = camml_sqa_7b.RECIPE.model_copy(
    update={
        "name": "camml-sqa-13b",
        "model": ModelRecipe(config=CONFIG, layout=camml_sqa_7b.RECIPE.model.layout),
        "data": DataRecipe(random_shots=3),
    }
)
"""The released training: twelve epochs."""
