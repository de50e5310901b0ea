"""Published weights: files read safely, names changed by rules, nothing missing or left over.

Loaders that ignore what does not fit let a wrong file pass silently. Here anything missing,
unexpected or of another shape is an error that says how many and which.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from polyptych.errors import PolyptychError

StateDict = dict[str, Tensor]

Rules = Sequence[tuple[str, str]]
"""Regular expression over a whole name -> the new name, with the groups put in."""


def rename(
    state_dict: Mapping[str, Tensor],
    rules: Rules,
    ignored: Sequence[str] = (),
    *,
    source: str = "weights",
) -> StateDict:
    """Give every tensor its new name by the first rule that fits.

    Args:
        state_dict: The tensors; none is changed.
        rules: See :data:`Rules`.
        ignored: Regular expressions over names without a place in the result (buffers).
        source: Named in errors.

    Raises:
        PolyptychError: If a name falls under no rule; lists the first ten.
    """
    renamed: StateDict = {}
    unknown = []
    for name, tensor in state_dict.items():
        if any(re.fullmatch(pattern, name) for pattern in ignored):
            continue
        matches = (
            (match, new) for old, new in rules if (match := re.fullmatch(old, name)) is not None
        )
        found = next(matches, None)
        if found is None:
            unknown.append(name)
        else:
            renamed[found[0].expand(found[1])] = tensor
    if unknown:
        raise PolyptychError(f"{source}: {len(unknown)} unexpected tensors: {listed(unknown)}")
    return renamed


def overlay(
    parts: Sequence[StateDict], wanted: Mapping[str, Tensor], *, source: str = "weights"
) -> StateDict:
    """Lay converted parts over each other (later ones win) and demand exactly what a model wants.

    Args:
        parts: Renamed tensors, base first.
        wanted: The model's state dict; only names and shapes are read (meta tensors will do).
        source: Named in errors.

    Raises:
        PolyptychError: If a tensor is missing, unexpected or of another shape.
    """
    merged: StateDict = {}
    for part in parts:
        merged.update(part)
    for kind, names in (
        ("missing", wanted.keys() - merged.keys()),
        ("unexpected", merged.keys() - wanted.keys()),
    ):
        if names:
            raise PolyptychError(f"{source}: {len(names)} {kind} tensors: {listed(names)}")
    bent = [
        f"{name} {tuple(merged[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if tensor.shape != merged[name].shape
    ]
    if bent:
        raise PolyptychError(f"{source}: {len(bent)} tensors of another shape: {listed(bent)}")
    return merged


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names, for an error."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def read_weights(path: str | Path) -> StateDict:
    """A published file or folder: ``.safetensors``, a pickled state dict, or a folder of either.

    Pickles are read with ``weights_only=True``; an outer ``{"model": ...}`` is taken off.

    Raises:
        PolyptychError: If there is nothing there or it cannot be read safely.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise PolyptychError(f"{path}: no such file") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PolyptychError(f"{path}: not readable as weights: {reason}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise PolyptychError(
            f"{path}: no state dict: found {type(loaded).__name__} without tensors"
        )
    return loaded


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _read_folder(folder: Path) -> StateDict:
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        if index.exists():
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        elif (folder / f"{stem}{suffix}").exists():
            files = [f"{stem}{suffix}"]
        else:
            continue
        return {name: t for file in files for name, t in read_weights(folder / file).items()}
    raise PolyptychError(f"{folder}: no model.safetensors and no pytorch_model.bin here")
