"""What oneDNN computes in place of PyTorch: attention of encoders, GELU behind a product."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import CLIPVisionConfig, SiglipVisionConfig
from transformers.models.instructblip.configuration_instructblip import InstructBlipVisionConfig

from polyptych.models import onednn, onednn_attention
from polyptych.models.onednn import (
    OneDnnLinear,
    OneDnnLinearGelu,
    is_available,
    packed_product,
    use_onednn,
)
from polyptych.vision.encoder import VisionEncoder

pytestmark = pytest.mark.skipif(not is_available(), reason="PyTorch without oneDNN")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 36,
    "patch_size": 4,
}
CONFIGS = {
    "eva": InstructBlipVisionConfig(**SIZES, hidden_act="gelu"),
    "clip": CLIPVisionConfig(**SIZES, hidden_act="quick_gelu"),
    "siglip": SiglipVisionConfig(**SIZES, hidden_act="gelu_pytorch_tanh"),
}


def pair(name):
    torch.manual_seed(0)
    plain = VisionEncoder(CONFIGS[name]).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    other = copy.deepcopy(plain)
    assert use_onednn(other) > 0
    return plain, other


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_encoders_are_equal(name):
    plain, other = pair(name)
    onednn_attention._compiled.cache_clear()
    for images in (1, 3, 1):
        pixels = torch.randn(images, 3, 36, 36)
        torch.testing.assert_close(other(pixels), plain(pixels), atol=2e-5, rtol=2e-5)
    compiled = onednn_attention._compiled.cache_info()
    assert compiled.misses == 2 and compiled.hits > 0  # one per shape
    assert plain.config.to_dict() == other.config.to_dict()
    assert plain.state_dict().keys() == other.state_dict().keys()


def test_training_and_short_sequences_take_the_usual_way():
    plain, other = pair("eva")
    onednn_attention._compiled.cache_clear()
    pixels = torch.randn(2, 3, 36, 36)
    for encoder in (plain, other):
        encoder(pixels).square().mean().backward()
    for one, same in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, same.grad, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        short = torch.randn(1, 2, onednn_attention.MIN_TOKENS - 1, 16)
        onednn_attention.attention_forward(other.model, short, short, short)
    assert onednn_attention._compiled.cache_info().misses == 0


def test_only_the_exact_gelu_is_fused():
    fused = [m for m in pair("eva")[1].modules() if type(m) is OneDnnLinearGelu]
    assert len(fused) == SIZES["num_hidden_layers"]
    for name in ("clip", "siglip"):
        assert not [m for m in pair(name)[1].modules() if type(m) is OneDnnLinearGelu]


@pytest.mark.parametrize("rows", [3, 40])  # few rows are not multiplied by oneDNN
def test_fused_gelu_has_its_gradient(rows):
    torch.manual_seed(0)
    linear, x = OneDnnLinearGelu(24, 17), torch.randn(rows, 24, requires_grad=True)
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(x, linear.weight, linear.bias))
    with torch.no_grad():
        torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=1e-5)
    actual = linear(x)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
    (actual_grad,) = torch.autograd.grad(actual.square().sum(), x)
    torch.testing.assert_close(actual_grad, expected_grad, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_packed_product():
    linear, x = OneDnnLinear(24, 17), torch.randn(5, 24)
    multiply = packed_product(linear.weight, linear.bias)
    torch.testing.assert_close(multiply(x), x @ linear.weight.T + linear.bias)


CHANGES = {
    "in place": lambda layer: layer.weight.mul_(2.0),
    "through data": lambda layer: layer.weight.data.mul_(2.0),
    "loaded": lambda layer: layer.load_state_dict({"weight": torch.ones_like(layer.weight)}),
    "another": lambda layer: setattr(layer, "weight", torch.nn.Parameter(2.0 * layer.weight)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_blocks_follow_the_weight(change):
    model = torch.nn.Sequential(torch.nn.Linear(24, 17, bias=False))
    use_onednn(model)
    layer, x = model[0], torch.randn(40, 24)
    before = layer(x)
    blocks = layer._packed[1]
    assert layer(x).equal(before) and layer._packed[1] is blocks
    change(layer)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    assert layer._packed[1] is not blocks and not layer(x).equal(before)


@torch.no_grad()
def test_blocks_stay_where_they_are():
    model = torch.nn.Sequential(torch.nn.Linear(24, 17))
    use_onednn(model)
    x = torch.randn(40, 24)
    expected = model(x)
    assert model[0]._packed is not None
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied[0]._packed is None
        assert copied(x).equal(expected)


def test_large_models_and_training_have_no_blocks(monkeypatch):
    x = torch.randn(40, 24)
    learning = torch.nn.Sequential(torch.nn.Linear(24, 17))
    use_onednn(learning)
    learning(x)
    monkeypatch.setattr(onednn, "MAX_PACKED", 10)
    large = torch.nn.Sequential(torch.nn.Linear(24, 17))
    use_onednn(large)
    with torch.no_grad():
        large(x)
    assert learning[0]._packed is None and large[0]._packed is None
