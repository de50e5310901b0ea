"""VPG-C over a linear connector: equation 1 of the paper, on the LLaVA base."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.language.prefill import Prefill
from polyptych.methods.cheetah.linear import (
    LinearVPGC,
    PolyptychLinearCheetahConfig,
    PolyptychLinearCheetahForConditionalGeneration,
)
from polyptych.testing import tiny_examples, tiny_llava, tiny_llava_processor


def linear_model() -> PolyptychLinearCheetahForConditionalGeneration:
    fields = tiny_llava().config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    config = PolyptychLinearCheetahConfig(**fields)
    torch.manual_seed(0)
    return PolyptychLinearCheetahForConditionalGeneration(config).eval()


def acting(
    model: PolyptychLinearCheetahForConditionalGeneration,
) -> PolyptychLinearCheetahForConditionalGeneration:
    nn.init.normal_(model.vpgc.residual_projection.weight, std=0.5)
    return model


def test_equation_one_by_hand() -> None:
    vpgc = LinearVPGC(language_width=2, vision_width=3, width=2)
    with torch.no_grad():
        vpgc.guidance_projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        vpgc.guidance_projection.bias.zero_()
        vpgc.feature_projection.weight.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
        vpgc.feature_projection.bias.zero_()
        vpgc.residual_projection.weight.copy_(torch.eye(2))
    features = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    hidden = torch.tensor([[[9.0, 9.0], [9.0, 9.0], [10.0, 100.0]]])
    prefill = Prefill(
        visual_mask=torch.tensor([[True, True, False]]),
        image_counts=torch.tensor([1]),
        tokens_per_image=torch.tensor([2]),
        image_features=features,
        last_prompt=torch.tensor([2]),
    )
    # W_1 g = (10, 200); W_2 x = (1 + 3, 2) and (4 + 6, 5)
    expected = torch.tensor([[40.0, 400.0], [100.0, 1000.0]])
    torch.testing.assert_close(vpgc.residual_details(hidden, prefill), expected)


def test_it_starts_as_the_base_and_then_acts() -> None:
    model, batch = linear_model(), Collator(tiny_llava_processor(), training=True)(tiny_examples(4))
    with torch.no_grad():
        with model.vpgc_disabled():
            base = model(**batch).logits
        assert torch.equal(model(**batch).logits, base)
        assert (acting(model)(**batch).logits - base).abs().max() > 1e-3


def test_decoding_with_and_without_cache_agrees() -> None:
    model = acting(linear_model())
    prompts = Collator(tiny_llava_processor(), training=False)(tiny_examples(4))
    for beams in (1, 3):
        answers = [
            model.generate(**prompts, max_new_tokens=6, num_beams=beams, use_cache=cache)
            for cache in (True, False)
        ]
        assert torch.equal(*answers)


def test_training_goes_on_from_the_lower_states() -> None:
    model = acting(linear_model()).requires_grad_(False)
    model.vpgc.requires_grad_(True)
    batch = dict(Collator(tiny_llava_processor(), training=True)(tiny_examples(3)))
    whole = model(**batch).loss
    whole.backward()
    gradients = [p.grad.clone() for p in model.vpgc.parameters()]
    model.zero_grad()

    states = model.lower_states(**batch).clone()
    features = model.vision_encoder(batch.pop("pixel_values"))
    upper = model(**batch, image_features=features, lower_states=states).loss
    upper.backward()
    torch.testing.assert_close(upper, whole)
    for gradient, parameter in zip(gradients, model.vpgc.parameters(), strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parameter.grad, gradient)


def test_patches_and_visual_tokens_must_be_as_many() -> None:
    vpgc = LinearVPGC(2, 3)
    prefill = Prefill(
        torch.tensor([[True, False]]),
        torch.tensor([1]),
        torch.tensor([1]),
        torch.zeros(1, 2, 3),
        torch.tensor([1]),
    )
    with pytest.raises(PolyptychError, match="1 visual tokens for 2 patches"):
        vpgc.residual_details(torch.zeros(1, 2, 2), prefill)
