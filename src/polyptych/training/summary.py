"""What a run is about to do, in a few lines, before it starts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from polyptych.data.collation import Collator
from polyptych.training.data import TrainingData
from polyptych.training.recipe import Recipe


def summary(recipe: Recipe, model: nn.Module, data: TrainingData, collator: Collator) -> str:
    """What is about to happen: parameters by part, steps, tokens and images per step, data."""
    lines = [f"{recipe.name}: {recipe.stage}, {recipe.steps} steps, {recipe.precision}"]
    parts = [*_parts(model), ("total", list(model.parameters()))]
    for name, parameters in parts:
        total = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        lines.append(f"  {name:<24} {total:>14,} parameters {trained:>14,} trained")
    count = min(recipe.global_batch_size, len(data.train))
    batch = collator([data.train[index] for index in range(count)])
    tokens, images = int(batch["attention_mask"].sum()), int(batch["image_counts"].sum())
    answers = int((batch["labels"] >= 0).sum())
    lines.append(
        f"  first step: {recipe.global_batch_size} examples, {images} images, {tokens} tokens, "
        f"{answers} of them answers"
    )
    epochs = recipe.steps * recipe.global_batch_size / data.train_size
    lines.append(
        f"  data: {data.train_size} to learn from ({epochs:.1f} passes), "
        f"{len(data.validation)} for validation"
    )
    return "\n".join(lines)


def _parts(model: nn.Module) -> Iterable[tuple[str, list[nn.Parameter]]]:
    """The model's parts, the connector's one level deeper (that is where methods live)."""
    for name, child in model.named_children():
        if name == "connector":
            inner = ((f"{name}.{key}", part) for key, part in child.named_children())
            yield from ((key, list(part.parameters())) for key, part in inner)
        else:
            yield name, list(child.parameters())
