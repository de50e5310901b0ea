"""What goes wrong with adapted bases: one clear line each, and nothing is lost."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from family_bases import MIXED, adapted, base_model, draw, logits_of, processor_of
from transformers import PreTrainedConfig

from polyptych.adapters.adapt import adapt
from polyptych.adapters.sam import Sam
from polyptych.errors import PolyptychError
from polyptych.recipes import load_recipe
from polyptych.training.supervised import train

SHORT = (
    "precision=fp32",
    "steps=2",
    "global_batch_size=2",
    "micro_batch_size=1",
    "gradient_checkpointing=false",
    "tensorboard=false",
    "log_every=1",
    "save_every=1",
    "threads=1",
    "data={}",
)


@contextmanager
def disk_that_ends(after: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def one_line(error: Any) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def trained(out: Path, model: Any, processor: Any, examples: Any) -> Any:
    recipe = load_recipe("modern").with_overrides(SHORT)
    return train(recipe, out=out, model=model, processor=processor, train_examples=examples)


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PolyptychError) as error:
        adapt("nobody/no-such-base", [Sam()])
    assert one_line(error).startswith("nobody/no-such-base: no model here, nor on the hub: ")


def test_a_hub_name_that_brings_code_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is loaded: the config alone decides."""
    fields = {"model_type": "own_vlm", "auto_map": {"AutoModel": "modeling_own.OwnModel"}}
    monkeypatch.setattr(
        PreTrainedConfig, "get_config_dict", classmethod(lambda cls, path: (dict(fields), {}))
    )
    with pytest.raises(
        PolyptychError, match=r"'own_vlm' that brings code .*trust_remote_code"
    ) as e:
        adapt("nobody/own-code", [Sam()])
    assert one_line(e).startswith("nobody/own-code: ")


def test_a_full_disk_keeps_the_adapter_that_was_there(tmp_path: Path) -> None:
    model, processor = adapted("llava", Sam(), drawn=0.2)
    model.save_pretrained(tmp_path)
    batch = processor.collate(MIXED[:1], training=True)
    before = logits_of(model, batch)
    names = sorted(tmp_path.iterdir())
    draw(model, 0.4, seed=2)
    with disk_that_ends(after=2000), pytest.raises(PolyptychError) as error:
        model.save_pretrained(tmp_path)
    assert one_line(error).startswith(f"cannot write {tmp_path / 'polyptych_adapter.safetensors'}:")
    assert sorted(tmp_path.iterdir()) == names
    again, _ = adapt(base_model("llava"), adapter=tmp_path, processor=processor.processor)
    assert torch.equal(logits_of(again, batch), before)


def test_a_disk_that_fills_while_training_and_the_run_goes_on(tmp_path: Path) -> None:
    examples = [MIXED[0], MIXED[3]]

    def start() -> Any:
        return adapt(base_model("llava"), [Sam()], processor=processor_of("llava"))

    whole, processor = start()
    trained(tmp_path / "whole", whole, processor, examples)
    with disk_that_ends(after=20_000), pytest.raises(PolyptychError) as error:
        trained(tmp_path / "run", *start(), examples)
    assert one_line(error).startswith(f"cannot save {tmp_path / 'run'}")
    again, processor = start()
    trained(tmp_path / "run", again, processor, examples)
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name


def test_records_without_any_image_are_refused(tmp_path: Path) -> None:
    model, processor = adapted("qwen2_vl", Sam())
    with pytest.raises(PolyptychError, match="0 images in all 2 records to learn from") as error:
        trained(tmp_path, model, processor, [MIXED[1], MIXED[1]])
    one_line(error)
    assert not (tmp_path / "metrics.jsonl").exists()
