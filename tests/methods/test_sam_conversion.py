"""Published names -> ours, on tiny made-up checkpoints of every layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
)

from polyptych.errors import PolyptychError
from polyptych.methods.sam.conversion import (
    SAM_TENSORS,
    convert_checkpoint,
    convert_released,
    require_sam,
)
from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
from polyptych.models.checkpoint import load_model
from polyptych.models.weights import overlay, read_weights
from polyptych.testing import tiny_model, tiny_processor

# Ours -> published, in the order of application: the inverse of the table under test.
PUBLISHED = (
    (r"^vision_encoder\.model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"^vision_encoder\.model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"^vision_encoder\.model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
    (r"^vision_encoder\.model\.post_layernorm", "ln_vision"),
    (r"^vision_encoder\.model\.encoder\.layers", "visual_encoder.blocks"),
    (r"layer_norm([12])", r"norm\1"),
    (r"self_attn\.projection", "attn.proj"),
    (r"self_attn\.qkv", "attn.qkv"),
    (r"^connector\.qformer\.query_tokens", "query_tokens"),
    (r"^connector\.qformer\.(word|position)_embeddings", r"Qformer.bert.embeddings.\1_embeddings"),
    (r"^connector\.qformer\.embedding_norm", "Qformer.bert.embeddings.LayerNorm"),
    (r"^connector\.qformer\.layers", "Qformer.bert.encoder.layer"),
    (r"self_attention_norm", "attention.output.LayerNorm"),
    (r"cross_attention_norm", "crossattention.output.LayerNorm"),
    (r"self_attention\.output", "attention.output.dense"),
    (r"cross_attention\.output", "crossattention.output.dense"),
    (r"self_attention\.(query|key|value)", r"attention.self.\1"),
    (r"cross_attention\.(query|key|value)", r"crossattention.self.\1"),
    (r"text_ffn\.up", "intermediate.dense"),
    (r"text_ffn\.down", "output.dense"),
    (r"text_ffn\.norm", "output.LayerNorm"),
    (r"query_ffn\.up", "intermediate_query.dense"),
    (r"query_ffn\.down", "output_query.dense"),
    (r"query_ffn\.norm", "output_query.LayerNorm"),
    (r"^connector\.guidance\.adaptive_adjustment\.score", "attn"),
    (r"^connector\.guidance\.query_to_w", "Qformer.bert.encoder.one_2_muliple.0"),
    (r"^connector\.guidance\.w_to_query", "Qformer.bert.encoder.multiple_2_one.0"),
    (r"^connector\.projection\.linear", "llm_proj"),
    (r"^language_model", "llm_model"),
)


def published_layout(model: PolyptychSamForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights as the published code would save them, buffers included."""
    published = {}
    for ours, tensor in model.state_dict().items():
        name = ours
        for pattern, replacement in PUBLISHED:
            name = re.sub(pattern, replacement, name)
        if name.endswith("attn.qkv.bias"):
            q, k, v = tensor.chunk(3)
            assert not k.any()
            block = name.removesuffix("qkv.bias")
            published[f"{block}q_bias"], published[f"{block}v_bias"] = q.clone(), v.clone()
        else:
            published[name] = tensor.clone()
    published["Qformer.bert.embeddings.position_ids"] = torch.arange(8)[None]
    published["llm_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    return published


@pytest.fixture(scope="module")
def model() -> PolyptychSamForConditionalGeneration:
    """A tiny model whose key biases are zero, as in every published checkpoint."""
    model = tiny_model("released")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1)
            if name.endswith("qkv.bias"):
                parameter.chunk(3)[1].zero_()
    return model


@pytest.fixture
def published(model: PolyptychSamForConditionalGeneration) -> dict[str, Tensor]:
    return published_layout(model)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_published_layout_round_trip(model, published) -> None:
    assert "Qformer.bert.encoder.layer.0.crossattention.self.key.weight" in published
    assert "visual_encoder.blocks.1.attn.q_bias" in published
    assert_same(convert_released(published), model.state_dict())


def test_unexpected_names_are_listed_with_their_number(published) -> None:
    published |= {f"Qformer.cls.{index:02}": torch.zeros(1) for index in range(12)}
    with pytest.raises(PolyptychError, match=r"file\.pth: 12 unexpected tensors: Qformer\.cls\.00"):
        convert_released(published, source="file.pth")
    with pytest.raises(PolyptychError) as error:
        convert_released(published)
    assert str(error.value).count("Qformer.cls.") == 10


def test_another_models_checkpoint_is_refused() -> None:
    gpt2 = {
        "transformer.wte.weight": torch.zeros(2, 2),
        "transformer.h.0.ln_1.bias": torch.zeros(2),
    }
    with pytest.raises(PolyptychError, match="2 unexpected tensors"):
        convert_released(gpt2)


def test_missing_tensors_are_listed_with_their_number(model, published) -> None:
    del published["llm_proj.weight"], published["query_tokens"]
    with pytest.raises(PolyptychError) as error:
        overlay([convert_released(published)], model.state_dict(), source="a + b")
    assert str(error.value) == (
        "a + b: 2 missing tensors: connector.projection.linear.weight, "
        "connector.qformer.query_tokens"
    )


def test_tensors_of_another_model_size_are_refused(model, published) -> None:
    extra = convert_released({"visual_encoder.blocks.7.norm1.weight": torch.zeros(24)})
    with pytest.raises(PolyptychError, match=r"1 unexpected tensors: .*layers\.7\.layer_norm1"):
        overlay([convert_released(published), extra], model.state_dict())
    published["llm_proj.weight"] = torch.zeros(48, 7)
    with pytest.raises(PolyptychError, match=r"another shape: .*\(48, 7\) for \(48, 32\)"):
        overlay([convert_released(published)], model.state_dict())


def test_half_a_query_value_bias_is_refused(published) -> None:
    del published["visual_encoder.blocks.0.attn.v_bias"]
    with pytest.raises(PolyptychError, match=r"missing tensor: .*blocks\.0\.attn\.v_bias"):
        convert_released(published)


def test_later_parts_win(model, published) -> None:
    base = convert_released(published)
    sam = {name: t for name, t in published.items() if re.match(r"attn\.|.*(muliple|_one)\.", name)}
    sam = {name: tensor + 1 for name, tensor in sam.items()}
    sam["query_tokens"] = published["query_tokens"] + 2
    sam["Qformer.bert.embeddings.position_ids"] = torch.arange(8)[None]
    converted = convert_released(sam)
    require_sam(converted, source="sam.pth")
    merged = overlay([base, converted], model.state_dict())
    for name in merged:
        shift = 1 if name in SAM_TENSORS else 2 if name.endswith("query_tokens") else 0
        assert torch.equal(merged[name], base[name] + shift), name


def test_a_checkpoint_without_sams_tensors_is_no_sam_checkpoint(published) -> None:
    del published["attn.bias"]
    with pytest.raises(PolyptychError, match=r"no SAM checkpoint; 1 of 6 .*score\.bias"):
        require_sam(convert_released(published), source="sam.pth")


def test_pickles_are_read_without_running_them(tmp_path: Path) -> None:
    harmless, harmful = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"model": {"attn.bias": torch.ones(1)}, "optimizer": {}, "epoch": 3}, harmless)
    assert_same(read_weights(harmless), {"attn.bias": torch.ones(1)})
    torch.save({"model": {"attn.bias": torch.ones(1)}, "config": Path("x").open}, harmful)
    with pytest.raises(PolyptychError, match=r"bad\.pth: not readable as weights"):
        read_weights(harmful)


def test_unreadable_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match=r"none\.pth: no such file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(PolyptychError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        read_weights(tmp_path)
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and then nothing")
        with pytest.raises(PolyptychError, match="not readable as weights"):
            read_weights(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(PolyptychError, match="no state dict: found list"):
        read_weights(tmp_path / "list.pth")


def write_published_parts(published: dict[str, Tensor], folder: Path) -> list[Path]:
    """Split as the authors' assembly: EVA file, Vicuna folder, InstructBLIP file, SAM file."""
    eva, llm, sam, rest = {}, {}, {}, {}
    for name, tensor in published.items():
        if name.startswith("visual_encoder."):
            eva[name.removeprefix("visual_encoder.")] = tensor
        elif name.startswith("llm_model.") and "inv_freq" not in name:
            # The pad token's row, here the last one, is added by the method.
            cut = "embed_tokens" in name or "lm_head" in name
            llm[name.removeprefix("llm_model.")] = tensor[:-1].clone() if cut else tensor
        elif re.match(r"attn\.|.*(muliple|_one)\.", name):
            sam[name] = tensor
        else:
            rest[name] = tensor
    eva |= {
        f"blocks.2.{n}": torch.zeros(24) for n in ("norm1.weight", "attn.q_bias", "attn.v_bias")
    }
    eva |= {"norm.weight": torch.ones(24), "head.bias": torch.zeros(3)}
    (folder / "vicuna").mkdir()
    save_file(llm, folder / "vicuna" / "model.safetensors")
    torch.save(eva, folder / "eva.pth")
    torch.save({"model": rest}, folder / "instructblip.pth")
    torch.save({"model": sam, "epoch": 1}, folder / "sam.pth")
    return [folder / name for name in ("eva.pth", "vicuna", "instructblip.pth", "sam.pth")]


def test_parts_become_a_folder_that_loads(model, published, tmp_path: Path) -> None:
    parts = write_published_parts(published, tmp_path)
    out = tmp_path / "sam"
    convert_checkpoint(out, parts=parts, config=model.config, processor=tiny_processor())
    loaded, processor = load_model(out)
    assert processor.tokens_per_image == tiny_processor().tokens_per_image
    expected = dict(model.state_dict())
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        expected[name] = torch.cat([expected[name][:-1], torch.zeros_like(expected[name][-1:])])
    assert_same(dict(loaded.state_dict()), expected)
    assert not (tmp_path / "sam.partial").exists()


def test_a_failed_conversion_leaves_nothing(model, published, tmp_path: Path) -> None:
    parts = write_published_parts(published, tmp_path)
    with pytest.raises(PolyptychError, match=r"no SAM checkpoint; 6 of 6"):
        convert_checkpoint(tmp_path / "out", parts=parts[:-1], config=model.config)
    with pytest.raises(PolyptychError, match=r"missing tensors: language_model\.lm_head"):
        convert_checkpoint(tmp_path / "out", parts=[parts[0], *parts[2:]], config=model.config)
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(PolyptychError, match="exists already"):
        convert_checkpoint(tmp_path, parts=parts, config=model.config)


def test_a_base_without_sam_is_converted_with_guidance_off(model, published, tmp_path) -> None:
    parts = write_published_parts(published, tmp_path)
    fields = {k: v for k, v in model.config.to_dict().items() if k != "model_type"}
    base = PolyptychSamConfig(**{**fields, "guidance": "off"})
    convert_checkpoint(tmp_path / "base", parts=parts[:-1], config=base)
    loaded = PolyptychSamForConditionalGeneration.from_pretrained(tmp_path / "base")
    assert loaded.connector.guidance is None
    with pytest.raises(PolyptychError, match="6 unexpected tensors"):
        convert_checkpoint(tmp_path / "other", parts=parts, config=base)
    fields["guidance"] = "paper"
    with pytest.raises(PolyptychError, match="no published weights"):
        convert_checkpoint(tmp_path / "other", parts=parts, config=PolyptychSamConfig(**fields))


def hugging_face_model() -> InstructBlipForConditionalGeneration:
    torch.manual_seed(1)
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=28,
            patch_size=7,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=16,
        ),
        text_config=LlamaConfig(
            vocab_size=60,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
        ),
        num_query_tokens=5,
        image_token_index=59,
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def test_hugging_face_folder_gives_the_same_visual_tokens(tmp_path: Path) -> None:
    theirs = hugging_face_model()
    theirs.save_pretrained(tmp_path / "hf")
    config = PolyptychSamConfig(
        guidance="off",
        vision_config=theirs.config.vision_config.to_dict(),
        qformer_config=theirs.config.qformer_config.to_dict(),
        text_config=theirs.config.text_config.to_dict(),
        num_query_tokens=5,
        image_token_id=59,
    )
    convert_checkpoint(tmp_path / "ours", parts=[tmp_path / "hf"], config=config)
    ours = PolyptychSamForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()

    # transformers gives the norm behind the blocks their eps, the original does not.
    theirs.vision_model.post_layernorm.eps = 1e-5
    pixels, words = torch.randn(2, 3, 28, 28), torch.tensor([[3, 4, 5], [6, 7, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        features = theirs.vision_model(pixels).last_hidden_state
        queries = theirs.qformer(
            input_ids=words,
            attention_mask=torch.cat([mask.new_ones(2, 5), mask], dim=1),
            query_embeds=theirs.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=features,
        ).last_hidden_state[:, :5]
        expected = theirs.language_projection(queries).flatten(0, 1)
        tokens = ours.encode_images(
            pixels,
            image_counts=torch.tensor([1, 1]),
            qformer_input_ids=words,
            qformer_attention_mask=mask,
        ).visual_tokens
    torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=0)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        torch.testing.assert_close(
            ours(input_ids=ids).logits, theirs.language_model(input_ids=ids).logits
        )
