"""CaMML at its published size over LLaVA-1.5-7B: instruction tuning on LLaVA-665K, three shots.

arXiv 2401.03149; sizes and training are those of the released scripts. All but CLIP learns.
Training starts from CLIP, Vicuna and LLaVA's pre-trained projector, saved together as one of our
LLaVA folders, on records whose ``shots`` retrieval has filled::

    polyptych index neighbors INDEX DATA --top-k 3 --out TABLE
    polyptych index attach INDEX DATA TABLE --out RECORDS.jsonl
    polyptych train camml_7b model.checkpoint=LLAVA 'data.train=["RECORDS.jsonl"]'

The released scripts ask for a cosine schedule, but hand DeepSpeed a scheduler of its own that
decays linearly and goes before theirs; the warm-up is DeepSpeed's, too (log-shaped by its default,
linear here). No trained weights were published, so that nothing asks for ``behavior="released"``.
"""

from __future__ import annotations

from typing import Any

from polyptych.methods.camml.model import PolyptychCammlConfig
from polyptych.training.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe

CLIP_L: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
"""ViT-L/14; each recipe adds the pixels."""

VICUNA_7B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,  # v1.5
    "rms_norm_eps": 1e-5,  # v1.5
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,  # <unk>
}

PERCEIVER: dict[str, Any] = {  # bert-base-uncased, trimmed
    "hidden_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "cross_attention_frequency": 2,  # of two layers, the first looks
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}

CONFIG: dict[str, Any] = {
    "model_type": "polyptych_camml",
    "num_query_tokens": 128,  # 256 context tokens
    "perceiver_config": PERCEIVER,
    "projector_type": "mlp2x_gelu",
    "vision_feature_layer": -2,
    "vision_config": {**CLIP_L, "image_size": 336},  # 576 patches
    "text_config": VICUNA_7B,
}


def model_config() -> PolyptychCammlConfig:
    """The config as the model takes it."""
    return PolyptychCammlConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


RECIPE = Recipe(
    name="camml-7b",
    stage="finetune",
    model=ModelRecipe(config=CONFIG, layout={"context_template": "instruction"}),
    trainable=("language_model", "connector", "camml"),  # released: everything but CLIP
    data=DataRecipe(random_shots=3),
    optimizer=OptimizerRecipe(
        learning_rate=2e-5,
        weight_decay=0.0,
        schedule="linear",  # what ran; the scripts say cosine
        warmup_steps=312,  # 3 %
    ),
    steps=10_396,  # one epoch of 665,298 conversations
    global_batch_size=64,  # 8 GPUs x 8
    micro_batch_size=8,
    precision="bf16",  # released: fp16 with dynamic loss scale
    gradient_checkpointing=True,
)
"""The released training: one epoch."""
