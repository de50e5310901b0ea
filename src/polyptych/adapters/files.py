"""The file of an adapter: weights of the methods alone, what they are, and whose they are.

polyptych_adapter.json          methods with their sizes, the base's name and sizes
polyptych_adapter.safetensors   weights by their names in the model; the same in every family
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from polyptych.adapters.base import METHODS
from polyptych.adapters.method import BaseSizes, Method
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.models.checkpoint import first_line

CONFIG_FILE = "polyptych_adapter.json"
WEIGHTS_FILE = "polyptych_adapter.safetensors"

_FORMAT = 1


def describe_base(config: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What tells one base from another, also under another name or in another precision."""
    sizes = BaseSizes.of(config)
    return {
        "name": config.name_or_path,
        "model_type": config.model_type,
        "hidden_size": sizes.hidden_size,
        "num_layers": sizes.num_layers,
        "weights": _fingerprint(weights),
    }


def _fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of names, shapes and a few numbers of every weight, as bfloat16."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 8)].to(torch.bfloat16).float().cpu().tolist()
        digest.update(f"{name} {tuple(weight.shape)} {some}".encode())
    return digest.hexdigest()[:12]


def is_of_method(name: str) -> bool:
    """Whether a weight of this name in a model belongs to a method."""
    return f".{METHODS}." in f".{name}"


def save_adapter(
    folder: str | Path,
    base: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    methods: Mapping[str, Method],
    context_token_id: int | None,
) -> None:
    """Write both files, the weights first.

    Raises:
        PolyptychError: If the system refuses.
    """
    folder = Path(folder)
    kept = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with write_aside(folder / WEIGHTS_FILE, binary=True) as file:
        file.write(save(kept))
    record = {
        "format": _FORMAT,
        "base": base,
        "methods": {name: dataclasses.asdict(m) for name, m in methods.items()},  # type: ignore[call-overload]
        "context_token_id": context_token_id,
    }
    with write_aside(folder / CONFIG_FILE) as file:
        json.dump(record, file, indent=2)
        file.write("\n")


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """What an adapter's file says of itself.

    Raises:
        PolyptychError: If it is none, or of a later form.
    """
    path = Path(folder, CONFIG_FILE)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolyptychError(f"{path}: no readable adapter ({first_line(error)})") from error
    if found != _FORMAT:
        raise PolyptychError(f"{path}: an adapter of form {found}; this version reads {_FORMAT}")
    return record


def check_base(model: Any, record: Mapping[str, Any], where: str | Path | None) -> None:
    """Refuse an adapter of another base.

    Args:
        model: A base without methods.
        record: What the adapter's file says.
        where: The adapter's folder.

    Raises:
        PolyptychError: Naming what differs, with both values.
    """
    own, its = describe_base(model.config, model.state_dict()), record["base"]
    for field in ("model_type", "hidden_size", "num_layers", "weights"):
        if own[field] != its.get(field):
            raise PolyptychError(
                f"{where}: an adapter of another base: its {field} is {its.get(field)}, "
                f"this base's {own[field]}"
            )


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Put an adapter's weights into the model, strictly.

    Raises:
        PolyptychError: If a weight is missing, too many, or of another shape.
    """
    path = Path(folder, WEIGHTS_FILE)
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PolyptychError(f"{path}: weights cannot be read: {first_line(error)}") from error
    own = {name: value for name, value in model.state_dict().items() if is_of_method(name)}
    for kind, names in (
        ("missing", own.keys() - saved.keys()),
        ("extra", saved.keys() - own.keys()),
    ):
        if names:
            raise PolyptychError(
                f"{path}: {len(names)} of {len(own)} weights are {kind}: {min(names)} ..."
            )
    for name, value in own.items():
        if value.shape != saved[name].shape:
            raise PolyptychError(
                f"{path}: {name} is {list(saved[name].shape)}, the base needs {list(value.shape)}"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])
