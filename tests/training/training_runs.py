"""Small runs that the training tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from polyptych.testing import tiny_examples, tiny_model, tiny_processor
from polyptych.training.recipe import Recipe
from polyptych.training.supervised import TrainResult, train

PROCESSOR = tiny_processor()


def small_recipe(**changes: Any) -> Recipe:
    """Eight examples a step, connector and language model trained, every step logged."""
    values: dict[str, Any] = {
        "trainable": ("connector", "language_model"),
        "optimizer": {"learning_rate": 3e-3, "schedule": "constant"},
        "steps": 6,
        "global_batch_size": 8,
        "log_every": 1,
        "tensorboard": False,
        "validation": {"select_by": "loss"},
    }
    return Recipe(**{**values, **changes})


def small_model(dropout: float = 0.0, **kwargs: Any) -> Any:
    """The tiny model, with live dropout where asked for."""
    model = tiny_model(**kwargs)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = dropout
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = dropout
    return model


def run(out: Path, recipe: Recipe | None = None, **kwargs: Any) -> TrainResult:
    """Train the small model on twelve examples."""
    kwargs = {
        "model": kwargs.pop("model", None) or small_model(),
        "processor": PROCESSOR,
        "train_examples": tiny_examples(12),
        **kwargs,
    }
    return train(recipe or small_recipe(), out=out, **kwargs)


def logged(out: Path, name: str = "loss") -> list[float]:
    """One number of every line that has it."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def logged_steps(metrics: Path) -> list[int]:
    """Steps of the lines of a file that is being written; the last one may be half there."""
    if not metrics.exists():
        return []
    parts = (line.partition('"step": ')[2].partition(",")[0] for line in metrics.open())
    return [int(part) for part in parts if part]
