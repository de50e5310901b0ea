"""Preference tuning: what it learns, what it keeps still, and that a kill costs nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl")

import trl.trainer.base_trainer
from preference_runs import logged, pairs_of, run, saved_llava, small_settings

from polyptych.errors import PolyptychError
from polyptych.testing import (
    tiny_camml,
    tiny_camml_processor,
    tiny_cheetah,
    tiny_examples,
    tiny_model,
    tiny_processor,
    tiny_shot_examples,
)
from polyptych.training.preference import draw_order, tune
from polyptych.training.preference_trainer import PreferenceTracker, PreferenceTrainer

LN2 = math.log(2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llava(tmp_path_factory.mktemp("models") / "llava")


def adapter_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def test_it_learns_the_preference_from_ln_2_on(model: Path, tmp_path: Path) -> None:
    settings = small_settings(steps=12, global_batch_size=3, save_every=None)
    run(model, tmp_path, settings, pairs=pairs_of(tiny_examples(3)))
    losses, margins = logged(tmp_path), logged(tmp_path, "rewards/margins")
    assert losses[0] == pytest.approx(LN2, abs=1e-6)
    assert margins[0] == pytest.approx(0.0, abs=1e-5)
    assert losses[-1] < 0.5 and margins[-1] > 0.3
    assert logged(tmp_path, "rewards/accuracies")[-1] == 1.0


def test_only_the_language_model_gets_adapters(model: Path, tmp_path: Path) -> None:
    adapter = run(model, tmp_path, small_settings(steps=1))
    names = load_file(adapter / "adapter_model.safetensors")
    assert names and all(".language_model." in name and ".lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)
    assert len(names) == 2 * 7 * 2  # A and B of seven linear layers in two decoder layers


def test_the_connector_learns_if_asked(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path, small_settings(steps=2, train_connector=True))
    before = load_file(model / "model.safetensors")
    after = {
        name.removeprefix("base_model.model."): value
        for name, value in adapter_of(tmp_path).items()
        if "lora" not in name
    }
    assert after.keys() == {n for n in before if n.startswith("connector.")}
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    assert logged(tmp_path)[0] == pytest.approx(LN2, abs=1e-6)


def test_a_killed_run_ends_as_one_that_was_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(steps=5, save_every=2)
    run(model, tmp_path / "whole", settings)

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        return PreferenceTracker.__mro__[1].on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PreferenceTracker, "on_step_end", kill)
        run(model, tmp_path / "killed", settings)
    assert not (tmp_path / "killed" / "result.json").exists()
    run(model, tmp_path / "killed", settings)
    whole, killed = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    assert logged(tmp_path / "whole") == logged(tmp_path / "killed")

    with pytest.raises(PolyptychError, match="seed was 0, is 1"):
        run(model, tmp_path / "killed", small_settings(steps=5, save_every=2, seed=1))
    run(model, tmp_path / "killed", settings)  # finished: nothing happens


def test_the_reference_is_computed_once_and_refused_to_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reference.jsonl"
    settings = small_settings(steps=1, reference=str(file))
    run(model, tmp_path / "first", settings)
    lines = file.read_bytes()
    assert lines.count(b"\n") == 1 + 7
    file.write_bytes(lines[:-10])  # killed while writing the last line
    seen: list[int] = []
    original = PreferenceTrainer._reference_scores

    def counted(self, indices):
        seen.extend(indices)
        return original(self, indices)

    monkeypatch.setattr(PreferenceTrainer, "_reference_scores", counted)
    run(model, tmp_path / "second", settings)
    assert len(seen) == 1
    assert sorted(file.read_bytes().splitlines()) == sorted(lines.splitlines())
    run(model, tmp_path / "third", settings)
    assert len(seen) == 1

    other = saved_llava(tmp_path / "other", seed=1)
    with pytest.raises(PolyptychError, match="of another reference: weights was"):
        run(other, tmp_path / "fourth", settings)
    with pytest.raises(PolyptychError, match="variant was 'plain', is 'released'"):
        run(model, tmp_path / "fifth", settings.model_copy(update={"variant": "released"}))


def test_starting_again_forgets_the_run_before(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path, small_settings(steps=1))
    with pytest.raises(PolyptychError, match="variant was 'plain', is 'released'"):
        run(model, tmp_path, small_settings(steps=1, variant="released"))
    run(model, tmp_path, small_settings(steps=1, variant="released"), resume=False)
    head = (tmp_path / "reference.jsonl").read_text().splitlines()[0]
    assert json.loads(head)["reference"]["variant"] == "released"


def test_a_loss_that_is_no_number_names_the_pairs(model: Path, tmp_path: Path) -> None:
    settings = small_settings(steps=4, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(PolyptychError, match=r"loss is nan after \d steps; pairs of the batch: t"):
        run(model, tmp_path, settings)


@pytest.mark.parametrize("change", [{"micro_batch_size": 1}, {"gradient_checkpointing": True}])
def test_how_it_is_computed_does_not_change_what_is_learned(
    model: Path, tmp_path: Path, change: dict
) -> None:
    run(model, tmp_path / "whole", small_settings(steps=2))
    run(model, tmp_path / "other", small_settings(steps=2, **change))
    assert logged(tmp_path / "other") == pytest.approx(logged(tmp_path / "whole"), abs=1e-4)


def test_features_come_from_the_cache(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "features"
    run(model, tmp_path / "run", small_settings(steps=2, feature_cache=str(cache)))
    images = {image.data for pair in pairs_of(tiny_examples(7)) for image in pair.images}
    assert len((cache / "index.txt").read_text().split()) == len(images)
    assert logged(tmp_path / "run")[0] == pytest.approx(LN2, abs=1e-6)


def test_nothing_is_sent_anywhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("telemetry")

    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", refuse)
    run(model, tmp_path, small_settings(steps=1))
    told = json.loads((tmp_path / "recipe.json").read_text())
    assert told["recipe"]["tensorboard"] is False
    assert not list(tmp_path.glob("**/README.md")) and not list(tmp_path.glob("events.out.*"))


FAMILIES = {
    "sam": (tiny_model, tiny_processor, tiny_examples),
    "cheetah": (tiny_cheetah, tiny_processor, tiny_examples),
    "camml": (tiny_camml, tiny_camml_processor, tiny_shot_examples),
    "sam over gpt2": (lambda: tiny_model(decoder="gpt2"), tiny_processor, tiny_examples),
    "sam over opt": (lambda: tiny_model(decoder="opt"), tiny_processor, tiny_examples),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_can_be_tuned(tmp_path: Path, family: str) -> None:
    build, build_processor, examples = FAMILIES[family]
    build().save_pretrained(tmp_path / "model")
    build_processor().save_pretrained(tmp_path / "model")
    settings = small_settings(steps=2, global_batch_size=4, variant="released")
    run(tmp_path / "model", tmp_path / "run", settings, pairs=pairs_of(examples(4)))
    losses = logged(tmp_path / "run")
    assert losses[0] == pytest.approx(LN2, abs=1e-6)
    assert losses[1] < losses[0]  # the same four pairs


def test_no_pairs_and_no_trl_are_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PolyptychError, match="0 pairs"):
        tune([], model, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    with pytest.raises(PolyptychError, match=r"pip install 'polyptych\[prefer\]'"):
        run(model, tmp_path)


def test_every_pair_comes_once_before_any_comes_again() -> None:
    order = draw_order(5, 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert len(order) == 12 and order == draw_order(5, 12, seed=3) != draw_order(5, 12, seed=4)


def test_the_trainer_scores_what_the_loss_compares(model: Path, tmp_path: Path) -> None:
    """The logged rewards are beta times the log-probabilities' distance from the file's."""
    run(model, tmp_path, small_settings(steps=2, global_batch_size=7))
    lines = (tmp_path / "reference.jsonl").read_text().splitlines()[1:]
    chosen = [json.loads(line)["chosen"] for line in lines]
    assert len(chosen) == 7
    now, reward = logged(tmp_path, "logps/chosen")[1], logged(tmp_path, "rewards/chosen")[1]
    assert reward == pytest.approx(0.1 * (now - sum(chosen) / 7), abs=1e-4)
