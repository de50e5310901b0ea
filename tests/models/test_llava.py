"""The LLaVA base: what transformers computes; over decoders, encoders, batches, beams, caches."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from polyptych.connectors.projector import MLPProjector
from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.models.llava_export import write_llava_hf
from polyptych.testing import tiny_examples, tiny_llava, tiny_llava_processor

DECODERS = ("llama", "qwen2", "gpt2", "opt")
VISION = ("clip_vision_model", "siglip_vision_model", "instructblip_vision_model", "resnet")
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
VICUNA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def batches(examples, training, **settings):
    collate = Collator(tiny_llava_processor(**settings), training=training)
    return collate(examples), [collate([example]) for example in examples]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_mixed_batch_equals_one_by_one(decoder):
    model = tiny_llava(decoder)
    together, alone = batches(tiny_examples(4), training=True)
    logits = model(**together).logits
    for row, batch in enumerate(alone):
        single = model(**batch).logits[0]
        torch.testing.assert_close(logits[row, : len(single)], single, atol=2e-6, rtol=0)


@pytest.mark.parametrize("vision", VISION)
def test_every_vision_encoder_reaches_the_answer(vision):
    model = tiny_llava(vision=vision)
    pixels = torch.randn(1, 3, 28, 28)
    tokens = model.encode_images(pixels, image_counts=torch.tensor([1])).tokens_per_image
    assert model.config.tokens_per_image in (None, int(tokens))
    batch, _ = batches(tiny_examples(2), training=True, tokens_per_image=int(tokens))
    before = model(**batch).logits
    batch["pixel_values"] = batch["pixel_values"].flip(-1)
    assert (model(**batch).logits - before).abs().max() > 1e-6


@pytest.mark.parametrize("vision", ("clip_vision_model", "siglip_vision_model"))
@pytest.mark.parametrize("layer", (-1, -2, -3))
@pytest.mark.parametrize("strategy", ("default", "full"))
def test_equal_to_transformers(vision, layer, strategy, tmp_path):
    model = tiny_llava(
        vision=vision, vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )
    processor = tiny_llava_processor(tokens_per_image=model.config.tokens_per_image)
    write_llava_hf(model, processor, tmp_path / "hf")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = Collator(processor, training=True)(tiny_examples(3))
    ours = model(**batch)
    batch = {
        name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")
    }
    expected = theirs.eval()(**batch)
    torch.testing.assert_close(ours.logits, expected.logits, atol=2e-6, rtol=0)
    torch.testing.assert_close(ours.loss, expected.loss, atol=2e-6, rtol=0)


def test_generates_what_transformers_generates(tmp_path):
    model, processor = tiny_llava(), tiny_llava_processor()
    write_llava_hf(model, processor, tmp_path / "hf")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    batch = Collator(processor, training=False)(tiny_examples(3))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    suppress = {"suppress_tokens": [model.config.image_token_id]}
    for beams in (1, 3):
        ours = model.generate(**batch, **GREEDY, num_beams=beams)
        assert torch.equal(ours, theirs.generate(**inputs, **GREEDY, **suppress, num_beams=beams))


@pytest.mark.parametrize("decoder", DECODERS)
def test_left_padded_generation_equals_one_by_one(decoder):
    model = tiny_llava(decoder)
    together, alone = batches(tiny_examples(4), training=False)
    ids = model.generate(**together, **GREEDY)[:, together["input_ids"].shape[1] :]
    for row, batch in enumerate(alone):
        single = model.generate(**batch, **GREEDY)[0, batch["input_ids"].shape[1] :]
        assert single.tolist() == ids[row, : len(single)].tolist()


def test_beams_read_images_and_prompt_once_and_equal_beams_without_cache():
    model = tiny_llava()
    batch, _ = batches(tiny_examples(3), training=False)
    images = []
    handle = model.vision_encoder.register_forward_pre_hook(
        lambda _, args: images.append(len(args[0]))
    )
    settings = {**GREEDY, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    short = model.generate(**batch, **settings)
    assert images == [int(batch["image_counts"].sum())]
    handle.remove()
    full = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(short.sequences, full.sequences)
    torch.testing.assert_close(short.sequences_scores, full.sequences_scores, atol=1e-5, rtol=0)


def test_placeholder_outside_the_vocabulary():
    """As in the original checkpoints, whose 32,000 words have no ``<image>``."""
    model = tiny_llava()
    batch, _ = batches(tiny_examples(3), training=False)
    expected = model.generate(**batch, **GREEDY)
    outside = model.config.text_config.vocab_size
    places = batch["input_ids"] == model.config.image_token_id
    batch["input_ids"] = batch["input_ids"].masked_fill(places, outside)
    model.config.image_token_id = outside
    width = places.shape[1]
    assert torch.equal(model.generate(**batch, **GREEDY)[:, width:], expected[:, width:])


def test_cached_features_equal_pixels():
    model = tiny_llava()
    batch, _ = batches(tiny_examples(3), training=True)
    loss = model(**batch).loss
    features = model.vision_encoder(batch.pop("pixel_values"))
    torch.testing.assert_close(model(**batch, image_features=features).loss, loss)


def test_wrong_number_of_placeholders_names_both_numbers():
    model = tiny_llava()
    batch, _ = batches(tiny_examples(2), training=True, tokens_per_image=15)
    with pytest.raises(
        PolyptychError, match=r"row 0 .* 30 image placeholders for 32 visual tokens"
    ):
        model(**batch)


def test_text_only_batch_gives_the_projector_a_zero_gradient():
    model = tiny_llava().train()
    batch, _ = batches(tiny_examples(1, image_counts=(0,)), training=True)
    model(**batch).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.connector.parameters())


@pytest.mark.parametrize("projector_type", ("linear", "mlp2x_gelu"))
def test_save_and_load_through_the_auto_class(projector_type, tmp_path):
    model = tiny_llava(projector_type=projector_type)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is PolyptychLlavaForConditionalGeneration
    batch, _ = batches(tiny_examples(3), training=True)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_intermediates_are_named_only_when_asked_for():
    model = tiny_llava()
    batch, _ = batches(tiny_examples(2), training=True)
    assert model(**batch).intermediates is None
    record = model(**batch, return_intermediates=True).intermediates
    assert record["visual_tokens"].shape == (16 * 5, 48)
    assert record["image_features"].shape == (5, 16, 24)


def test_projectors_by_hand():
    features = torch.tensor([[[1.0, -2.0]], [[3.0, 0.5]]])
    linear = MLPProjector(2, 2, "linear")
    deep = MLPProjector(2, 2)
    with torch.no_grad():
        for layer in (linear.layers[0], deep.layers[0], deep.layers[2]):
            layer.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
            layer.bias.copy_(torch.tensor([0.0, 1.0]))
    swapped = linear(features)
    assert swapped.visual_tokens.tolist() == [[-2.0, 2.0], [0.5, 4.0]]
    assert swapped.tokens_per_image.tolist() == [1, 1]
    # erf GELU: x Phi(x); then swapped again, with 1 added to the second
    gelu = [[x * 0.5 * (1 + torch.erf(torch.tensor(x / 2**0.5)).item()) for x in row]
            for row in [[-2.0, 2.0], [0.5, 4.0]]]  # fmt: skip
    expected = torch.tensor([[row[1], row[0] + 1] for row in gelu])
    torch.testing.assert_close(deep(features).visual_tokens, expected)


def test_layers_that_the_encoder_does_not_have_are_refused():
    with pytest.raises(ValueError, match="layer -4 of an encoder of 2 layers"):
        tiny_llava(vision_feature_layer=-4)


@pytest.mark.parametrize(
    ("vocabulary", "parameter_count"), [(32000, 7_062_902_784), (32064, 7_063_427_072)]
)
def test_published_size(vocabulary, parameter_count):
    """LLaVA-1.5-7B in the original layout and in llava-hf's, which pads the vocabulary."""
    config = PolyptychLlavaConfig(
        vision_config=CLIP_L_336, text_config={"vocab_size": vocabulary, **VICUNA_7B}
    )
    with torch.device("meta"):
        model = PolyptychLlavaForConditionalGeneration(config)
    assert config.tokens_per_image == 576
    assert parameters(model.vision_encoder) == 303_507_456
    assert parameters(model.connector) == 20_979_712
    assert parameters(model) == parameter_count
