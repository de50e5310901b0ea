"""Small decoders: transformers' results, and transformers itself where they would differ."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

from polyptych.data.collation import Collator
from polyptych.models import answering, small_decoders
from polyptych.models.onednn import is_available, use_onednn
from polyptych.models.small_decoders import (
    BranchingCache,
    acts_on_prompts_only,
    is_prompt,
    is_small_decoder,
    read_prompt,
)
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

SETTINGS = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 2},
    "samples": {"num_beams": 1, "num_return_sequences": 3, "do_sample": True},
}


def answers(model, settings):
    torch.manual_seed(0)
    batch = Collator(tiny_processor(), training=False)(tiny_examples(3))
    assert len(batch["attention_mask"].sum(dim=1).unique()) == 3  # padded on the left
    told = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**batch, max_new_tokens=12, min_new_tokens=12, **{**told, **settings})


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])  # qwen2: biases, shared keys
def test_equals_transformers(decoder, onednn, settings, monkeypatch):
    if onednn and not is_available():
        pytest.skip("this build of PyTorch has no oneDNN product")
    monkeypatch.setattr(small_decoders, "STEPS", 5)  # moves to a larger place on the way
    model = tiny_model(decoder=decoder)
    if onednn:
        use_onednn(model)
    ours = answers(model, settings)
    assert isinstance(ours.past_key_values, BranchingCache)
    assert ours.past_key_values.get_seq_length() == ours.sequences.shape[1] - 1
    monkeypatch.setattr(answering, "is_small_decoder", lambda *_: False)
    theirs = answers(model, settings)
    assert isinstance(theirs.past_key_values, DynamicCache)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert len(ours.sequences[:, -12:].unique()) > 2
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
@torch.no_grad()
def test_prompts_are_read_as_by_transformers(decoder, onednn):
    if onednn and not is_available():
        pytest.skip("this build of PyTorch has no oneDNN product")
    model = tiny_model(decoder=decoder)
    if onednn:
        use_onednn(model)
    lm, cache = model.language_model, DynamicCache()
    prompt = torch.randn(1, 9, lm.config.hidden_size)
    wanted = {"use_cache": True, "logits_to_keep": 1}
    assert is_prompt(lm, prompt, past_key_values=cache, **wanted)
    ours = read_prompt(lm, prompt, cache)
    theirs = lm(inputs_embeds=prompt, **wanted)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    assert ours.past_key_values is cache and cache.get_seq_length() == 9
    for one, other in zip(cache.layers, theirs.past_key_values.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_no_plain_prompt_is_left_to_transformers():
    lm = tiny_model(decoder="llama").language_model
    prompt = torch.randn(1, 5, lm.config.hidden_size)
    wanted = {"use_cache": True, "logits_to_keep": 1}
    ones, places = torch.ones(1, 5, dtype=torch.long), torch.arange(5)[None]
    assert is_prompt(lm, prompt, attention_mask=ones, position_ids=places, **wanted)
    padded = ones.clone()
    padded[0, 0] = 0
    begun = read_prompt(lm, prompt).past_key_values
    for changed in (
        {"attention_mask": padded},
        {"position_ids": places + 1},
        {"past_key_values": begun},
        {"use_cache": False},
        {"logits_to_keep": 0},
        {"output_hidden_states": True},
    ):
        assert not is_prompt(lm, prompt, **{**wanted, **changed})
    assert not is_prompt(lm, prompt.expand(2, -1, -1), **wanted)
    lm.model.layers[1].register_forward_pre_hook(acts_on_prompts_only(lambda *_: None))
    assert not is_prompt(lm, prompt, **wanted)


def test_answers_are_ordinary_tensors():
    ids = answers(
        tiny_model(decoder="llama"),
        {"num_beams": 3, "return_dict_in_generate": False, "output_logits": False},
    )
    assert not ids.is_inference()
    ids += 1


@pytest.mark.parametrize("onednn", [False, True])
def test_weights_are_kept_until_they_change(onednn, monkeypatch):
    if onednn and not is_available():
        pytest.skip("this build of PyTorch has no oneDNN product")
    model, made = tiny_model(decoder="llama"), []
    if onednn:
        use_onednn(model)
    make = small_decoders._made_product
    monkeypatch.setattr(
        small_decoders, "_made_product", lambda *args: made.append(args) or make(*args)
    )
    before = answers(model, {"num_beams": 4})
    products = len(made)
    assert products > 0
    assert torch.equal(answers(model, {"num_beams": 4}).logits[3], before.logits[3])
    assert len(made) == products
    down = model.language_model.model.layers[0].mlp.down_proj.weight
    down.data += 0.5  # which PyTorch does not count
    after = answers(model, {"num_beams": 4})
    assert len(made) == products + 1
    monkeypatch.setattr(answering, "is_small_decoder", lambda *_: False)
    expected = answers(model, {"num_beams": 4})
    assert not torch.allclose(after.logits[1], before.logits[1], atol=1e-3)
    torch.testing.assert_close(after.logits[1], expected.logits[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("onednn", [False, True])
def test_a_forward_under_autocast(onednn):
    """As accelerate wraps a model that trains in bfloat16 and is validated by its answers."""
    if onednn and not is_available():
        pytest.skip("this build of PyTorch has no oneDNN product")
    model = tiny_model(decoder="llama")
    if onednn:
        use_onednn(model)
    expected = answers(model, {"num_beams": 1})
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    actual = answers(model, {"num_beams": 1})
    assert isinstance(actual.past_key_values, BranchingCache)
    assert actual.logits[1].dtype == torch.float32  # steps are taken as they are without it
    torch.testing.assert_close(actual.logits[1], expected.logits[1], atol=0.1, rtol=0.1)


@torch.no_grad()
def test_other_decoders_are_left_to_transformers(monkeypatch):
    cache, fits = DynamicCache(), tiny_model(decoder="llama").language_model
    assert is_small_decoder(fits, cache)
    assert not is_small_decoder(tiny_model(decoder="gpt2").language_model, cache)
    assert not is_small_decoder(tiny_model(decoder="llama").language_model.bfloat16(), cache)
    with torch.enable_grad():
        assert not is_small_decoder(fits, cache)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_small_decoder(fits, cache)
    windows = tiny_model(decoder="qwen2").language_model
    assert is_small_decoder(windows, cache)
    windows.config.layer_types[-1] = "sliding_attention"
    assert not is_small_decoder(windows, cache)
    monkeypatch.setattr(small_decoders, "MAX_PACKED", 10)
    assert not is_small_decoder(fits, cache)


@torch.no_grad()
def test_changed_and_watched_layers_are_left_to_transformers():
    cache, watched = DynamicCache(), tiny_model(decoder="llama").language_model
    handle = watched.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not is_small_decoder(watched, cache)
    handle.remove()
    watched.model.layers[1].register_forward_pre_hook(acts_on_prompts_only(lambda *_: None))
    assert is_small_decoder(watched, cache)
    lora = get_peft_model(
        tiny_model(decoder="llama"), LoraConfig(target_modules=r"language_model.*\.q_proj")
    )
    assert not is_small_decoder(lora.base_model.model.language_model, cache)


def test_new_weights_are_seen_at_once():
    """Nothing of the weights outlives an answer, however they are changed."""
    model = tiny_model(decoder="llama")
    before = answers(model, {"num_beams": 2})
    for layer in model.language_model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(-3.0)
    changed = answers(model, {"num_beams": 2})
    assert not torch.equal(before.logits[5], changed.logits[5])
