"""Full-size recipes build without memory, fit the published weights, and train what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polyptych.methods.sam.conversion import SAM_TENSORS, convert_released
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.methods.sam.released import freeze_to_released
from polyptych.models.weights import overlay
from polyptych.recipes.sam_vicuna7b import RECIPE, model_config
from polyptych.training.freezing import select_trainable

VISION, QFORMER, LLM = 1408, 768, 4096


def published_layout() -> dict[str, Tensor]:
    """Names and shapes of the published model at its real size, on the meta device."""
    shapes: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, 32, QFORMER),
        "visual_encoder.cls_token": (1, 1, VISION),
        "visual_encoder.pos_embed": (1, 257, VISION),
        "visual_encoder.patch_embed.proj.weight": (VISION, 3, 14, 14),
        "visual_encoder.patch_embed.proj.bias": (VISION,),
        "Qformer.bert.embeddings.position_ids": (1, 512),
        "Qformer.bert.embeddings.word_embeddings.weight": (30523, QFORMER),
        "Qformer.bert.embeddings.position_embeddings.weight": (512, QFORMER),
        "llm_model.model.embed_tokens.weight": (32001, LLM),
        "llm_model.lm_head.weight": (32001, LLM),
        "llm_model.model.norm.weight": (LLM,),
    }

    def linear(name: str, outs: int, ins: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outs, ins), (outs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    norm("ln_vision", VISION)
    for n in range(39):
        block = f"visual_encoder.blocks.{n}"
        norm(f"{block}.norm1", VISION)
        norm(f"{block}.norm2", VISION)
        shapes[f"{block}.attn.q_bias"] = shapes[f"{block}.attn.v_bias"] = (VISION,)
        shapes[f"{block}.attn.qkv.weight"] = (3 * VISION, VISION)
        linear(f"{block}.attn.proj", VISION, VISION)
        linear(f"{block}.mlp.fc1", 6144, VISION)
        linear(f"{block}.mlp.fc2", VISION, 6144)
    norm("Qformer.bert.embeddings.LayerNorm", QFORMER)
    for i in range(12):
        layer = f"Qformer.bert.encoder.layer.{i}"
        for kind in ("attention", "crossattention")[: 2 if i % 2 == 0 else 1]:
            linear(f"{layer}.{kind}.self.query", QFORMER, QFORMER)
            source = QFORMER if kind == "attention" else VISION
            linear(f"{layer}.{kind}.self.key", QFORMER, source)
            linear(f"{layer}.{kind}.self.value", QFORMER, source)
            linear(f"{layer}.{kind}.output.dense", QFORMER, QFORMER)
            norm(f"{layer}.{kind}.output.LayerNorm", QFORMER)
        for rows in ("", "_query"):
            linear(f"{layer}.intermediate{rows}.dense", 3072, QFORMER)
            linear(f"{layer}.output{rows}.dense", QFORMER, 3072)
            norm(f"{layer}.output{rows}.LayerNorm", QFORMER)
    linear("Qformer.bert.encoder.one_2_muliple.0", QFORMER, QFORMER)
    linear("Qformer.bert.encoder.multiple_2_one.0", QFORMER, QFORMER)
    linear("attn", 1, VISION)
    linear("llm_proj", LLM, QFORMER)
    for m in range(32):
        layer = f"llm_model.model.layers.{m}"
        for part in ("q", "k", "v", "o"):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (LLM, LLM)
        shapes[f"{layer}.self_attn.rotary_emb.inv_freq"] = (64,)
        for part in ("gate", "up"):
            shapes[f"{layer}.mlp.{part}_proj.weight"] = (11008, LLM)
        shapes[f"{layer}.mlp.down_proj.weight"] = (LLM, 11008)
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{part}.weight"] = (LLM,)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def model() -> PolyptychSamForConditionalGeneration:
    with torch.device("meta"):
        return PolyptychSamForConditionalGeneration(model_config())


def count(module: torch.nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def test_sam_vicuna7b_has_the_published_sizes(model) -> None:
    vision, qformer = count(model.vision_encoder), count(model.connector.qformer)
    # Published: 985.9 M for the ViT without ln_vision; its zero key biases are parameters here.
    assert round((vision - 2 * VISION - 39 * VISION) / 1e6, 1) == 985.9
    assert round(qformer / 1e6, 1) == 185.7
    freeze_to_released(model)
    total, trainable = count(model), count(model, trainable=True)
    print(f"\nsam_vicuna7b: {trainable:,} trainable of {total:,} parameters")
    assert trainable == 1_182_593
    llm = 2 * 32001 * LLM + 32 * (4 * LLM**2 + 3 * LLM * 11008 + 2 * LLM) + LLM
    assert total == vision + qformer + trainable + (LLM * QFORMER + LLM) + llm


def test_sam_vicuna7b_trains_sams_six_tensors(model) -> None:
    assert set(select_trainable(model, RECIPE.trainable)) == set(SAM_TENSORS)


def test_sam_vicuna7b_fits_the_published_layout(model) -> None:
    merged = overlay([convert_released(published_layout())], model.state_dict())
    assert merged.keys() == model.state_dict().keys()
