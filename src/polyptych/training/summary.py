"""What a run is about to do, in a few lines, before it starts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from polyptych.training.account import DataAccount
from polyptych.training.data import TrainingData
from polyptych.training.recipe import Recipe


def summary(
    recipe: Recipe, model: nn.Module, data: TrainingData, account: DataAccount, processes: int = 1
) -> str:
    """What is about to happen: what is learned from, steps and processes, parameters by part."""
    size = recipe.global_batch_size
    spread = f" on {processes} processes" if processes > 1 else ""
    passes = recipe.steps * size / data.train_size
    lines = [
        f"{recipe.name}: {recipe.stage}, {recipe.steps} steps of {size} examples "
        f"({passes:.1f} passes), {recipe.precision}{spread}",
        *account.lines(),
        f"  looks at {len(data.validation):,} examples for validation",
    ]
    for name, parameters in [*_parts(model), ("total", list(model.parameters()))]:
        total = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        lines.append(f"  {name:<24} {total:>14,} parameters {trained:>14,} trained")
    return "\n".join(lines)


def _parts(model: nn.Module) -> Iterable[tuple[str, list[nn.Parameter]]]:
    """The model's parts, the connector's one level deeper (that is where methods live)."""
    for name, child in model.named_children():
        if name == "connector":
            inner = ((f"{name}.{key}", part) for key, part in child.named_children())
            yield from ((key, list(part.parameters())) for key, part in inner)
        else:
            yield name, list(child.parameters())
