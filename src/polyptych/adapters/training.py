"""Training an adapted base by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polyptych.adapters.adapt import adapt, methods_by_name
from polyptych.adapters.base import METHODS
from polyptych.adapters.files import CONFIG_FILE
from polyptych.adapters.processor import FamilyProcessor
from polyptych.errors import PolyptychError
from polyptych.training.recipe import Recipe

DEFAULT_METHODS = "sam,vpgc"
"""What is put on a base where nobody says; CaMML asks for data with shots."""


def adapted_for(recipe: Recipe, base: str, methods: str | None) -> tuple[Any, FamilyProcessor]:
    """The model that a run by this recipe starts from, and its processor.

    A base that stays frozen is kept in bfloat16 where the recipe computes in it; what is trained is
    float32 always.

    Args:
        recipe: Says what is trained; ``polyptych_methods`` are all methods.
        base: Folder or hub name of a base, or a folder of an adapted model.
        methods: Names with commas between; None: those of the folder, or :data:`DEFAULT_METHODS`.

    Raises:
        PolyptychError: If the recipe has a model of its own, or the base cannot be adapted.
    """
    own = recipe.model.checkpoint or recipe.model.config.get("model_type")
    if own:
        raise PolyptychError(
            f"recipe {recipe.name} starts from {own!r}, --base says {base!r}; take a recipe "
            "without a model, such as modern"
        )
    continues = methods is None and Path(base, CONFIG_FILE).exists()
    chosen = None if continues else methods_by_name(methods or DEFAULT_METHODS)
    frozen = recipe.lora is None and all(METHODS in pattern for pattern in recipe.trainable)
    small = frozen and recipe.precision == "bf16"
    dtype = torch.bfloat16 if small else torch.float32
    model, processor = adapt(base, chosen, seed=recipe.seed, dtype=dtype)
    assert processor is not None  # it was loaded with the base
    return model, processor
