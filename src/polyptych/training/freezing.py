"""Which parameters learn, and how the others are kept truly still.

``requires_grad=False`` alone leaves a frozen module's dropout alive: ``model.train()`` switches it
on, so the "frozen" features are noisy. The released SAM trains on a frozen Q-Former in that state.
Here frozen modules are in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from polyptych.errors import PolyptychError


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter name falls under a pattern.

    ``connector`` and ``connector.guidance`` match by their beginning; so does ``guidance``, with
    the part's own name left out. ``*.norm.weight`` is a glob over the whole name.
    """
    inner = name.partition(".")[2]
    return f"{name}.".startswith(f"{pattern}.") or (
        f"{inner}.".startswith(f"{pattern}.") or fnmatchcase(name, pattern)
    )


def select_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let the parameters under ``patterns`` learn and freeze all others.

    A pattern that starts with ``!`` takes back what earlier ones chose.

    Returns:
        Names of the parameters that learn.

    Raises:
        PolyptychError: If a pattern matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if matches(name, pattern.removeprefix("!"))}
        if not matched:
            parts = sorted({name.split(".")[0] for name in names})
            raise PolyptychError(
                f"trainable: {pattern!r} matches 0 of {len(names)} parameters; parts: "
                + ", ".join(parts)
            )
        chosen = chosen - matched if pattern.startswith("!") else chosen | matched
    if not chosen:
        raise PolyptychError(f"trainable: 0 of {len(names)} parameters are left to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The topmost modules that hold parameters of which none learns."""
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [model]
    return [module for child in model.children() for module in frozen_modules(child)]


def set_to_eval(modules: Iterable[nn.Module]) -> None:
    """Put frozen modules in evaluation mode, to be called after every ``model.train()``.

    Layers under gradient checkpointing keep their own flag, which transformers reads to decide
    whether to checkpoint; see :func:`checkpoint_frozen_layers` for what they compute.
    """
    for module in modules:
        module.eval()
        for layer in _checkpointed_layers(module):
            layer.training = True


def checkpoint_frozen_layers(modules: Iterable[nn.Module]) -> None:
    """Make frozen layers under gradient checkpointing compute in evaluation mode all the same.

    Some decoder layers (OPT's) call dropout by their own flag, so it is off while they compute.
    """
    for module in modules:
        for layer in _checkpointed_layers(module):
            layer._gradient_checkpointing_func = _in_eval(layer, layer._gradient_checkpointing_func)


def _checkpointed_layers(module: nn.Module) -> list[Any]:
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing
    ]


def _in_eval(layer: nn.Module, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def run(function: Callable[..., Any], *args: Any) -> Any:
        def compute(*inputs: Any) -> Any:
            layer.training = False
            try:
                return function(*inputs)
            finally:
                layer.training = True

        return checkpoint(compute, *args)

    return run
