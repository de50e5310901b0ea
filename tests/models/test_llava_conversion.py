"""LLaVA folders of both layouts: opened by name, written back bit for bit, refused in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

import polyptych
from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_processor
from polyptych.models.llava_conversion import (
    IGNORED,
    PUBLISHED_TOWERS,
    RULES,
    config_from_original,
    pad_to_square,
    read_llava,
)
from polyptych.models.llava_export import write_llava_hf, write_original
from polyptych.models.weights import overlay, rename
from polyptych.testing import TINY_IMAGE_SIZE, tiny_examples, tiny_llava, tiny_llava_processor


def logits(model, processor):
    batch = Collator(processor, training=True)(tiny_examples(3))
    return model(**batch).logits


def outside_the_vocabulary():
    """A model as the originals are: ``<image>`` is the first id behind the words."""
    model, processor = tiny_llava(), tiny_llava_processor()
    model.config.image_token_id = processor.image_token_id = model.config.text_config.vocab_size
    return model, processor


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def edit(folder, **fields):
    """Change fields of a folder's config."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture
def hf(tmp_path):
    write_llava_hf(tiny_llava(), tiny_llava_processor(), tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def original(tmp_path):
    write_original(*outside_the_vocabulary(), tmp_path / "llava-v1.5-tiny")
    return tmp_path / "llava-v1.5-tiny"


def test_llava_hf_is_opened_by_name_and_written_back_bit_for_bit(hf, tmp_path):
    model, processor = polyptych.load_model(hf)
    assert_same(dict(model.state_dict()), dict(tiny_llava().state_dict()))
    assert torch.equal(
        logits(model, processor), logits(tiny_llava(), tiny_llava_processor(max_length=256))
    )
    assert (processor.tokens_per_image, processor.template) == (16, "vicuna_v1")
    write_llava_hf(model, processor, tmp_path / "again")
    assert_same(
        load_file(hf / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    )


@pytest.mark.parametrize("projector_type", ("linear", "mlp2x_gelu"))
def test_original_is_opened_by_name_and_written_back_bit_for_bit(projector_type, tmp_path):
    model = tiny_llava(projector_type=projector_type)
    processor = tiny_llava_processor()
    model.config.image_token_id = processor.image_token_id = model.config.text_config.vocab_size
    write_original(model, processor, tmp_path / "one")
    loaded, its_processor = polyptych.load_model(tmp_path / "one")
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert torch.equal(logits(loaded, its_processor), logits(model, processor))
    write_original(loaded, its_processor, tmp_path / "two")
    names = load_file(tmp_path / "one/model.safetensors")
    assert_same(names, load_file(tmp_path / "two/model.safetensors"))
    layer = "0.weight" if projector_type == "mlp2x_gelu" else "weight"
    for name in (
        f"model.mm_projector.{layer}",
        "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        "lm_head.weight",
    ):
        assert name in names


def test_what_transformers_itself_saves_is_opened(hf, tmp_path):
    theirs = LlavaForConditionalGeneration.from_pretrained(hf).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    for file in (*hf.glob("token*"), *hf.glob("*process*")):
        shutil.copy(file, tmp_path / "theirs")
    model, _ = polyptych.load_model(tmp_path / "theirs")
    assert_same(dict(model.state_dict()), dict(tiny_llava().state_dict()))


@pytest.mark.parametrize("prefix", ("", "model."))
def test_module_names_of_transformers_are_known(prefix):
    """``model.language_model.*`` and so on: what 4.52 and later call the modules."""
    ours = tiny_llava().state_dict()
    renamed = {
        name.replace("vision_encoder.model.", f"{prefix}vision_tower.vision_model.")
        .replace("connector.layers.0.", f"{prefix}multi_modal_projector.linear_1.")
        .replace("connector.layers.2.", f"{prefix}multi_modal_projector.linear_2.")
        .replace("language_model.lm_head.", "lm_head." if prefix else "language_model.lm_head.")
        .replace("language_model.model.", f"{prefix}language_model.{'' if prefix else 'model.'}"): t
        for name, t in ours.items()
    }
    assert_same(overlay([rename(renamed, RULES, IGNORED)], ours), dict(ours))


def test_a_vocabulary_without_placeholder_gets_rows_for_transformers_and_loses_them_again(tmp_path):
    model, processor = outside_the_vocabulary()
    # As Llama's tokenizer, which does not know the word.
    processor.image_token = "<picture>"
    words = model.config.text_config.vocab_size
    write_llava_hf(model, processor, tmp_path / "hf")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(info.values())
    assert theirs.config.image_token_id == words
    assert theirs.get_input_embeddings().weight.shape[0] == -(-(words + 1) // 64) * 64
    back, its_processor = polyptych.load_model(tmp_path / "hf")
    assert back.config.image_token_id == words
    torch.testing.assert_close(
        logits(back, its_processor)[..., :words], logits(model, processor), atol=1e-6, rtol=0
    )
    write_original(back, its_processor, tmp_path / "original")
    again, _ = polyptych.load_model(tmp_path / "original")
    assert_same(dict(again.state_dict()), dict(model.state_dict()))


def test_half_precision_stays(tmp_path):
    write_llava_hf(tiny_llava().half(), tiny_llava_processor(), tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert polyptych.load_model(tmp_path / "half")[0].dtype == torch.float32
    assert polyptych.load_model(tmp_path / "half", dtype=torch.float16)[0].dtype == torch.float16


# Vision towers at an address of their own


def test_a_tower_that_the_weights_leave_out_is_read_from_its_address(original):
    expected = dict(polyptych.load_model(original)[0].state_dict())
    file = original / "model.safetensors"
    weights = {n: t for n, t in load_file(file).items() if "vision_tower" not in n}
    save_file(weights, file)
    assert_same(dict(polyptych.load_model(original)[0].state_dict()), expected)

    elsewhere = original.parent / "clip"
    shutil.move(original / "vision_tower", elsewhere)
    with pytest.raises(PolyptychError, match="vision_tower: no folder here nor on the hub"):
        polyptych.load_model(original)
    assert_same(dict(read_llava(original, vision_tower=elsewhere)[0].state_dict()), expected)


def test_published_towers_need_no_folder():
    fields = {
        "model_type": "llava_llama",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "tune_mm_mlp_adapter": False,
    }
    for name, tokens in (("-336", 576), ("", 256)):
        tower = PUBLISHED_TOWERS[f"openai/clip-vit-large-patch14{name}"]
        config = config_from_original(fields, polyptych.models.llava.as_config(tower, "unused"))
        assert config.tokens_per_image == tokens
        assert config.image_token_id == 32000
        assert not hasattr(config.text_config, "tune_mm_mlp_adapter")


# Pictures


def test_square_padding_is_recorded_and_can_be_asked_for(hf, original, tmp_path):
    assert load_processor(original).image_processor.do_pad
    plain = tiny_llava_processor()
    size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
    plain.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": TINY_IMAGE_SIZE}, crop_size=size
    )
    write_llava_hf(tiny_llava(), plain, tmp_path / "crops")
    assert not getattr(load_processor(tmp_path / "crops").image_processor, "do_pad", False)
    _, padded = read_llava(tmp_path / "crops", image_aspect_ratio="pad")
    assert padded.image_processor.do_pad
    picture = Image.new("RGB", (60, 30), "red")
    by_hand = Image.new("RGB", (60, 60), (122, 116, 104))
    by_hand.paste(picture, (0, 15))
    assert torch.equal(padded.pixels([picture]), plain.pixels([by_hand]))
    assert not torch.equal(padded.pixels([picture]), plain.pixels([picture]))


@pytest.mark.shared_data
def test_square_padding_equals_the_published_preprocessing(shared_dir):
    folder = shared_dir / "golden" / "camml" / "data"
    golden = load_file(folder / "collated.safetensors")
    name = next(n for n in golden if n.endswith("images"))
    clip = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pixels = pad_to_square(clip)([Image.open(folder / "q.png").convert("RGB")])["pixel_values"]
    np.testing.assert_allclose(pixels[0], golden[name][0], atol=1e-6)


# What is refused


@pytest.mark.parametrize("layout", ("hf", "original"))
def test_missing_and_unexpected_tensors_are_errors(layout, request):
    folder = request.getfixturevalue(layout)
    file = folder / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if "projector" in name and name.endswith("bias"))
    save_file({n: t for n, t in weights.items() if n != lost}, file)
    with pytest.raises(PolyptychError, match=r"1 missing tensors: connector\.layers\.\d\.bias"):
        polyptych.load_model(folder)
    save_file({**weights, "image_newline": torch.zeros(2)}, file)
    with pytest.raises(PolyptychError, match="1 unexpected tensors: image_newline"):
        polyptych.load_model(folder)
    save_file({**weights, lost: torch.zeros(3)}, file)
    with pytest.raises(PolyptychError, match=r"1 tensors of another shape: .* \(3,\) for \(48,\)"):
        polyptych.load_model(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type 'spatial_unpad'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres', supported: square, pad"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True, supported: False"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity', supported: linear"),
        ({"model_type": "llava_mpt"}, "a model of type 'llava_mpt'; supported: .*llava"),
    ],
)
def test_original_features_of_other_versions_are_refused(fields, message, original):
    edit(original, **fields)
    with pytest.raises(PolyptychError, match=message):
        polyptych.load_model(original)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act relu, supported: gelu"),
        ({"vision_feature_layer": [-2, -3]}, "vision_feature_layer .* is not one layer"),
        ({"vision_feature_layer": -9}, "vision feature layer -9 of an encoder of 2 layers"),
        ({"model_type": "llava_next"}, "a model of type 'llava_next'; supported: .*llava"),
    ],
)
def test_llava_hf_features_of_other_models_are_refused(fields, message, hf):
    edit(hf, **fields)
    with pytest.raises(PolyptychError, match=message):
        polyptych.load_model(hf)


def test_what_a_layout_cannot_hold_is_not_written(tmp_path):
    processor = tiny_llava_processor()
    with pytest.raises(PolyptychError, match="no projector of type linear"):
        write_llava_hf(tiny_llava(projector_type="linear"), processor, tmp_path / "a")
    with pytest.raises(PolyptychError, match="no qwen2 decoder"):
        write_original(tiny_llava("qwen2"), processor, tmp_path / "b")
    model = tiny_llava(image_token_id=7)
    with pytest.raises(PolyptychError, match="7 in the model, 3 in the tokenizer"):
        write_llava_hf(model, processor, tmp_path / "c")
    assert not any(tmp_path.iterdir())
    write_llava_hf(tiny_llava(), processor, tmp_path / "d")
    with pytest.raises(PolyptychError, match="exists already"):
        write_llava_hf(tiny_llava(), processor, tmp_path / "d")


def test_pictures_of_another_size_than_the_model_takes_are_refused(hf):
    file = hf / "processor_config.json"
    fields = json.loads(file.read_text())
    fields["image_processor"]["crop_size"] = {"height": 14, "width": 14}
    file.write_text(json.dumps(fields))
    with pytest.raises(PolyptychError, match="takes 28 pixels a side, its processor makes 14"):
        polyptych.load_model(hf)


def test_a_processor_with_another_number_of_tokens_is_refused(tmp_path):
    tiny_llava().save_pretrained(tmp_path)
    tiny_llava_processor(tokens_per_image=9).save_pretrained(tmp_path)
    with pytest.raises(
        PolyptychError, match="takes 16 visual tokens per image, its processor makes 9"
    ):
        polyptych.load_model(tmp_path)
    tiny_llava_processor().save_pretrained(tmp_path)
    model, processor = polyptych.load_model(tmp_path)
    assert torch.equal(logits(model, processor), logits(tiny_llava(), tiny_llava_processor()))
