"""Killed (SIGKILL) at random moments, a run ends with the losses of one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from training_runs import logged, logged_steps, run, small_model, small_recipe

from polyptych.errors import PolyptychError
from polyptych.testing import tiny_examples
from polyptych.training.recipe import Recipe
from polyptych.training.run_folder import RunFolder, said_if_unsaved

NUMBERS = ("step", "loss", "grad_norm", "learning_rate", "validation_loss")


def restless(steps: int) -> Recipe:
    """A checkpoint after every step, a validation after every second: always something to tear."""
    return small_recipe(
        steps=steps,
        save_every=1,
        global_batch_size=4,
        optimizer={"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 2},
        validation={"select_by": "loss", "every": 2},
    )


def train(out: Path, steps: int) -> None:
    run(
        out,
        restless(steps),
        model=small_model(dropout=0.1),
        validation_examples=tiny_examples(3),
    )


def kill_after(out: Path, steps: int, step: int, delay: float) -> None:
    """Train in a process of its own and kill it ``delay`` seconds after it has logged ``step``."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(out, steps))
    process.start()
    metrics = out / "metrics.jsonl"
    while process.is_alive() and step not in logged_steps(metrics):
        time.sleep(0.002)
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it had ended before it was killed"


def check_whole(out: Path) -> None:
    """Whatever has a checkpoint's name can be loaded to its end."""
    for folder in (out / "checkpoints").glob("checkpoint-*"):
        assert load_file(folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.load(folder / name, weights_only=False)
        assert (folder / "trainer_state.json").stat().st_size > 100


@pytest.mark.parametrize(("steps", "kills"), [(8, 3), pytest.param(24, 10, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_no_trace(tmp_path: Path, steps: int, kills: int) -> None:
    start = time.perf_counter()
    train(tmp_path / "whole", steps)
    per_step = (time.perf_counter() - start) / steps
    rng = random.Random(kills)
    for step in sorted(rng.sample(range(1, steps), kills)):
        kill_after(tmp_path / "killed", steps, step, rng.uniform(0, per_step / 2))
        check_whole(tmp_path / "killed")
    torch.manual_seed(5)
    train(tmp_path / "killed", steps)
    for number in NUMBERS:
        assert logged(tmp_path / "killed", number) == logged(tmp_path / "whole", number), number
    for name in ("best", "final"):
        whole, killed = (
            load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "killed")
        )
        assert all(torch.equal(value, killed[key]) for key, value in whole.items())
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert not any(name.startswith(".") or name.endswith(".partial") for name in left), left


def test_killed_after_the_last_checkpoint(tmp_path: Path) -> None:
    """Nothing is left to learn, but the model is not saved yet."""
    recipe = small_recipe(steps=2)
    run(tmp_path / "whole", recipe)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "final")
    (tmp_path / "killed" / "result.json").unlink()
    result = run(tmp_path / "killed", recipe)
    assert result.loss == logged(tmp_path / "whole")[-1]
    assert (tmp_path / "killed" / "final" / "model.safetensors").exists()
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def test_the_best_model_survives_a_kill_between_two_renames(tmp_path: Path) -> None:
    recipe = small_recipe(steps=1)
    folder = RunFolder(tmp_path)
    folder.open(recipe, {}, resume=True)
    folder.best.mkdir()
    (folder.best / "training.json").write_text('{"step": 7}')
    os.replace(folder.best, tmp_path / ".best.replaced")  # what a kill there leaves
    (tmp_path / "best.partial").mkdir()
    folder.open(recipe, {}, resume=True)
    assert folder.notes(folder.best) == {"step": 7}
    assert {path.name for path in tmp_path.iterdir()} == {"best", "recipe.json"}


def test_a_full_disk_is_named_where_torch_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=4096))
    with (
        pytest.raises(PolyptychError, match="No space left on device") as error,
        said_if_unsaved(tmp_path / "run" / "checkpoints"),
    ):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    assert str(error.value) == (
        f"cannot save {tmp_path / 'run' / 'checkpoints'}: No space left on device "
        "(0.0 MiB are free)"
    )


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """A field that recipes have got since then was at its default."""
    recipe = small_recipe(steps=1)
    folder = RunFolder(tmp_path)
    folder.open(recipe, {"model": 1}, resume=True)
    told = json.loads(folder.recipe.read_text())
    del told["recipe"]["data"]["drop_bad"]
    folder.recipe.write_text(json.dumps(told))
    assert folder.open(recipe, {"model": 1}, resume=True) is None
    with pytest.raises(PolyptychError, match="model was 1, is 2"):
        folder.open(recipe, {"model": 2}, resume=True)
