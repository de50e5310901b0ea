"""Training by invariants: what must not change the run does not, and what must learn does."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from training_runs import PROCESSOR, logged, run, small_model, small_recipe

from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_model
from polyptych.schema import Example
from polyptych.testing import tiny_examples
from polyptych.training.arguments import batch_split
from polyptych.training.tracking import Tracker

UNANSWERED = Example("e", tiny_examples(1)[0].prompt, tiny_examples(1)[0].images)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run that others are compared with."""
    out = tmp_path_factory.mktemp("plain")
    run(out)
    return out


def test_the_loss_falls_and_the_model_is_saved(tmp_path: Path) -> None:
    recipe = small_recipe(steps=40, optimizer={"learning_rate": 5e-3})
    examples = tiny_examples(8)
    result = run(
        tmp_path, recipe, train_examples=examples, validation_examples=examples, model=small_model()
    )
    losses = logged(tmp_path)
    assert len(losses) == 40
    assert losses[-1] < 0.6 * losses[0]
    assert result.best_step == 40
    assert result.validation is not None
    model, processor = load_model(result.final)
    assert type(processor) is type(PROCESSOR)
    trained = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert trained == {name: tuple(p.shape) for name, p in small_model().named_parameters()}


def test_the_saved_model_answers_as_the_trained_one(tmp_path: Path) -> None:
    model = small_model()
    result = run(tmp_path, model=model)
    loaded, processor = load_model(result.final)
    batch = dict(processor(text="what?", images=None))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.generation_config.use_cache is not False
    assert getattr(loaded.config, "use_cache", True) is True


def test_two_passes_of_four_are_one_of_eight(plain: Path, tmp_path: Path) -> None:
    run(tmp_path, small_recipe(micro_batch_size=4))
    assert logged(tmp_path) == pytest.approx(logged(plain), abs=1e-5)
    assert logged(tmp_path, "grad_norm") == pytest.approx(logged(plain, "grad_norm"), rel=1e-4)


@pytest.mark.parametrize("decoder", ["llama", "opt"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, decoder: str) -> None:
    """Also with dropout alive in what is trained, and still in what is frozen (OPT's layers)."""
    changes = {"trainable": ("connector",), "steps": 3}
    for name, checkpointing in (("off", False), ("on", True)):
        recipe = small_recipe(gradient_checkpointing=checkpointing, **changes)
        run(tmp_path / name, recipe, model=small_model(dropout=0.2, decoder=decoder))
    assert logged(tmp_path / "on") == pytest.approx(logged(tmp_path / "off"), abs=1e-6)


def test_a_frozen_language_model_is_checkpointed_and_still(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its activations are the large ones; evaluation mode must not switch checkpointing off."""
    model = small_model(dropout=0.5)
    layers = model.get_decoder().layers
    attention = type(layers[0].self_attn)
    original, modes = attention.forward, []

    def watched(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        modes.append(self.training)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", watched)
    recipe = small_recipe(trainable=("connector",), steps=1, gradient_checkpointing=True)
    run(tmp_path, recipe, model=model)
    assert modes == [False] * (2 * len(layers))  # once forward, once again in the backward pass


def test_frozen_parts_stay_bit_for_bit(tmp_path: Path) -> None:
    model = small_model(dropout=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(tmp_path, small_recipe(trainable=("guidance", "projection")), model=model)
    changed = {name for name, value in model.state_dict().items() if value.ne(before[name]).any()}
    assert changed
    assert all(n.startswith(("connector.guidance", "connector.projection")) for n in changed)
    assert "connector.projection.linear.weight" in changed
    assert any(name.startswith("connector.guidance") for name in changed)


def test_frozen_dropout_is_off_and_trained_dropout_is_on(plain: Path, tmp_path: Path) -> None:
    everything = ("connector", "language_model")
    for name, trainable, dropout in (
        ("frozen", ("projection",), 0.5),
        ("frozen without", ("projection",), 0.0),
        ("trained", everything, 0.5),
    ):
        recipe = small_recipe(trainable=trainable, steps=2)
        run(tmp_path / name, recipe, model=small_model(dropout=dropout))
    assert logged(tmp_path / "frozen") == logged(tmp_path / "frozen without")
    assert logged(tmp_path / "trained")[0] != logged(plain)[0]


def test_the_frozen_vision_encoder_builds_no_graph(tmp_path: Path) -> None:
    model, outputs = small_model(), []
    model.vision_encoder.register_forward_hook(lambda *call: outputs.append(call[2]))
    run(tmp_path, small_recipe(steps=1), model=model)
    assert outputs
    assert not any(features.requires_grad for features in outputs)
    assert not model.vision_encoder.training


class _Killed(Exception):
    pass


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: object) -> None:
    original = Tracker.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            action()
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(Tracker, "on_step_end", stop)


RESUMED = {
    "steps": 8,
    "save_every": 3,
    "log_every": 2,
    "micro_batch_size": 4,
    "optimizer": {"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 2},
    "validation": {"select_by": "loss", "every": 2},
}


def test_a_killed_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL between two checkpoints; dropout, data order, optimizer and schedule go on."""
    recipe = small_recipe(**RESUMED)
    kwargs = {"validation_examples": tiny_examples(3)}
    whole = run(tmp_path / "whole", recipe, model=small_model(dropout=0.1), **kwargs)

    def doomed() -> None:
        _stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(tmp_path / "killed", recipe, model=small_model(dropout=0.1), **kwargs)

    process = multiprocessing.get_context("fork").Process(target=doomed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "final").exists()
    assert len(logged(tmp_path / "killed")) == 3  # steps 2, 3 (before the checkpoint) and 4

    torch.manual_seed(123)  # the new process has other random numbers
    resumed = run(tmp_path / "killed", recipe, model=small_model(dropout=0.1), **kwargs)
    for name in ("step", "loss", "grad_norm", "learning_rate", "validation_loss"):
        assert logged(tmp_path / "killed", name) == logged(tmp_path / "whole", name), name
    assert (resumed.loss, resumed.validation, resumed.best_step) == (
        whole.loss,
        whole.validation,
        whole.best_step,
    )
    weights = [
        load_model(tmp_path / name / "final")[0].state_dict() for name in ("whole", "killed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_half_written_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(save_every=2)

    def fail() -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        _stop_at(patch, 5, fail)
        with pytest.raises(_Killed):
            run(tmp_path, recipe)
    half = tmp_path / "checkpoints.partial" / "checkpoint-5"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert run(tmp_path, recipe).steps == 6
    assert logged(tmp_path, "step") == [1, 2, 3, 4, 5, 6]
    assert not half.exists()


def test_validation_does_not_change_the_run(plain: Path, tmp_path: Path) -> None:
    recipe = small_recipe(validation={"every": 1, "max_new_tokens": 3})
    run(tmp_path, recipe, validation_examples=tiny_examples(3))
    assert logged(tmp_path) == logged(plain)
    assert len(logged(tmp_path, "validation_cider[coco]")) == 6


def test_the_best_model_is_the_one_of_the_best_step(tmp_path: Path) -> None:
    recipe = small_recipe(validation={"every": 2, "select_by": "loss"})
    result = run(tmp_path, recipe, validation_examples=tiny_examples(3))
    losses = logged(tmp_path, "validation_loss")
    assert result.best_step == 2 * (losses.index(min(losses)) + 1)
    assert result.validation is not None
    assert result.validation["loss"] == min(losses)
    notes = json.loads((tmp_path / "best" / "training.json").read_text())
    assert notes["step"] == result.best_step


def test_a_finished_run_is_not_run_again(plain: Path) -> None:
    before = (plain / "metrics.jsonl").stat().st_mtime_ns
    model = small_model()
    assert run(plain, model=model).steps == 6
    assert (plain / "metrics.jsonl").stat().st_mtime_ns == before
    final = load_model(plain / "final")[0].state_dict()
    assert all(torch.equal(value, final[name]) for name, value in model.state_dict().items())


def test_a_full_disk_is_said_in_one_line_and_the_run_can_go_on(tmp_path: Path, plain: Path) -> None:
    recipe = small_recipe(save_every=4)

    def doomed() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            run(tmp_path, recipe)
        except PolyptychError as error:
            (tmp_path / "said").write_text(str(error))

    process = multiprocessing.get_context("fork").Process(target=doomed)
    process.start()
    process.join()
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"cannot save {tmp_path / 'checkpoints'}: ")
    assert "\n" not in said
    run(tmp_path, recipe)
    assert logged(tmp_path) == logged(plain)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (small_recipe(seed=1), {}, "seed was 0, is 1"),
        (
            small_recipe(),
            {"train_examples": tiny_examples(11)},
            "data.train was .* 12.* is .* 11",
        ),
        (small_recipe(), {"model": small_model(seed=1)}, "model.start was"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    plain: Path, recipe: object, changes: dict, message: str
) -> None:
    with pytest.raises(PolyptychError, match=f"holds a run of another recipe: {message}") as error:
        run(plain, recipe, **changes)
    assert "\n" not in str(error.value)


def test_starting_again_removes_the_earlier_run(tmp_path: Path) -> None:
    run(tmp_path, small_recipe(steps=2))
    run(tmp_path, small_recipe(steps=1), resume=False)
    assert logged(tmp_path, "step") == [1]


@pytest.mark.parametrize("guidance", ["off", "released", "paper"])
def test_bf16_follows_fp32(tmp_path: Path, guidance: str) -> None:
    for precision in ("fp32", "bf16"):
        model = small_model(guidance=guidance)
        run(tmp_path / precision, small_recipe(precision=precision), model=model)
    assert logged(tmp_path / "bf16") == pytest.approx(logged(tmp_path / "fp32"), rel=0.02)
    assert logged(tmp_path / "bf16") != logged(tmp_path / "fp32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_cached_features_stand_for_pixels(plain: Path, tmp_path: Path) -> None:
    model, calls = small_model(), []
    recipe = small_recipe(data={"feature_cache": str(tmp_path / "cache")})
    run(tmp_path / "first", recipe, model=model)
    assert logged(tmp_path / "first") == pytest.approx(logged(plain), abs=2e-3)  # float16 features
    model = small_model()
    model.vision_encoder.register_forward_hook(lambda *call: calls.append(1))
    run(tmp_path / "second", recipe, model=model)
    assert not calls
    assert logged(tmp_path / "second") == logged(tmp_path / "first")


def test_records_on_disk_and_workers_are_as_examples_in_memory(plain: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", tiny_examples(12))
    data = {"train": str(tmp_path / "records.jsonl"), "workers": 1}
    run(tmp_path / "run", small_recipe(data=data), train_examples=None)
    assert logged(tmp_path / "run") == logged(plain)


def test_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, small_recipe(tensorboard=True, steps=2))
    events = EventAccumulator(str(tmp_path)).Reload()
    values = [scalar.value for scalar in events.Scalars("train/loss")]
    assert values == pytest.approx(logged(tmp_path), rel=1e-6)


def test_quiet_unless_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, small_recipe(steps=1))
    assert capfd.readouterr().out == ""
    run(tmp_path / "loud", small_recipe(steps=1), progress=True)
    said = capfd.readouterr().out
    assert "total" in said
    assert "learns from 12 examples" in said


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ({}, {"train_examples": []}, "0 examples to learn from"),
        ({"trainable": ("lora",)}, {}, "'lora' matches 0 of"),
        ({"trainable": ("connector", "!connector")}, {}, "0 of .* are left to train"),
        ({"micro_batch_size": 3}, {}, "global batch of 8 is no multiple of 3 examples x 1"),
        ({"stage": "align"}, {}, "images, but stage align takes at most 1"),
        ({"model": {"tokenizer_size": 9}}, {"processor": None}, "without its processor"),
        (
            {"optimizer": {"learning_rate_multipliers": {"vision_encoder": 0.1}}},
            {},
            "'vision_encoder' matches 0 trained",
        ),
        (
            {"trainable": ("vision_encoder",), "data": {"feature_cache": "cache"}},
            {},
            "for a frozen vision encoder",
        ),
        ({}, {"train_examples": [UNANSWERED]}, "e: no answer"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    tmp_path: Path, recipe: dict, changes: dict, message: str
) -> None:
    with pytest.raises(PolyptychError, match=message) as error:
        run(tmp_path, small_recipe(**recipe), **changes)
    assert "\n" not in str(error.value)


def test_an_error_in_a_worker_is_one_line(tmp_path: Path) -> None:
    example = tiny_examples(1)[0]
    bad = Example("torn", example.messages, (type(example.images[0])(data=b"no image"),) * 2)
    with pytest.raises(PolyptychError, match="torn") as error:
        run(tmp_path, small_recipe(data={"workers": 1}), train_examples=[bad])
    assert "\n" not in str(error.value)
    assert not str(error.value).startswith("polyptych.")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    recipe = small_recipe(optimizer={"learning_rate": 1e20, "max_grad_norm": 0})
    with pytest.raises(PolyptychError, match=r"the loss is \w+ at step \d"):
        run(tmp_path, recipe)


def test_batches_are_shared_among_processes() -> None:
    assert batch_split(small_recipe(), processes=2) == (4, 1)
    assert batch_split(small_recipe(micro_batch_size=2), processes=2) == (2, 2)
    with pytest.raises(PolyptychError, match="8 is no multiple of 2 examples x 3 processes"):
        batch_split(small_recipe(), processes=3)
