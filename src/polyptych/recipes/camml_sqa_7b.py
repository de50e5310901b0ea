"""CaMML at its published size for ScienceQA, 7B: 64 queries, one shot, twelve epochs.

arXiv 2401.03149; sizes and training are those of the released scripts, whose trainer could not run
a forward pass (it names the tokenizer otherwise than the model does). LLaVA as of its first
version: CLIP at 224 pixels, a linear projector, Vicuna v1.3. The schedule is linear for the reason
told in :mod:`polyptych.recipes.camml_7b`::

    polyptych train camml_sqa_7b model.checkpoint=LLAVA 'data.train=["SCIENCEQA.jsonl"]'
"""

from __future__ import annotations

from typing import Any

from polyptych.methods.camml.model import PolyptychCammlConfig
from polyptych.recipes import camml_7b
from polyptych.training.recipe import DataRecipe, ModelRecipe

VICUNA_V1_3 = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
"""Where it differs from v1.5."""

CONFIG: dict[str, Any] = {
    **camml_7b.CONFIG,
    "num_query_tokens": 64,  # 128 context tokens
    "projector_type": "linear",
    "vision_config": {**camml_7b.CLIP_L, "image_size": 224},  # 256 patches
    "text_config": {**camml_7b.VICUNA_7B, **VICUNA_V1_3},
}


def model_config() -> PolyptychCammlConfig:
    """The config as the model takes it."""
    return PolyptychCammlConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


RECIPE = camml_7b.RECIPE.model_copy(
    update={
        "name": "camml-sqa-7b",
        "model": ModelRecipe(
            config=CONFIG, layout={"context_template": "science", "max_length": 2048}
        ),
        "data": DataRecipe(random_shots=1),
        "optimizer": camml_7b.RECIPE.optimizer.model_copy(update={"warmup_steps": 72}),
        "steps": 2388,  # twelve epochs of 12,726 problems
    }
)
"""The released training: twelve epochs."""
