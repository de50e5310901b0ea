"""What the recipes of all studies have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polyptych.training.recipe import DataRecipe, DataSource, OptimizerRecipe, Recipe


def sources(paths: Iterable[Path]) -> tuple[DataSource, ...]:
    """Sets of which every example counts equally."""
    return tuple(DataSource(path=str(path)) for path in paths)


def study_recipe(
    name: str,
    trainable: tuple[str, ...],
    data: DataRecipe,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    save_every: int = 500,
    **others: Any,
) -> Recipe:
    """One thread, bfloat16, a twentieth of the steps for the warm-up; ``others`` as in a recipe."""
    return Recipe(
        name=name,
        trainable=trainable,
        data=data,
        optimizer=OptimizerRecipe(learning_rate=learning_rate, warmup_steps=steps // 20),
        steps=steps,
        global_batch_size=batch_size,
        seed=seed,
        threads=1,
        precision="bf16",
        log_every=20,
        save_every=save_every,
        tensorboard=False,
        **others,
    )
