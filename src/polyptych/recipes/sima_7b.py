"""SIMA at its published size over LLaVA-1.5-7B: three epochs of DPO on the model's own answers.

arXiv 2405.15973; sizes and training are those of the released scripts. Adapters on the language
model are all that learns. The pairs come from the loop before it (17k prompts of LLaVA-Instruct,
each answered twice and judged by the model itself)::

    polyptych sima tune PAIRS.jsonl --model LLAVA --recipe sima_7b --out runs/sima_7b
    polyptych merge runs/sima_7b/adapter --precision float16 --out models/sima_7b

Two things the scripts ask for do not happen there: LoRA dropout of 0.05 is switched off by the
trainer, and the projector's learning rate has no effect, since it is frozen by a second wrapping.
"""

from __future__ import annotations

from typing import Any

from polyptych.models.llava import PolyptychLlavaConfig
from polyptych.recipes.camml_7b import CLIP_L, VICUNA_7B
from polyptych.training.preference_settings import PreferenceSettings

CONFIG: dict[str, Any] = {
    "model_type": "polyptych_llava",
    "projector_type": "mlp2x_gelu",
    "vision_feature_layer": -2,
    "vision_config": {**CLIP_L, "image_size": 336},  # 576 patches
    "text_config": VICUNA_7B,
}
"""LLaVA-1.5-7B."""


def model_config() -> PolyptychLlavaConfig:
    """The config as the model takes it."""
    return PolyptychLlavaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})


SETTINGS = PreferenceSettings(
    variant="plain",  # the paper; the released trainer file: "released"
    beta=0.1,  # the trainer's default, which no script sets
    lora_rank=128,
    lora_alpha=256,
    train_connector=False,  # what happens in the released code; see above
    learning_rate=1e-7,
    warmup_share=0.03,
    schedule="cosine",
    weight_decay=0.0,
    epochs=3,  # 51,000 pairs in 15 hours on one A100
    global_batch_size=1,  # 1 per device
    max_length=2048,
    precision="bf16",
    save_every=200,
)
"""The released training."""
