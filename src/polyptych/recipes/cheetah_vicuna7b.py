r"""Cheetah at its published size over Vicuna: EVA-CLIP ViT-g, BLIP-2's Q-Former, Vicuna-7B v0.

arXiv 2308.04152; sizes are those of the released code, the training is the paper's (its code was
not released). 6,320,896 parameters learn: VPG-C's two linears and its queries. Training starts from
what :func:`polyptych.methods.cheetah.conversion.convert_checkpoint` assembles with
``fresh_vpgc=True``, on discriminative pairs and captions, 24 and 64 of them in every step::

    polyptych train cheetah_vicuna7b model.checkpoint=FOLDER data.state_cache=STATES \
        'data.train=[{"path": "PAIRS", "weight": 24}, {"path": "CAPTIONS", "weight": 64}]'
"""

from __future__ import annotations

from typing import Any

from polyptych.methods.cheetah.model import PolyptychCheetahConfig
from polyptych.methods.cheetah.released import RELEASED_TRAINABLE
from polyptych.training.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe

CONFIG: dict[str, Any] = {
    "model_type": "polyptych_cheetah",
    "injection_layer": 16,  # of 32: the default of the released class, the paper's best
    "num_query_tokens": 32,  # BLIP-2
    "instruction_aware": False,  # BLIP-2's Q-Former without its text half
    "vision_config": {  # EVA-CLIP ViT-g/14 as in BLIP-2
        "model_type": "instructblip_vision_model",
        "hidden_size": 1408,
        "num_hidden_layers": 39,  # of 40: features are taken before the last block
        "num_attention_heads": 16,
        "intermediate_size": 6144,  # int(1408 * 4.3637)
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",  # erf
        "layer_norm_eps": 1e-6,  # the blocks'; the norm behind them has torch's 1e-5
        "qkv_bias": True,  # [q, 0, v]
    },
    "qformer_config": {  # BERT-base with cross-attention, BLIP-2
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "cross_attention_frequency": 2,  # layers 0, 2, .., 10
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    "text_config": {  # LLaMA-7B, the base of Vicuna
        "model_type": "llama",
        "vocab_size": 32001,  # LLaMA's 32000 and [PAD], which Vicuna v0 adds and nothing uses
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        # </s>; "###" as a word; the "##" that "###" begins with inside a word
        "eos_token_id": [2, 835, 2277],
        "pad_token_id": 2,  # released: padding is </s>
    },
}
"""Sizes at which the released weights fit."""


def model_config() -> PolyptychCheetahConfig:
    """The config as the model takes it."""
    return PolyptychCheetahConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


RECIPE = Recipe(
    name="cheetah-vicuna7b",
    stage="finetune",
    model=ModelRecipe(config=CONFIG),
    trainable=RELEASED_TRAINABLE,
    data=DataRecipe(exact_shares=True),  # 24 discriminative pairs and 64 captions per step
    optimizer=OptimizerRecipe(
        learning_rate=2e-5,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        schedule="cosine",
        warmup_steps=2000,
    ),
    steps=18_000,
    global_batch_size=88,
    precision="bf16",  # released: fp16 language model and ViT under autocast
    gradient_checkpointing=True,
)
"""The paper's training without its data, which was not released."""
