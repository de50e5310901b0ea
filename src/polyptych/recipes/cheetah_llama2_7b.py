"""Cheetah at its published size over LLaMA-2: as over Vicuna, with Llama-2-7b-chat.

arXiv 2308.04152. The released class differs from the one over Vicuna in the language model, the
prompt (``[INST]``) and the type it computes in; training is that of
:mod:`polyptych.recipes.cheetah_vicuna7b`.
"""

from __future__ import annotations

from typing import Any

from polyptych.methods.cheetah.model import PolyptychCheetahConfig
from polyptych.recipes import cheetah_vicuna7b
from polyptych.training.recipe import ModelRecipe

CONFIG: dict[str, Any] = {
    **cheetah_vicuna7b.CONFIG,
    "text_config": {  # Llama-2-7b-chat
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,  # released: padding is <unk>
    },
}
"""Sizes at which the released weights fit."""


def model_config() -> PolyptychCheetahConfig:
    """The config as the model takes it."""
    return PolyptychCheetahConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


RECIPE = cheetah_vicuna7b.RECIPE.model_copy(
    update={"name": "cheetah-llama2-7b", "model": ModelRecipe(config=CONFIG)}
)
"""The paper's training without its data, which was not released."""
