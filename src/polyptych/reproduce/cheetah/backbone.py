"""The task-agnostic backbone of the Cheetah study, and what can be computed once from it."""

from __future__ import annotations

import torch

from polyptych.models.blip2 import PolyptychBlip2Config, PolyptychBlip2ForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.answers import feature_cache
from polyptych.reproduce.base import teach_to_see
from polyptych.reproduce.cheetah.salience import NAMED
from polyptych.reproduce.cheetah.study import EDITED, CheetahWorkshop
from polyptych.reproduce.recipes import sources, study_recipe
from polyptych.reproduce.small_models import build_processor, load_encoder, small_config
from polyptych.training.data import TrainingData
from polyptych.training.recipe import DataRecipe, Recipe
from polyptych.training.supervised import train


def train_backbone(shop: CheetahWorkshop, number: int) -> None:
    """A Q-Former that is enough for captions, and a language model that reads it in all tasks."""
    if shop.base(number).exists():
        return
    settings = shop.settings
    model, processor = fresh_backbone(shop, number)
    recipe = study_recipe(
        f"backbone-seed{number}",
        ("language_model",),
        DataRecipe(train=sources(shop.base_data.values()), feature_cache=str(shop.features)),
        steps=settings.base_steps,
        batch_size=settings.base_batch,
        learning_rate=settings.base_learning_rate,
        seed=number,
    )
    teach_to_see(
        model,
        shop.pictures(),
        feature_cache(shop, model, processor),
        shop.readout,
        make_hints=shop.hints,
        steps=settings.seeing_steps,
        seed=number,
    )
    train(recipe, out=shop.base(number).parent, model=model, processor=processor)


def fresh_backbone(
    shop: CheetahWorkshop, number: int
) -> tuple[PolyptychBlip2ForConditionalGeneration, PolyptychProcessor]:
    """A backbone before its first step."""
    torch.set_num_threads(1)
    sets = [path for name, path in shop.data.items() if name.endswith("-train")]
    processor = build_processor(shop.encoder, sets, 1 + NAMED)
    torch.manual_seed(number)
    layers = shop.settings.decoder_layers
    config = PolyptychBlip2Config(
        **small_config(shop.encoder, processor, decoder_layers=layers),
        num_query_tokens=1 + NAMED,
    )
    model = PolyptychBlip2ForConditionalGeneration(config)
    load_encoder(model, shop.encoder)
    return model.eval(), processor


def cache_states(shop: CheetahWorkshop, number: int, layer: int) -> None:
    """Compute once what enters layer k of a backbone, for all runs that start from it."""
    torch.set_num_threads(1)
    model, processor = shop.with_vpgc(number, layer)
    paths = [shop.data[shop.captioned], *(shop.edited(variant, number) for variant in EDITED)]
    recipe = Recipe(
        data=DataRecipe(
            train=sources(paths),
            feature_cache=str(shop.features),
            state_cache=str(shop.states(number, layer)),
        )
    )
    data = TrainingData(recipe)
    data.states(model, processor, data.features(model, processor))
