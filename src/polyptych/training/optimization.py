"""Which trained parameters get which learning rate and weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from polyptych.errors import PolyptychError
from polyptych.training.freezing import matches
from polyptych.training.recipe import OptimizerRecipe


def parameter_groups(model: nn.Module, settings: OptimizerRecipe) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and weight decay; vectors (norms, biases) do not decay.

    Raises:
        PolyptychError: If a multiplier's pattern matches nothing that is trained.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0
        for pattern, value in settings.learning_rate_multipliers.items():
            if matches(name, pattern):
                factor = value
                used.add(pattern)
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    unused = settings.learning_rate_multipliers.keys() - used
    if unused:
        raise PolyptychError(
            f"optimizer.learning_rate_multipliers: {sorted(unused)[0]!r} matches 0 trained "
            "parameters"
        )
    return [
        {"params": parameters, "lr": settings.learning_rate * factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
