"""The shipped ways to spread a run, read without DeepSpeed and without a second process."""

from __future__ import annotations

import copy
import importlib.util
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from training_runs import PROCESSOR, run, small_model, small_recipe

from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.testing import tiny_examples
from polyptych.training.arguments import training_arguments
from polyptych.training.freezing import select_trainable
from polyptych.training.parallel import (
    PARALLEL,
    keep_in_step,
    parallel_arguments,
    shard_decoder_layers,
)
from polyptych.training.run_folder import RunFolder


def settings(name: str) -> dict:
    folder = files("polyptych.training").joinpath("configs")
    return json.loads(folder.joinpath(f"{name}.json").read_text())


FILLED_IN = {
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
    "gradient_clipping",
    "bf16.enabled",
}
"""What transformers takes from the training arguments where a DeepSpeed setting is ``auto``."""


def automatic(config: dict, prefix: str = "") -> set[str]:
    """Dotted names of all values that are ``auto``."""
    names = set()
    for name, value in config.items():
        if isinstance(value, dict):
            names |= automatic(value, f"{prefix}{name}.")
        elif value == "auto":
            names.add(prefix + name)
    return names


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_settings_are_read_as_accelerate_reads_them(name: str, stage: int) -> None:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    fields = settings(name)["deepspeed"]
    config = HfDeepSpeedConfig(copy.deepcopy(fields))
    assert (config.is_zero2(), config.is_zero3()) == (stage == 2, stage == 3)
    assert not config.is_offload()
    assert automatic(fields) == FILLED_IN  # the recipe decides them, nothing is said twice
    assert not config.is_false("zero_optimization.stage3_gather_16bit_weights_on_model_save")
    assert {"optimizer", "scheduler"}.isdisjoint(fields)  # the run's own are used


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is here")
def test_without_deepspeed_the_error_says_what_to_install() -> None:
    with pytest.raises(PolyptychError, match="zero2 needs DeepSpeed: pip install deepspeed"):
        parallel_arguments("zero2")


def test_fsdp2_names_its_version_and_needs_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings("fsdp2")["fsdp_config"]["version"] == 2
    with pytest.raises(PolyptychError, match="fsdp2 needs several processes, there is 1"):
        run(tmp_path, parallel="fsdp2")
    monkeypatch.setattr("polyptych.training.parallel.process_count", lambda: 2)
    args = training_arguments(small_recipe(), RunFolder(tmp_path), "fsdp2")
    assert args.fsdp_plugin_args is not None
    assert args.fsdp_plugin_args["fsdp_version"] == 2
    shard_decoder_layers(args, small_model(decoder="qwen2"))
    assert args.fsdp_plugin_args["transformer_cls_names_to_wrap"] == ["Qwen2DecoderLayer"]


def test_a_file_of_ones_own_and_unknown_names(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"ddp_bucket_cap_mb": 10}')
    args = training_arguments(small_recipe(), RunFolder(tmp_path), str(own))
    assert args.ddp_bucket_cap_mb == 10
    with pytest.raises(PolyptychError, match="'ddb' is neither a file nor one of ddp, fsdp2"):
        parallel_arguments("ddb")
    own.write_text("{")
    with pytest.raises(PolyptychError, match=r"own.json: not valid JSON"):
        parallel_arguments(str(own))
    assert set(PARALLEL) == {"ddp", "fsdp2", "zero2", "zero3"}


@pytest.mark.parametrize("counts", [(0,), (1,), (2, 0)])
def test_every_trained_parameter_takes_part_and_nothing_changes(counts: tuple[int, ...]) -> None:
    batch = Collator(PROCESSOR, training=True)(tiny_examples(2, counts))
    losses = []
    for in_step in (False, True):
        model = small_model().train()
        trained = select_trainable(model, ("connector", "vision_encoder", "language_model"))
        handle = keep_in_step(model) if in_step else None
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        without = [name for name in trained if model.get_parameter(name).grad is None]
        if handle is not None:
            assert without == []
            handle.remove()
            assert len(model._forward_hooks) == 0
        elif counts != (2, 0):
            assert without
    assert losses[0] == losses[1]
    with torch.no_grad():
        assert model(**batch, use_cache=False).loss.item() == losses[0]


def test_sharded_weights_refuse_a_batch_of_texts_instead_of_waiting() -> None:
    model = small_model()
    keep_in_step(model, whole_weights=False)
    collate = Collator(PROCESSOR, training=True)
    model(**collate(tiny_examples(2, (1, 0))), use_cache=False)
    with pytest.raises(PolyptychError, match="a batch of 2 examples has 0 images; under ZeRO-3"):
        model(**collate(tiny_examples(2, (0,))), use_cache=False)
