"""Loading a model with its processor: strictly, and by name for the bundled ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from polyptych.errors import PolyptychError
from polyptych.models.blip2 import PolyptychBlip2Config
from polyptych.models.llava import PolyptychLlavaConfig
from polyptych.models.llava_conversion import layout_of, read_llava, read_llava_processor
from polyptych.models.onednn import is_faster, use_onednn
from polyptych.models.processor import PolyptychProcessor

ASSETS = Path(__file__).parents[1] / "assets"
"""Where the bundled models lie inside the package."""

DEFAULT_MODEL = "storybook-sam"
"""What is loaded when no model is named."""

Loader = Callable[..., tuple[Any, Any]]
"""``load(name, *, dtype=..., device=...) -> model, processor``, as :func:`load_model` does."""


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/processor_config.json"))


def resolve(name: str | Path | None) -> str:
    """A bundled name or None -> its folder; anything else unchanged (a path or a hub name).

    Bundled are also parts of models (a vision encoder), which have no processor.
    """
    name = DEFAULT_MODEL if name is None else str(name)
    bundled = [path.parent.name for path in ASSETS.glob("*/config.json")]
    return str(ASSETS / name) if name in bundled else name


def load_model(
    name: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    onednn: bool | None = None,
) -> tuple[PreTrainedModel, PolyptychProcessor]:
    """Load a model and the processor saved beside it, in eval mode.

    LLaVA checkpoints of others (llava-hf and the original layout) are converted on the way.

    Args:
        name: A folder, a hub name, the name of a bundled model, or None for the default one.
        dtype: Type to compute in (bundled weights are stored in float16).
        device: Where to put the model.
        onednn: Whether float32 products on a CPU are oneDNN's; None: where that is faster, see
            :mod:`polyptych.models.onednn`.

    Raises:
        PolyptychError: If there is no such folder, it holds a model of another family, or weights,
            model and processor do not match exactly.
    """
    path = resolve(name)
    check_folder(path, "config.json", "model")
    model: PreTrainedModel
    if check_family(path) == "llava":
        model, processor = read_llava(path, dtype=dtype)
    else:
        model, processor = _load_weights(path, dtype), load_processor(path)
    check_agreement(path, model.config, processor)
    if is_faster() if onednn is None else onednn:
        use_onednn(model)
    return model.eval().to(device), processor


def load_processor(name: str | Path | None = None) -> PolyptychProcessor:
    """Load a processor alone: what is needed to see or make rows, without a model's weights.

    Args:
        name: A folder, a hub name, the name of a bundled model, or None for the default one.

    Raises:
        PolyptychError: If there is none, or it belongs to a model of another family.
    """
    path = resolve(name)
    if Path(path, "config.json").exists() and check_family(path) == "llava":
        return read_llava_processor(path)
    check_folder(path, "processor_config.json", "processor")
    processor = AutoProcessor.from_pretrained(path)
    if not isinstance(processor, PolyptychProcessor):
        raise PolyptychError(
            f"{path}: a {type(processor).__name__}; a {PolyptychProcessor.__name__} is needed"
        )
    return processor


def check_folder(path: str, file: str, kind: str) -> None:
    """Refuse a name that is no folder with such a file and cannot be a hub name either.

    Raises:
        PolyptychError: Naming the path, the file and the bundled models.
    """
    is_hub_name = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if (Path(path).exists() or not is_hub_name) and not Path(path, file).exists():
        raise PolyptychError(
            f"{path}: no {kind} here (no {file}); bundled: {', '.join(bundled_models()) or None}"
        )


def check_family(path: str) -> Literal["ours", "llava"]:
    """Tell our models from those that are converted, and refuse all others before they are loaded.

    Raises:
        PolyptychError: Naming the folder, its ``model_type`` and what is supported.
    """
    fields = PreTrainedConfig.get_config_dict(path)[0]
    if layout_of(fields) is not None:
        return "llava"
    found = fields.get("model_type")
    known = [
        config.model_type
        for base in (PolyptychBlip2Config, PolyptychLlavaConfig)
        for config in _configs(base)
    ]
    if found not in known:
        known.append("llava")
        raise PolyptychError(f"{path}: a model of type {found!r}; supported: {', '.join(known)}")
    return "ours"


def check_agreement(path: str, config: Any, processor: PolyptychProcessor) -> None:
    """Refuse a processor that reserves other places or makes other pictures than the model takes.

    Raises:
        PolyptychError: Naming the folder and both numbers.
    """
    vision = config.vision_config
    side = vision.image_size if hasattr(vision, "patch_size") else None  # convolutions take any
    for kind, wanted, made in (
        ("visual tokens per image", config.tokens_per_image, processor.tokens_per_image),
        ("pixels a side", side, processor.image_size),
        ("context tokens", getattr(config, "context_tokens", None), processor.context_tokens),
        (
            "as context token id",
            getattr(config, "context_token_id", None),
            processor.context_token_id,
        ),
    ):
        if wanted is not None and wanted != made:
            raise PolyptychError(
                f"{path}: the model takes {wanted} {kind}, its processor makes {made}"
            )


def _configs(base: type[PreTrainedConfig]) -> list[type[PreTrainedConfig]]:
    """A base's config and those of the methods on it, without naming them here."""
    return [base, *(config for child in base.__subclasses__() for config in _configs(child))]


def _load_weights(path: str, dtype: torch.dtype) -> PreTrainedModel:
    load: Any = AutoModelForImageTextToText.from_pretrained
    try:
        model, info = load(path, dtype=dtype, output_loading_info=True)
    except SafetensorError as error:  # a truncated file
        raise PolyptychError(f"{path}: weights cannot be read: {first_line(error)}") from error
    except RuntimeError as error:  # shapes that do not fit
        raise PolyptychError(f"{path}: weights and config disagree: {first_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(map(str, info[kind]))
            raise PolyptychError(
                f"{path}: {len(names)} {kind.replace('_', ' ')} in the weights: "
                f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
            )
    return model


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
