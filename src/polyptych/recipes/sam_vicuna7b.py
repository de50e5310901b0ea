"""SAM at its published size: EVA-CLIP ViT-g, InstructBLIP's Q-Former, Vicuna-7B v1.1.

arXiv 2408.12867; sizes are those of the released code. 1,182,593 parameters learn: adaptive
adjustment and the two exchange layers.

Its learning rate, schedule, batch size and data mixture were not published; what stands here for
them is InstructBLIP's (the defaults of :class:`polyptych.training.recipe.OptimizerRecipe`), to be
tuned. :func:`polyptych.methods.sam.conversion.convert_checkpoint` assembles InstructBLIP with
``guidance="off"``; training starts there::

    polyptych train sam_vicuna7b model.checkpoint=FOLDER 'data.train=["RECORDS.jsonl"]'
"""

from __future__ import annotations

from typing import Any

from polyptych.methods.sam.model import PolyptychSamConfig
from polyptych.methods.sam.released import RELEASED_TRAINABLE
from polyptych.training.recipe import ModelRecipe, Recipe

CONFIG: dict[str, Any] = {
    "model_type": "polyptych_sam",
    "guidance": "released",  # the form of the released weights
    "num_query_tokens": 32,  # BLIP-2
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
    "qformer_config": {  # BERT-base with cross-attention, InstructBLIP
        "vocab_size": 30523,  # bert-base-uncased and [DEC]
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "cross_attention_frequency": 2,  # layers 0, 2, .., 10
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    "text_config": {  # LLaMA-7B, the base of Vicuna
        "model_type": "llama",
        "vocab_size": 32001,  # LLaMA's 32000 and [PAD]
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,  # Vicuna v1.1
        "rms_norm_eps": 1e-6,  # Vicuna v1.1
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}
"""Sizes at which the released weights fit."""


def model_config() -> PolyptychSamConfig:
    """The config as the model takes it."""
    return PolyptychSamConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


RECIPE = Recipe(
    name="sam-vicuna7b",
    stage="finetune",
    model=ModelRecipe(config=CONFIG),
    trainable=RELEASED_TRAINABLE,
    precision="bf16",  # released: fp16 autocast, fp32 Q-Former
    gradient_checkpointing=True,
)
"""The published setting without its data (MmLINK was not released)."""
