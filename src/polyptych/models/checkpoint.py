"""Loading a model with its processor: strictly, and by name for the bundled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from polyptych.errors import PolyptychError

ASSETS = Path(__file__).parents[1] / "assets"
"""Where the bundled models lie inside the package."""

DEFAULT_MODEL = "storybook-sam"
"""What is loaded when no model is named."""


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def resolve(name: str | Path | None) -> str:
    """A bundled name or None -> its folder; anything else unchanged (a path or a hub name)."""
    name = DEFAULT_MODEL if name is None else str(name)
    return str(ASSETS / name) if name in bundled_models() else name


def load_model(
    name: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[PreTrainedModel, Any]:
    """Load a model and the processor saved beside it, in eval mode.

    Args:
        name: A folder, a hub name, the name of a bundled model, or None for the default one.
        dtype: Type to compute in (bundled weights are stored in float16).
        device: Where to put the model.

    Raises:
        PolyptychError: If there is no such folder, or weights and model do not match exactly.
    """
    path = resolve(name)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local and not (Path(path) / "config.json").exists():
        raise PolyptychError(
            f"{path}: no model here (no config.json); bundled: {', '.join(bundled_models())}"
        )
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
    except RuntimeError as error:  # shapes that do not fit
        raise PolyptychError(f"{path}: weights and config disagree: {first_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(map(str, info[kind]))
            raise PolyptychError(
                f"{path}: {len(names)} {kind.replace('_', ' ')} in the weights: "
                f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
            )
    return model.eval().to(device), AutoProcessor.from_pretrained(path)


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
