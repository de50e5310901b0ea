"""SIMA's full-size recipes build without memory and train what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import get_peft_model

from polyptych.errors import PolyptychError
from polyptych.models.llava import PolyptychLlavaForConditionalGeneration
from polyptych.recipes import load_preference_settings, preference_names, recipe_names, sima_7b
from polyptych.recipes import sima_13b as sima_13b_recipe
from polyptych.training.lora import lora_config
from polyptych.training.preference_settings import PreferenceSettings


@pytest.mark.parametrize(
    ("recipe", "parameters", "layers", "width", "inner"),
    [  # llava-hf's 7,063,427,072 has 64 rows of padding in both tables of words
        (sima_7b, 7_062_902_784, 32, 4096, 11008),
        (sima_13b_recipe, 13_350_839_296, 40, 5120, 13824),
    ],
)
def test_adapters_have_the_published_sizes(recipe, parameters, layers, width, inner) -> None:
    with torch.device("meta"):
        model = PolyptychLlavaForConditionalGeneration(recipe.model_config())
        assert sum(p.numel() for p in model.parameters()) == parameters
        settings = recipe.SETTINGS
        config = lora_config(model, rank=settings.lora_rank, alpha=settings.lora_alpha)
        adapted = get_peft_model(model, config)
    trained = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    # r (in + out) of four square layers and three of the feed-forward part, in every decoder layer
    assert sum(trained.values()) == 128 * layers * (4 * 2 * width + 3 * (width + inner))
    assert all(".language_model.model.layers." in name for name in trained)
    print(f"\n{recipe.__name__}: {sum(trained.values()):,} trained beside {parameters:,}")


def test_sima_trains_as_released() -> None:
    for recipe, epochs in ((sima_7b, 3), (sima_13b_recipe, 1)):
        settings = recipe.SETTINGS
        assert (settings.lora_rank, settings.lora_alpha, settings.beta) == (128, 256, 0.1)
        assert (settings.learning_rate, settings.weight_decay) == (1e-7, 0.0)
        assert (settings.schedule, settings.warmup_share) == ("cosine", 0.03)
        assert (settings.epochs, settings.global_batch_size) == (epochs, 1)
        assert (settings.variant, settings.train_connector) == ("plain", False)
    assert sima_7b.SETTINGS.step_count(17_000) == 51_000


def test_preference_recipes_are_found_by_name_and_path(tmp_path: Path) -> None:
    assert preference_names() == ["sima_13b", "sima_7b"]
    assert not set(preference_names()) & set(recipe_names())
    assert load_preference_settings("sima_7b") == sima_7b.SETTINGS
    told = {"recipe": PreferenceSettings(beta=0.2).model_dump(mode="json")}
    (tmp_path / "recipe.json").write_text(json.dumps(told))
    assert load_preference_settings(tmp_path / "recipe.json").beta == 0.2
    with pytest.raises(PolyptychError, match="known: sima_13b, sima_7b"):
        load_preference_settings("sam_vicuna7b")


def test_overrides_are_read_and_bad_ones_said() -> None:
    settings = PreferenceSettings().with_overrides(["learning_rate=1e-5", "variant=released"])
    assert (settings.learning_rate, settings.variant) == (1e-5, "released")
    for override, message in (
        ("beta", "is no FIELD=VALUE"),
        ("beta=0", "beta: Input should be greater than 0, got 0"),
        ("betta=1", "betta: Extra inputs are not permitted"),
    ):
        with pytest.raises(PolyptychError, match=message):
            PreferenceSettings().with_overrides([override])
