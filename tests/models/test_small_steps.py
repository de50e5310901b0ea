"""Decoding steps of small decoders: transformers' results, and transformers where they differ."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

from polyptych.data.collation import Collator
from polyptych.models import answering, small_steps
from polyptych.models.onednn import is_available, use_onednn
from polyptych.models.small_steps import (
    BranchingCache,
    acts_on_prompts_only,
    has_small_steps,
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
    return model.generate(
        **batch,
        max_new_tokens=12,
        min_new_tokens=12,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **settings},
    )


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])  # qwen2: biases, shared keys
def test_equals_transformers(decoder, onednn, settings, monkeypatch):
    if onednn and not is_available():
        pytest.skip("this build of PyTorch has no oneDNN product")
    monkeypatch.setattr(small_steps, "STEPS", 5)  # moves to a larger place on the way
    model = tiny_model(decoder=decoder)
    if onednn:
        use_onednn(model)
    ours = answers(model, settings)
    assert isinstance(ours.past_key_values, BranchingCache)
    assert ours.past_key_values.get_seq_length() == ours.sequences.shape[1] - 1
    monkeypatch.setattr(answering, "has_small_steps", lambda *_: False)
    theirs = answers(model, settings)
    assert isinstance(theirs.past_key_values, DynamicCache)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert len(ours.sequences[:, -12:].unique()) > 2
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("onednn", [False, True])
def test_weights_are_kept_until_they_change(onednn, monkeypatch):
    if onednn and not is_available():
        pytest.skip("this build of PyTorch has no oneDNN product")
    model, made = tiny_model(decoder="llama"), []
    if onednn:
        use_onednn(model)
    make = small_steps._made_product
    monkeypatch.setattr(
        small_steps, "_made_product", lambda *args: made.append(args) or make(*args)
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
    monkeypatch.setattr(answering, "has_small_steps", lambda *_: False)
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
    assert has_small_steps(fits, cache)
    assert not has_small_steps(tiny_model(decoder="gpt2").language_model, cache)
    assert not has_small_steps(tiny_model(decoder="llama").language_model.bfloat16(), cache)
    with torch.enable_grad():
        assert not has_small_steps(fits, cache)
    with torch.autocast("cpu", torch.bfloat16):
        assert not has_small_steps(fits, cache)
    windows = tiny_model(decoder="qwen2").language_model
    assert has_small_steps(windows, cache)
    windows.config.layer_types[-1] = "sliding_attention"
    assert not has_small_steps(windows, cache)
    monkeypatch.setattr(small_steps, "MAX_PACKED", 10)
    assert not has_small_steps(fits, cache)


@torch.no_grad()
def test_changed_and_watched_layers_are_left_to_transformers():
    cache, watched = DynamicCache(), tiny_model(decoder="llama").language_model
    handle = watched.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not has_small_steps(watched, cache)
    handle.remove()
    watched.model.layers[1].register_forward_pre_hook(acts_on_prompts_only(lambda *_: None))
    assert has_small_steps(watched, cache)
    lora = get_peft_model(
        tiny_model(decoder="llama"), LoraConfig(target_modules=r"language_model.*\.q_proj")
    )
    assert not has_small_steps(lora.base_model.model.language_model, cache)


def test_new_weights_are_seen_at_once():
    """Nothing of the weights outlives an answer, however they are changed."""
    model = tiny_model(decoder="llama")
    before = answers(model, {"num_beams": 2})
    for layer in model.language_model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(-3.0)
    changed = answers(model, {"num_beams": 2})
    assert not torch.equal(before.logits[5], changed.logits[5])
