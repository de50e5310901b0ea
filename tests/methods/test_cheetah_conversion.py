"""Published Cheetah names -> ours and back, on tiny checkpoints split as the authors' are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.conversion import (
    PROJECTION_TENSORS,
    VPGC_TENSORS,
    convert_checkpoint,
    convert_released,
    require_cheetah,
    to_released,
    write_released,
)
from polyptych.methods.cheetah.model import PolyptychCheetahForConditionalGeneration
from polyptych.models.blip2_conversion import fit_vision
from polyptych.models.checkpoint import load_model
from polyptych.models.weights import overlay, read_weights
from polyptych.testing import TINY_QUERIES, tiny_cheetah, tiny_processor

ALIAS = "llama_model.model.Qformer."
Parts = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def model() -> PolyptychCheetahForConditionalGeneration:
    """A tiny model whose key biases are zero, as in every published checkpoint."""
    model = tiny_cheetah()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1)
            if name.endswith("qkv.bias"):
                parameter.chunk(3)[1].zero_()
    return model


@pytest.fixture
def parts(model: PolyptychCheetahForConditionalGeneration) -> Parts:
    """EVA file, BLIP-2 file, LLaMA folder, Cheetah file; with all that they hold besides."""
    split: Parts = {"eva": {}, "blip2": {}, "llama": {}, "cheetah": {}}
    for name, tensor in to_released(model.state_dict()).items():
        tensor = tensor.clone()
        if name.startswith("visual_encoder."):
            split["eva"][name.removeprefix("visual_encoder.")] = tensor
        elif name.startswith(("llama_proj", "llama_model.model.q", "llama_model.model.llm", ALIAS)):
            split["cheetah"][name] = tensor
        elif name.startswith("llama_model."):
            split["llama"][name.removeprefix("llama_model.")] = tensor
        else:
            split["blip2"][name] = tensor
    names = ("blocks.2.norm1.weight", "blocks.2.attn.q_bias", "blocks.2.attn.v_bias", "norm.bias")
    split["eva"] |= {name: torch.zeros(24) for name in names}
    split["eva"]["head.weight"] = torch.zeros(3, 24)
    split["blip2"] |= {
        "t5_proj.weight": torch.zeros(5, 32),
        "Qformer.bert.embeddings.position_ids": torch.arange(8)[None],
        "Qformer.bert.embeddings.word_embeddings.weight": torch.zeros(9, 32),
        "Qformer.bert.encoder.layer.0.intermediate.dense.weight": torch.zeros(64, 32),
        "Qformer.bert.encoder.layer.0.output.LayerNorm.bias": torch.zeros(32),
        "Qformer.cls.predictions.bias": torch.zeros(9),
    }
    split["llama"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    split["cheetah"][f"{ALIAS}bert.embeddings.position_ids"] = torch.arange(8)[None]
    return split


def write(parts: Parts, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    torch.save(parts["eva"], folder / "eva.pth")
    torch.save({"model": parts["blip2"]}, folder / "blip2.pth")
    llama = folder / "llama"
    llama.mkdir()
    names = sorted(parts["llama"])
    index = {}
    for shard, chosen in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-0000{shard}-of-00002.bin"
        torch.save({name: parts["llama"][name] for name in chosen}, llama / file)
        index |= dict.fromkeys(chosen, file)
    (llama / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    torch.save(
        {"model": parts["cheetah"], "optimizer": {"state": {}}, "epoch": 4}, folder / "cheetah.pth"
    )
    return [folder / name for name in ("eva.pth", "blip2.pth", "llama", "cheetah.pth")]


def assert_same(left, right) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


# --- names ---------------------------------------------------------------------------------------


def test_the_published_names_are_those_of_the_release(model) -> None:
    published = to_released(model.state_dict())
    for name, shape in {
        "query_tokens": (1, TINY_QUERIES, 32),
        "visual_encoder.blocks.1.attn.q_bias": (24,),
        "visual_encoder.blocks.1.attn.qkv.weight": (72, 24),
        "ln_vision.bias": (24,),
        "Qformer.bert.encoder.layer.2.crossattention.self.key.weight": (32, 24),
        "Qformer.bert.encoder.layer.3.output_query.LayerNorm.bias": (32,),
        "llama_model.model.Qformer.bert.encoder.layer.3.output_query.LayerNorm.bias": (32,),
        "llama_proj.weight": (48, 32),
        "llama_model.model.query_tokens": (1, TINY_QUERIES, 32),
        "llama_model.model.qformer_proj.weight": (32, 48),
        "llama_model.model.llm_proj.weight": (48, 32),
        "llama_model.model.layers.1.self_attn.q_proj.weight": (48, 48),
        "llama_model.lm_head.weight": (320, 48),
    }.items():
        assert published[name].shape == shape
    assert not any("vpgc" in name or "connector" in name for name in published)
    assert_same(convert_released(published), model.state_dict())


def test_a_key_bias_has_no_place_in_the_published_layout(model) -> None:
    weights = dict(model.state_dict())
    name = "vision_encoder.model.encoder.layers.0.self_attn.qkv.bias"
    weights[name] = torch.ones_like(weights[name])
    with pytest.raises(PolyptychError, match=r"blocks\.0\.attn\.qkv\.bias: key bias up to 1"):
        to_released(weights)


def test_the_second_name_of_the_qformer_has_to_hold_the_same(model) -> None:
    published = to_released(model.state_dict())
    name = f"{ALIAS}bert.encoder.layer.1.attention.self.key.weight"
    published[name] = published[name].clone()
    published[name][0, 0] += 1
    with pytest.raises(PolyptychError, match=r"f\.pth: llama_model.*key\.weight is not equal to Q"):
        convert_released(published, source="f.pth")
    published = {n: t for n, t in published.items() if not n.startswith("Qformer.")}
    assert convert_released(published).keys() == model.state_dict().keys(), "either name will do"


def test_half_precision_of_the_same_values_is_the_same(model) -> None:
    published = to_released(model.state_dict())
    published |= {n: t.half() for n, t in published.items() if n.startswith(ALIAS)}
    assert_same(convert_released(published), model.state_dict())


# --- assembly ------------------------------------------------------------------------------------


def test_parts_become_a_folder_that_loads(model, parts, tmp_path: Path) -> None:
    paths = write(parts, tmp_path / "parts")
    convert_checkpoint(
        tmp_path / "out", parts=paths, config=model.config, processor=tiny_processor()
    )
    loaded, processor = load_model(tmp_path / "out")
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert processor.tokens_per_image == TINY_QUERIES
    assert loaded.config.injection_layer == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_flat_cheetah_file_without_aliases_will_do(model, parts, tmp_path: Path) -> None:
    paths = write(parts, tmp_path / "parts")
    own = {n: t for n, t in parts["cheetah"].items() if not n.startswith(ALIAS)}
    save_file(own, tmp_path / "cheetah.safetensors")
    paths[-1] = tmp_path / "cheetah.safetensors"
    convert_checkpoint(tmp_path / "out", parts=paths, config=model.config)
    loaded = PolyptychCheetahForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("missing", ["llama_proj.weight", "llama_model.model.qformer_proj.bias"])
def test_a_cheetah_file_without_its_tensors_is_refused(model, parts, tmp_path, missing) -> None:
    del parts["cheetah"][missing]
    with pytest.raises(PolyptychError, match=f"no Cheetah checkpoint; 1 of 7 .*: {missing}"):
        convert_checkpoint(
            tmp_path / "out", parts=write(parts, tmp_path / "parts"), config=model.config
        )
    assert not (tmp_path / "out").exists()


def test_another_file_is_no_cheetah_file(parts) -> None:
    with pytest.raises(PolyptychError, match=r"b\.pth: no Cheetah checkpoint; 7 of 7"):
        require_cheetah(convert_released(parts["blip2"]), source="b.pth")


def test_a_cheetah_file_over_another_qformer_is_refused(model, parts, tmp_path: Path) -> None:
    name = "Qformer.bert.encoder.layer.1.attention.self.key.bias"
    parts["blip2"][name] = parts["blip2"][name] + 1
    with pytest.raises(PolyptychError, match=r"cheetah\.pth: connector.*not equal to that of an e"):
        convert_checkpoint(
            tmp_path / "out", parts=write(parts, tmp_path / "parts"), config=model.config
        )


def test_training_starts_from_blip2s_queries_and_zeros(model, parts, tmp_path: Path) -> None:
    paths = write(parts, tmp_path / "parts")
    projection = {n: t for n, t in parts["cheetah"].items() if n.startswith("llama_proj")}
    torch.save(projection, tmp_path / "projection.pth")
    convert_checkpoint(
        tmp_path / "out",
        parts=[*paths[:3], tmp_path / "projection.pth"],
        config=model.config,
        fresh_vpgc=True,
    )
    loaded = PolyptychCheetahForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.vpgc.query_tokens, model.connector.qformer.query_tokens)
    assert not torch.equal(loaded.vpgc.query_tokens, model.vpgc.query_tokens)
    for name in VPGC_TENSORS[1:]:
        assert not loaded.get_parameter(name).any()
    with pytest.raises(PolyptychError, match=r"llama: no llama_proj in 3 parts"):
        convert_checkpoint(
            tmp_path / "other", parts=paths[:3], config=model.config, fresh_vpgc=True
        )


def test_what_belongs_to_no_part_is_refused(model, parts, tmp_path: Path) -> None:
    parts["cheetah"]["llama_model.model.other_proj.weight"] = torch.zeros(1)
    with pytest.raises(PolyptychError, match=r"1 unexpected tensors: language_model.*other_proj"):
        convert_checkpoint(
            tmp_path / "out", parts=write(parts, tmp_path / "parts"), config=model.config
        )
    with pytest.raises(PolyptychError, match="1 unexpected tensors: surprise"):
        convert_released({"surprise": torch.zeros(1)})
    with pytest.raises(PolyptychError, match="exists already"):
        convert_checkpoint(tmp_path, parts=[], config=model.config)


def test_what_is_written_back_is_a_cheetah_file(model, parts, tmp_path: Path) -> None:
    write_released(model.state_dict(), tmp_path / "own.pth")
    own = {n: t for n, t in parts["cheetah"].items() if not n.startswith(ALIAS)}
    assert len(own) == len(VPGC_TENSORS + PROJECTION_TENSORS)
    assert_same(read_weights(tmp_path / "own.pth"), own)
    require_cheetah(convert_released(read_weights(tmp_path / "own.pth")), source="own.pth")


# --- the vision encoder --------------------------------------------------------------------------


def test_positions_of_another_grid_are_resized(model) -> None:
    """Bicubically over the patches, the class token's as it is; a plane stays a plane inside."""
    name = "vision_encoder.model.embeddings.position_embedding"
    rows = torch.linspace(0, 1, 8)[:, None].expand(8, 8).reshape(1, 64, 1)
    theirs = torch.cat([torch.full((1, 1, 1), 7.0), rows], dim=1)
    fitted = fit_vision({name: theirs}, model.config.vision_config)[name]  # 28 / 7 = 4 patches
    assert fitted.shape == (1, 17, 1) and fitted[0, 0] == 7
    grid = fitted[0, 1:, 0].view(4, 4)
    torch.testing.assert_close(grid, grid[:, :1].expand(4, 4))
    torch.testing.assert_close(grid[1:3, 0], torch.tensor([2.5, 4.5]) / 7)
    same = model.state_dict()[name]
    assert fit_vision({name: same}, model.config.vision_config)[name] is same


def test_layers_behind_the_features_are_left_out(model, parts) -> None:
    part = fit_vision(convert_released(parts["eva"]), model.config.vision_config)
    assert not any("layers.2." in name for name in part)
    wanted = {n: t for n, t in model.state_dict().items() if n.startswith("vision_encoder.")}
    del wanted["vision_encoder.model.post_layernorm.weight"]
    del wanted["vision_encoder.model.post_layernorm.bias"]
    assert_same(overlay([part], wanted), wanted)
