"""What the two processes of ``test_processes.py`` do; started by ``torchrun``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from training_runs import run, small_model, small_recipe

from polyptych.testing import tiny_cheetah, tiny_examples
from polyptych.training.supervised import SupervisedTrainer
from polyptych.training.tracking import Tracker

EVERYTHING = ("connector", "language_model", "vision_encoder")

MIXED = {
    "steps": 4,
    "trainable": EVERYTHING,
    "global_batch_size": 4,
    "micro_batch_size": 1,  # so a process often has a text alone while the other has pictures
    "save_every": 2,
    "validation": {"select_by": "loss", "every": 2},
}
COUNTS = (2, 0, 1, 0, 3)  # images of the examples; 11 examples are no multiple of the batch


class Stopped(Exception):
    """Stands for a kill between two checkpoints."""


def mixed(out: Path, **kwargs: Any) -> None:
    """Train on texts and pictures mixed, with validation examples that do not divide either."""
    kwargs = {
        "recipe": small_recipe(**MIXED),
        "model": small_model(),
        "train_examples": tiny_examples(11, COUNTS),
        "validation_examples": tiny_examples(3),
        **kwargs,
    }
    run(out, **kwargs)


def cached(folder: Path, name: str) -> None:
    """VPG-C alone is trained, on kept features and states, which the first process computes."""
    data = {
        "feature_cache": str(folder / f"{name}-features"),
        "state_cache": str(folder / f"{name}-states"),
        "workers": 1,
    }
    recipe = small_recipe(**{**MIXED, "trainable": ("vpgc",), "steps": 2, "data": data})
    mixed(folder / name, recipe=recipe, model=tiny_cheetah())


def stopped(out: Path, step: int, **kwargs: Any) -> None:
    """The same, stopped after a step."""
    original = Tracker.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> Any:
        if state.global_step == step:
            raise Stopped
        return original(self, args, state, control, **rest)

    Tracker.on_step_end = stop  # type: ignore[method-assign]
    try:
        mixed(out, **kwargs)
    except Stopped:
        pass
    finally:
        Tracker.on_step_end = original  # type: ignore[method-assign]


def with_gradients(path: Path, action: Any) -> None:
    """Keep the gradients of the first step, as they are before they are clipped."""
    original = SupervisedTrainer._clip_grad_norm

    def keep(self: Any, model: Any) -> Any:
        if self.state.global_step == 0 and self.is_world_process_zero():
            named = self.learner.named_parameters()
            save_file({name: p.grad.clone() for name, p in named if p.grad is not None}, path)
        return original(self, model)

    SupervisedTrainer._clip_grad_norm = keep  # type: ignore[method-assign]
    try:
        action()
    finally:
        SupervisedTrainer._clip_grad_norm = original  # type: ignore[method-assign]


def restless(out: Path) -> None:
    """A checkpoint after every step."""
    mixed(out, recipe=small_recipe(**{**MIXED, "steps": 8, "save_every": 1}))


def main(folder: Path, what: str) -> None:
    """All runs of the two processes, in one start of them."""
    torch.set_num_threads(1)
    if what == "ddp":
        with_gradients(folder / "two.safetensors", lambda: mixed(folder / "two"))
        stopped(folder / "two-then-one", 3)
        mixed(folder / "one-then-two")
        cached(folder, "two-cached")
    elif what == "restless":
        restless(folder)
    else:
        mixed(folder / "whole", parallel=what)
        stopped(folder / "cut", 3, parallel=what)
        mixed(folder / "cut", parallel=what)
    if os.environ["RANK"] == "0":
        (folder / "done").touch()  # after everything else


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
