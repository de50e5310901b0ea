"""Two processes (torchrun, gloo) learn what one learns; texts and pictures mixed; one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from process_runs import cached, mixed, restless, stopped, with_gradients
from safetensors.torch import load_file
from training_runs import logged, logged_steps

from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_model
from polyptych.training.checkpoints import check_processes

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start two processes as a user does; they see this folder and the package."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(HERE / "process_runs.py"), *map(str, arguments)]
    paths = [str(HERE), str(SOURCE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def torchrun(*arguments: object) -> None:
    """Run two processes to their end."""
    process = start(*arguments)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    with_gradients(folder / "one.safetensors", lambda: mixed(folder / "one"))
    stopped(folder / "one-then-two", 3)
    cached(folder, "one-cached")
    torchrun(folder, "ddp")
    assert (folder / "done").exists()
    mixed(folder / "two-then-one")
    return folder


NUMBERS = ("step", "loss", "grad_norm", "learning_rate", "validation_loss")


@pytest.mark.parametrize("name", ["two", "two-then-one", "one-then-two"])
def test_losses_and_weights_are_those_of_one_process(runs: Path, name: str) -> None:
    assert len(logged(runs / "one")) == 4
    for number in NUMBERS:
        expected = logged(runs / "one", number)
        assert logged(runs / name, number) == pytest.approx(expected, abs=1e-5, rel=1e-4), number
    weights = load_model(runs / name / "final")[0].state_dict()
    for key, value in load_model(runs / "one" / "final")[0].state_dict().items():
        torch.testing.assert_close(weights[key], value, atol=1e-4, rtol=0, msg=key)


def test_gradients_are_those_of_one_process(runs: Path) -> None:
    one, two = load_file(runs / "one.safetensors"), load_file(runs / "two.safetensors")
    assert one.keys() == two.keys()
    assert any(name.startswith("vision_encoder") for name in one)
    assert any(name.startswith("connector.guidance") for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-3, msg=name)
    assert max(float(value.abs().max()) for value in one.values()) > 1e-3


def test_kept_features_and_states_are_computed_by_one_and_read_by_all(runs: Path) -> None:
    losses = logged(runs / "two-cached")
    assert losses == pytest.approx(logged(runs / "one-cached"), abs=1e-5)
    assert losses[0] != losses[1]
    for kind in ("features", "states"):
        one, two = (runs / f"{name}-cached-{kind}" for name in ("one", "two"))
        for path in one.iterdir():
            assert (two / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_sharded_weights_learn_the_same_and_go_on(tmp_path: Path) -> None:
    """FSDP2, texts and pictures mixed: no process waits, and saved models are whole."""
    mixed(tmp_path / "one")
    torchrun(tmp_path, "fsdp2")
    for name in ("whole", "cut"):
        for number in NUMBERS:
            expected = logged(tmp_path / "one", number)
            assert logged(tmp_path / name, number) == pytest.approx(expected, abs=1e-4, rel=1e-3)
        weights = load_model(tmp_path / name / "final")[0].state_dict()
        for key, value in load_model(tmp_path / "one" / "final")[0].state_dict().items():
            torch.testing.assert_close(weights[key], value, atol=1e-3, rtol=0, msg=key)


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_all_go_on(tmp_path: Path) -> None:
    restless(tmp_path / "one")
    out = tmp_path / "killed"
    for step, rank in ((2, 1), (5, 0)):
        process = start(out, "restless")
        while process.poll() is None and step not in logged_steps(out / "metrics.jsonl"):
            time.sleep(0.01)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[rank]), signal.SIGKILL)
        process.communicate(timeout=300)
        assert process.returncode != 0
    torchrun(out, "restless")
    for number in NUMBERS:
        expected = logged(tmp_path / "one", number)
        assert logged(out, number) == pytest.approx(expected, abs=1e-5, rel=1e-4), number


def test_a_checkpoint_that_was_spread_in_another_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "processes.json").write_text('{"parallel": "fsdp2", "processes": 8}')
    check_processes(tmp_path, "fsdp2")
    with pytest.raises(PolyptychError, match="was saved under fsdp2, this run is ddp"):
        check_processes(tmp_path, "ddp")


def test_each_step_is_logged_once(runs: Path) -> None:
    """Only the first process writes."""
    for name in ("two", "one-then-two", "two-then-one"):
        steps = logged(runs / name, "loss")
        assert len(steps) == 4
        assert not list((runs / name).glob("*.partial"))
