"""What a checkpoint holds of the weights: those that training changes; the start has the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from polyptych.errors import PolyptychError
from polyptych.training.building import read_weights

WEIGHTS = "model.safetensors"
"""The name under which the Trainer looks for weights in a checkpoint."""

PROCESSES = "processes.json"
"""How many processes wrote a checkpoint, and how they were spread."""


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put the trained parameters that a checkpoint or a saved model holds into the model.

    Raises:
        PolyptychError: If one of them is not there.
    """
    saved = read_weights(folder)
    trained = trained_parameters(model)
    missing = sorted(trained.keys() - saved.keys())
    if missing:
        raise PolyptychError(f"{folder}: {len(missing)} weights are missing: {missing[0]} ...")
    with torch.no_grad():
        for name, value in trained.items():
            whole: Any = saved[name]
            if isinstance(value, DTensor):
                whole = distribute_tensor(
                    whole.to(value.device), value.device_mesh, value.placements
                )
            value.copy_(whole)


def check_processes(checkpoint: Path, parallel: str) -> None:
    """Refuse a checkpoint that was spread in another way; the number of processes may differ.

    Raises:
        PolyptychError: Naming both ways.
    """
    path = checkpoint / PROCESSES
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))["parallel"]
    if before != parallel:
        raise PolyptychError(
            f"{checkpoint} was saved under {before}, this run is {parallel}: their optimizers are "
            "kept in different files; go on under the former, or start again without resuming"
        )
