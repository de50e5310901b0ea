"""Vision encoders behind one protocol: each family's patches, width and choice of features."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from polyptych.vision.encoder import (
    CPU_PIXELS,
    EVA_FINAL_NORM_EPS,
    VisionEncoder,
    feature_width,
    grid_positions,
    hidden_state_choice,
    patch_count,
)

VIT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
PATCHES = {  # 28 / 7 = 4 patches a side; a ResNet of two stages halves 28 three times
    "instructblip_vision_model": 17,
    "clip_vision_model": 16,
    "siglip_vision_model": 16,
    "resnet": 16,
}


def config_of(family: str) -> PreTrainedConfig:
    return AutoConfig.for_model(family, **(RESNET if family == "resnet" else VIT))


@pytest.fixture(params=PATCHES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def build(family: str) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(config_of(family)).eval()


@torch.no_grad()
def test_patches_and_width(family: str) -> None:
    encoder = build(family)
    features = encoder(torch.randn(3, 3, 28, 28))
    width = 32 if family == "resnet" else 24
    assert features.shape == (3, PATCHES[family], width)
    assert encoder.hidden_size == feature_width(encoder.config) == width


@torch.no_grad()
def test_images_do_not_see_each_other(family: str) -> None:
    encoder, pixels = build(family), torch.randn(3, 3, 28, 28)
    alone = torch.cat([encoder(image[None]) for image in pixels])
    torch.testing.assert_close(encoder(pixels), alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_clip_reads_the_layer_before_the_last_without_class_token() -> None:
    encoder, pixels = build("clip_vision_model"), torch.randn(1, 3, 28, 28)
    states = encoder.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert torch.equal(encoder(pixels), states[-2][:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("family", ["instructblip_vision_model", "siglip_vision_model"])
def test_the_others_read_the_last_layer_after_its_norm(family: str) -> None:
    encoder, pixels = build(family), torch.randn(1, 3, 28, 28)
    assert torch.equal(encoder(pixels), encoder.model(pixel_values=pixels).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("layer", (-4, -2, -1, 0, 3))
def test_any_hidden_state_can_be_read_without_the_final_norm(family: str, layer: int) -> None:
    config, pixels = config_of(family), torch.randn(2, 3, 28, 28)
    if family == "resnet":
        layer = max(-3, min(layer, 2))  # it has two stages
    choice = hidden_state_choice(config, layer, keep_class_token=True)
    encoder = VisionEncoder(config, choice).eval()
    states = encoder.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    features, expected = encoder(pixels), states[layer]
    if family == "resnet":
        height, width = expected.shape[-2:]
        positions = grid_positions(height, width, expected.shape[1])
        expected = expected.flatten(2).transpose(1, 2) + positions
    else:
        assert patch_count(config, choice) == features.shape[1]
    assert torch.equal(features, expected)


def test_epsilon_of_the_final_norm_is_that_of_the_original() -> None:
    encoder = build("instructblip_vision_model")
    assert encoder.model.post_layernorm.eps == EVA_FINAL_NORM_EPS == 1e-5
    assert encoder.config.layer_norm_eps == 1e-6


def test_another_family_is_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"'llama'; known: .*clip_vision_model"):
        VisionEncoder(LlamaConfig())


@torch.no_grad()
def test_a_large_batch_on_the_cpu_is_encoded_in_parts() -> None:
    encoder = build("siglip_vision_model")
    encoder.cpu_pixels = 2 * 28 * 28
    sizes: list[int] = []
    encoder.model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    assert len(encoder(torch.randn(5, 3, 28, 28))) == 5
    assert sizes == [2, 2, 1]
    encoder.train()(torch.randn(5, 3, 28, 28))
    assert sizes[3:] == [5]
    assert CPU_PIXELS > 28 * 28


def test_grid_positions_by_hand() -> None:
    table = grid_positions(2, 3, 8)  # frequencies 1 and 1/100
    one = torch.tensor([1.0, 0.01])
    zero = torch.tensor([0.0, 0.0, 1.0, 1.0])
    row_1 = torch.cat([one.sin(), one.cos()])
    column_2 = torch.cat([(2 * one).sin(), (2 * one).cos()])
    assert table.shape == (6, 8)
    torch.testing.assert_close(table[0], torch.cat([zero, zero]))
    torch.testing.assert_close(table[2], torch.cat([zero, column_2]))
    torch.testing.assert_close(table[3], torch.cat([row_1, zero]))
    torch.testing.assert_close(table[5], torch.cat([row_1, column_2]))


def test_every_cell_of_a_grid_has_its_own_position() -> None:
    table = grid_positions(7, 7, 32)
    distances = torch.cdist(table, table) + torch.eye(49)
    assert distances.min() > 0.1


@torch.no_grad()
def test_a_map_tells_where_its_cells_are() -> None:
    encoder = build("resnet")
    maps = encoder.model(pixel_values=(pixels := torch.randn(1, 3, 28, 28))).last_hidden_state
    expected = maps.flatten(2).transpose(1, 2) + grid_positions(4, 4, 32)
    torch.testing.assert_close(encoder(pixels), expected)
