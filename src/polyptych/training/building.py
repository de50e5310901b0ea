"""The model that a recipe starts from: a checkpoint, changed or not, or one built from a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_model, resolve
from polyptych.training.recipe import ModelRecipe


def build_model(recipe: ModelRecipe) -> tuple[PreTrainedModel, Any]:
    """The model and its processor.

    Raises:
        PolyptychError: If neither checkpoint nor config is given, no processor is found, or weights
            do not fit.
    """
    if recipe.checkpoint is not None and not recipe.config:
        model, processor = load_model(recipe.checkpoint)
    else:
        model, processor = _from_config(recipe), None
    if recipe.processor is not None or processor is None:
        source = recipe.processor or recipe.checkpoint
        if source is None:
            raise PolyptychError("recipe: model.processor is needed where there is no checkpoint")
        processor = AutoProcessor.from_pretrained(resolve(source))
    for part, source in recipe.parts.items():
        load_part(model, part, source)
    return model, processor


def _from_config(recipe: ModelRecipe) -> PreTrainedModel:
    """A model of the recipe's config; weights of the checkpoint, if any, wherever they fit."""
    base: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    if recipe.checkpoint is not None:
        folder = Path(resolve(recipe.checkpoint))
        base = AutoConfig.from_pretrained(folder).to_dict()
        weights = _read_weights(folder)
    fields = _merged(base, recipe.config)
    if "model_type" not in fields:
        raise PolyptychError("recipe: model.config needs a model_type where there is no checkpoint")
    for name in ("architectures", "transformers_version", "_name_or_path"):
        fields.pop(name, None)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForImageTextToText.from_config(config)
    lost = model.load_state_dict(weights, strict=False).unexpected_keys
    if lost:
        raise PolyptychError(
            f"{recipe.checkpoint}: {len(lost)} weights have no place in a {config.model_type} "
            f"with these changes: {', '.join(lost[:5])}"
        )
    return model


def load_part(model: PreTrainedModel, part: str, source: str) -> None:
    """Put a checkpoint's weights into one part of the model.

    Args:
        model: Changed in place.
        part: Dotted name of a module, e.g. ``connector.qformer``.
        source: ``FOLDER`` (the same part of that model; for ``language_model`` also a causal LM) or
            ``FOLDER#PART`` (another part of it).

    Raises:
        PolyptychError: If the model has no such part, or a weight of it is not in the source.
    """
    folder, _, name = source.partition("#")
    try:
        module = model.get_submodule(part)
    except AttributeError:
        raise PolyptychError(f"recipe: model.parts: the model has no part {part!r}") from None
    prefix = f"{name or part}."
    weights = {
        key.removeprefix(prefix): value
        for key, value in _read_weights(Path(resolve(folder))).items()
        if key.startswith(prefix)
    }
    if part == "language_model" and not weights:
        weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in weights]
    if missing:
        raise PolyptychError(
            f"{source}: {len(missing)} of {len(wanted)} weights of {part} are missing: "
            f"{', '.join(missing[:5])}"
        )
    module.load_state_dict({key: weights[key] for key in wanted})


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PolyptychError(f"{folder}: no weights (*.safetensors) here")
    return {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for file in files
        for name, value in load_file(file).items()
    }


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        merged[name] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged
