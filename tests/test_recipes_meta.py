"""Full-size recipes build without memory, fit the published weights, and train what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polyptych.methods.camml import conversion as camml
from polyptych.methods.camml.model import PolyptychCammlForConditionalGeneration
from polyptych.methods.cheetah import conversion as cheetah
from polyptych.methods.cheetah.model import PolyptychCheetahForConditionalGeneration
from polyptych.methods.sam.conversion import SAM_TENSORS, convert_released
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.methods.sam.released import freeze_to_released
from polyptych.models.weights import overlay
from polyptych.recipes import (
    camml_7b,
    camml_13b,
    camml_sqa_7b,
    camml_sqa_13b,
    cheetah_llama2_7b,
    cheetah_vicuna7b,
)
from polyptych.recipes.sam_vicuna7b import RECIPE, model_config
from polyptych.training.freezing import select_trainable

VISION, QFORMER, LLM = 1408, 768, 4096


class Layout:
    """Names and shapes of a published model, collected part by part."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def linear(self, name: str, outs: int, ins: int) -> None:
        self.shapes |= {f"{name}.weight": (outs, ins), f"{name}.bias": (outs,)}

    def norm(self, name: str, width: int) -> None:
        self.shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def vision_encoder(self) -> None:
        self.shapes |= {
            "visual_encoder.cls_token": (1, 1, VISION),
            "visual_encoder.pos_embed": (1, 257, VISION),
            "visual_encoder.patch_embed.proj.weight": (VISION, 3, 14, 14),
            "visual_encoder.patch_embed.proj.bias": (VISION,),
        }
        self.norm("ln_vision", VISION)
        for n in range(39):
            block = f"visual_encoder.blocks.{n}"
            self.norm(f"{block}.norm1", VISION)
            self.norm(f"{block}.norm2", VISION)
            self.shapes |= {f"{block}.attn.{kind}_bias": (VISION,) for kind in "qv"}
            self.shapes[f"{block}.attn.qkv.weight"] = (3 * VISION, VISION)
            self.linear(f"{block}.attn.proj", VISION, VISION)
            self.linear(f"{block}.mlp.fc1", 6144, VISION)
            self.linear(f"{block}.mlp.fc2", VISION, 6144)

    def qformer(self, prefix: str = "", *, reads_text: bool) -> None:
        bert = f"{prefix}Qformer.bert"
        self.shapes[f"{bert}.embeddings.position_ids"] = (1, 512)
        if reads_text:
            self.shapes[f"{bert}.embeddings.word_embeddings.weight"] = (30523, QFORMER)
            self.shapes[f"{bert}.embeddings.position_embeddings.weight"] = (512, QFORMER)
        self.norm(f"{bert}.embeddings.LayerNorm", QFORMER)
        for i in range(12):
            layer = f"{bert}.encoder.layer.{i}"
            for kind in ("attention", "crossattention")[: 2 if i % 2 == 0 else 1]:
                self.linear(f"{layer}.{kind}.self.query", QFORMER, QFORMER)
                source = QFORMER if kind == "attention" else VISION
                self.linear(f"{layer}.{kind}.self.key", QFORMER, source)
                self.linear(f"{layer}.{kind}.self.value", QFORMER, source)
                self.linear(f"{layer}.{kind}.output.dense", QFORMER, QFORMER)
                self.norm(f"{layer}.{kind}.output.LayerNorm", QFORMER)
            for rows in ("", "_query") if reads_text else ("_query",):
                self.linear(f"{layer}.intermediate{rows}.dense", 3072, QFORMER)
                self.linear(f"{layer}.output{rows}.dense", QFORMER, 3072)
                self.norm(f"{layer}.output{rows}.LayerNorm", QFORMER)

    def language_model(self, prefix: str, words: int) -> None:
        self.shapes[f"{prefix}.model.embed_tokens.weight"] = (words, LLM)
        self.shapes[f"{prefix}.lm_head.weight"] = (words, LLM)
        self.shapes[f"{prefix}.model.norm.weight"] = (LLM,)
        for m in range(32):
            layer = f"{prefix}.model.layers.{m}"
            for part in ("q", "k", "v", "o"):
                self.shapes[f"{layer}.self_attn.{part}_proj.weight"] = (LLM, LLM)
            self.shapes[f"{layer}.self_attn.rotary_emb.inv_freq"] = (64,)
            for part in ("gate", "up"):
                self.shapes[f"{layer}.mlp.{part}_proj.weight"] = (11008, LLM)
            self.shapes[f"{layer}.mlp.down_proj.weight"] = (LLM, 11008)
            for part in ("input_layernorm", "post_attention_layernorm"):
                self.shapes[f"{layer}.{part}.weight"] = (LLM,)

    def on_meta(self) -> dict[str, Tensor]:
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}


def published_layout() -> dict[str, Tensor]:
    layout = Layout()
    layout.shapes["query_tokens"] = (1, 32, QFORMER)
    layout.vision_encoder()
    layout.qformer(reads_text=True)
    layout.linear("Qformer.bert.encoder.one_2_muliple.0", QFORMER, QFORMER)
    layout.linear("Qformer.bert.encoder.multiple_2_one.0", QFORMER, QFORMER)
    layout.linear("attn", 1, VISION)
    layout.linear("llm_proj", LLM, QFORMER)
    layout.language_model("llm_model", 32001)
    return layout.on_meta()


def published_cheetah_layout(words: int) -> dict[str, Tensor]:
    """As the published class saves itself, but for the second name of its Q-Former."""
    layout = Layout()
    layout.shapes["query_tokens"] = (1, 32, QFORMER)
    layout.vision_encoder()
    layout.qformer(reads_text=False)
    layout.linear("llama_proj", LLM, QFORMER)
    layout.shapes["llama_model.model.query_tokens"] = (1, 32, QFORMER)
    layout.linear("llama_model.model.qformer_proj", QFORMER, LLM)
    layout.linear("llama_model.model.llm_proj", LLM, QFORMER)
    layout.language_model("llama_model", words)
    return layout.on_meta()


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


@pytest.mark.parametrize(
    ("recipe", "words"), [(cheetah_vicuna7b, 32001), (cheetah_llama2_7b, 32000)]
)
def test_cheetah_has_the_published_sizes_and_layout(recipe, words) -> None:
    with torch.device("meta"):
        model = PolyptychCheetahForConditionalGeneration(recipe.model_config())
    assert set(select_trainable(model, recipe.RECIPE.trainable)) == set(cheetah.VPGC_TENSORS)
    total, trainable = count(model), count(model, trainable=True)
    print(f"\n{recipe.RECIPE.name}: {trainable:,} trainable of {total:,} parameters")
    assert trainable == 6_320_896  # published: about 6.3 M, 0.09 %
    assert round(100 * trainable / total, 2) == 0.08
    assert model.config.injection_layer == 16
    published = published_cheetah_layout(words)
    merged = overlay([cheetah.convert_released(published)], model.state_dict())
    assert merged.keys() == model.state_dict().keys()


def test_cheetah_trains_as_in_the_paper() -> None:
    for recipe in (cheetah_vicuna7b.RECIPE, cheetah_llama2_7b.RECIPE):
        optimizer = recipe.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay) == (2e-5, 0.05)
        assert (optimizer.betas, optimizer.warmup_steps) == ((0.9, 0.999), 2000)
        assert (recipe.steps, recipe.global_batch_size) == (18_000, 24 + 64)
        assert recipe.data.exact_shares
    assert cheetah_llama2_7b.RECIPE.model.config["text_config"]["vocab_size"] == 32000


def published_camml_parts(width: int, queries: int, llm: int, perceiver: int) -> dict:
    """What CaMML adds to LLaVA, without the dead heads."""
    layout = Layout()
    for kind in ("vision", "text"):
        layout.shapes[f"query_tokens_{kind}"] = (1, queries, perceiver)
        layout.linear(f"context_proj_{kind}", llm, perceiver)
    for kind in ("image", "text"):
        layout.linear(f"{kind}_proj_to_perceiver", perceiver, llm)
    for name in ("vision", "language", "context"):
        bert = f"{name}_perceiver.bert"
        layout.norm(f"{bert}.embeddings.LayerNorm", perceiver)
        for i in range(2):
            layer = f"{bert}.encoder.layer.{i}"
            for kind in ("attention", "crossattention")[: 2 if i == 0 else 1]:
                for part in ("query", "key", "value"):
                    layout.linear(f"{layer}.{kind}.self.{part}", perceiver, perceiver)
                layout.linear(f"{layer}.{kind}.output.dense", perceiver, perceiver)
                layout.norm(f"{layer}.{kind}.output.LayerNorm", perceiver)
            layout.linear(f"{layer}.intermediate_query.dense", width, perceiver)
            layout.linear(f"{layer}.output_query.dense", perceiver, width)
            layout.norm(f"{layer}.output_query.LayerNorm", perceiver)
    return layout.shapes


# Published: parameters of the three perceivers, and of queries and the four linears, in millions.
CAMML = [
    (camml_7b, 576, 256, 768, 4096, 49.6, 12.8),
    (camml_13b, 576, 256, 768, 5120, 49.6, 15.9),
    (camml_sqa_7b, 256, 128, 768, 4096, 49.6, 12.7),
    (camml_sqa_13b, 256, 256, 4608, 5120, 934.7, 95.6),
]


@pytest.mark.parametrize(
    ("recipe", "patches", "context", "width", "llm", "perceivers", "rest"), CAMML
)
def test_camml_has_the_published_sizes_and_layout(
    recipe, patches, context, width, llm, perceivers, rest
) -> None:
    with torch.device("meta"):
        model = PolyptychCammlForConditionalGeneration(recipe.model_config())
    assert (model.config.tokens_per_image, model.config.context_tokens) == (patches, context)
    trained = select_trainable(model, recipe.RECIPE.trainable)
    names = [name for name, _ in model.named_parameters()]
    assert trained == [name for name in names if not name.startswith("vision_encoder.")]
    module = model.camml
    of_perceivers = sum(
        count(module.get_submodule(f"{name}_perceiver")) for name in ("vision", "language")
    )
    of_perceivers += count(module.vision_perceiver)  # the third has queries and outputs beside it
    print(f"\n{recipe.RECIPE.name}: {count(model):,} parameters, {count(module):,} of them CaMML's")
    assert round(of_perceivers / 1e6, 1) == perceivers
    assert round((count(module) - of_perceivers) / 1e6, 1) == rest

    published = camml.to_released(model.state_dict())
    assert not [name for name in published if ".cls." in name]
    parts = published_camml_parts(3072, context // 2, llm, width)
    assert {n: tuple(published[n].shape) for n in parts} == parts
    others = ("model.", "lm_head.")
    assert all(name in parts or name.startswith(others) for name in published)
    merged = overlay([camml.convert_released(published)], model.state_dict())
    assert merged.keys() == model.state_dict().keys()


def test_camml_trains_as_released() -> None:
    for recipe, steps in (
        (camml_7b.RECIPE, -(-665_298 // 64)),
        (camml_13b.RECIPE, -(-665_298 // 64)),
        (camml_sqa_7b.RECIPE, 12 * -(-12_726 // 64)),
        (camml_sqa_13b.RECIPE, 12 * -(-12_726 // 64)),
    ):
        optimizer = recipe.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay) == (2e-5, 0.0)
        assert (recipe.steps, recipe.global_batch_size) == (steps, 64)
        assert optimizer.warmup_steps == -(-steps * 3 // 100)
        assert optimizer.schedule == "linear"  # DeepSpeed's, which went before the scripts' cosine
        science = "sqa" in recipe.name
        assert recipe.model.layout["context_template"] == ("science" if science else "instruction")
