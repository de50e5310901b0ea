"""The model that a recipe starts from: a checkpoint, changed or not, or one built from a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.errors import PolyptychError
from polyptych.language.tokenizer import train_tokenizer
from polyptych.models.blip2 import PolyptychBlip2Config
from polyptych.models.checkpoint import first_line, load_model, load_processor, resolve
from polyptych.models.processor import PolyptychProcessor
from polyptych.training.recipe import ModelRecipe


def build_model(
    recipe: ModelRecipe, texts: Callable[[], Iterable[str]]
) -> tuple[PreTrainedModel, PolyptychProcessor]:
    """The model and its processor.

    Args:
        recipe: Where training starts.
        texts: The training sets' words, for a tokenizer of one's own.

    Raises:
        PolyptychError: If neither checkpoint nor config is given, no processor is found, or weights
            do not fit.
    """
    if recipe.checkpoint is not None and not recipe.config:
        model, processor = load_model(recipe.checkpoint)
    elif recipe.checkpoint is not None or recipe.processor is not None:
        processor = load_processor(recipe.processor or recipe.checkpoint)
        model = _from_config(recipe, recipe.config)
    else:
        processor, config = _new_processor(recipe, texts)
        model = _from_config(recipe, config)
    for part, source in recipe.parts.items():
        load_part(model, part, source)
    _lay_out(processor, recipe.layout, model.config)
    return model, processor


def _lay_out(processor: PolyptychProcessor, layout: dict[str, Any], config: Any) -> None:
    """Change a loaded processor's rows as the recipe says, with places for the model's context."""
    for name, value in layout.items():
        setattr(processor, name, value)
    if hasattr(config, "context_tokens"):  # a method that reads shots
        processor.context_tokens = config.context_tokens
        processor.context_token_id = config.context_token_id


def _new_processor(
    recipe: ModelRecipe, texts: Callable[[], Iterable[str]]
) -> tuple[PolyptychProcessor, dict[str, Any]]:
    """A processor for a model that starts from nothing, and the config with its token ids."""
    if recipe.tokenizer_size is None:
        raise PolyptychError("recipe: model needs a checkpoint, a processor or a tokenizer_size")
    kind = recipe.config.get("model_type", PolyptychBlip2Config.model_type)
    config: Any = AutoConfig.for_model(kind, **_without_type(recipe.config))
    side = config.vision_config.image_size
    layout = {"tokens_per_image": config.tokens_per_image, **recipe.layout}
    if layout["tokens_per_image"] is None:
        raise PolyptychError(
            f"recipe: model.layout needs tokens_per_image: how many a "
            f"{config.vision_config.model_type} makes depends on the image"
        )
    tokenizer = train_tokenizer(texts(), recipe.tokenizer_size)
    processor = PolyptychProcessor(
        BlipImageProcessorPil(size={"height": side, "width": side}), tokenizer, **layout
    )
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    vocabulary = {"vocab_size": len(tokenizer)}
    added = {
        "text_config": {**vocabulary, **ids},
        "image_token_id": processor.image_token_id,
    }
    if "qformer_config" in config.sub_configs:
        added["qformer_config"] = vocabulary
    return processor, _merged(recipe.config, added)


def _from_config(recipe: ModelRecipe, changes: dict[str, Any]) -> PreTrainedModel:
    """A model of the changed config; weights of the checkpoint, if any, wherever they fit."""
    base: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    if recipe.checkpoint is not None:
        folder = Path(resolve(recipe.checkpoint))
        base = AutoConfig.from_pretrained(folder).to_dict()
        weights = read_weights(folder)
    fields = _merged(base, changes)
    if "model_type" not in fields:
        raise PolyptychError("recipe: model.config needs a model_type where there is no checkpoint")
    for name in ("architectures", "transformers_version", "_name_or_path"):
        fields.pop(name, None)
    config = AutoConfig.for_model(fields["model_type"], **_without_type(fields))
    model = AutoModelForImageTextToText.from_config(config)
    try:
        lost = model.load_state_dict(weights, strict=False).unexpected_keys
    except RuntimeError as error:
        raise PolyptychError(
            f"{recipe.checkpoint}: weights do not fit: {first_line(error)}"
        ) from error
    if lost:
        raise PolyptychError(
            f"{recipe.checkpoint}: {len(lost)} weights have no place in a {config.model_type} "
            f"with these changes: {', '.join(lost[:5])}"
        )
    return model.eval()


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
        for key, value in read_weights(Path(resolve(folder))).items()
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


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a saved model, floating-point ones as float32.

    Raises:
        PolyptychError: If there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PolyptychError(f"{folder}: no weights (*.safetensors) here")
    return {
        name: value.float() if value.is_floating_point() else value
        for file in files
        for name, value in load_file(file).items()
    }


def _without_type(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "model_type"}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        merged[name] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged
