"""A merged folder answers as base and adapter together, or it is not written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")

from peft import get_peft_model
from typer.testing import CliRunner

from polyptych import cli
from polyptych.errors import PolyptychError
from polyptych.models import merging
from polyptych.models.checkpoint import load_model
from polyptych.models.merging import ADAPTER, BASE, Merge, describe_base, merge_adapter
from polyptych.testing import (
    tiny_camml,
    tiny_camml_processor,
    tiny_cheetah,
    tiny_llava,
    tiny_llava_processor,
    tiny_model,
    tiny_processor,
)
from polyptych.training.lora import lora_config

FAMILIES = {
    "llava": (tiny_llava, tiny_llava_processor),
    "sam": (tiny_model, tiny_processor),
    "cheetah": (tiny_cheetah, tiny_processor),
    "camml": (tiny_camml, tiny_camml_processor),
    "sam over gpt2": (lambda: tiny_model(decoder="gpt2"), tiny_processor),
}


def base_and_adapter(folder: Path, family: str, train_connector: bool = False) -> tuple[Path, Path]:
    """A saved model, and an adapter of it whose weights are drawn at random."""
    build, build_processor = FAMILIES[family]
    build().save_pretrained(folder / "base")
    build_processor().save_pretrained(folder / "base")
    model, _ = load_model(folder / "base")
    config = lora_config(model, rank=2, alpha=4, train_connector=train_connector)
    adapted = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    described = describe_base(load_model(folder / "base")[0])
    (folder / "adapter" / BASE).write_text(json.dumps(described))
    return folder / "base", folder / "adapter"


@pytest.fixture
def llava(tmp_path: Path) -> tuple[Path, Path]:
    return base_and_adapter(tmp_path, "llava")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_answers_as_both_together(tmp_path: Path, family: str) -> None:
    base, adapter = base_and_adapter(tmp_path, family, train_connector=family == "llava")
    merge = merge_adapter(adapter, tmp_path / "merged")
    assert merge.drift < 1e-5 < 1e-2 < merge.effect
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(merge.folder / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {"language_model", "connector"} if family == "llava" else {"language_model"}
    assert {name.split(".")[0] for name in changed} == parts
    assert not list(tmp_path.glob("*.partial"))
    load_model(merge.folder)


def test_half_precision_is_said_and_checked(llava: tuple[Path, Path], tmp_path: Path) -> None:
    merge = merge_adapter(llava[1], tmp_path / "merged", precision="float16")
    assert 1e-7 < merge.drift < 1e-2
    weights = load_file(merge.folder / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {
        torch.float16
    }


def test_drift_is_an_error_and_leaves_nothing(
    llava: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = merging.load_model

    def damaged(name, **kwargs):
        model, processor = original(name, **kwargs)
        if str(name).endswith(".partial"):
            next(model.language_model.model.layers.parameters()).data.mul_(1.5)
        return model, processor

    monkeypatch.setattr(merging, "load_model", damaged)
    with pytest.raises(
        PolyptychError, match=r"merged: not written: its logits are .* off those of"
    ):
        merge_adapter(llava[1], tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob("*.partial"))


def test_another_base_is_refused(llava: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_llava(seed=1).save_pretrained(tmp_path / "other")
    tiny_llava_processor().save_pretrained(tmp_path / "other")
    with pytest.raises(PolyptychError, match=r"was learned on weights .*; those of .*other are"):
        merge_adapter(llava[1], tmp_path / "merged", base=tmp_path / "other")


def test_an_incomplete_or_missing_adapter_is_refused(
    llava: tuple[Path, Path], tmp_path: Path
) -> None:
    weights = load_file(llava[1] / ADAPTER)
    name = sorted(weights)[0]
    shutil.copytree(llava[1], tmp_path / "less")
    save_file({n: v for n, v in weights.items() if n != name}, tmp_path / "less" / ADAPTER)
    with pytest.raises(PolyptychError, match=r"1 tensors have no counterpart: base_model.*"):
        merge_adapter(tmp_path / "less", tmp_path / "merged")
    with pytest.raises(PolyptychError, match="nothing: no adapter here"):
        merge_adapter(tmp_path / "nothing", tmp_path / "merged")
    (tmp_path / "merged").mkdir()
    with pytest.raises(PolyptychError, match="exists already"):
        merge_adapter(llava[1], tmp_path / "merged")


def test_an_adapter_says_which_model_it_is_of(llava: tuple[Path, Path], tmp_path: Path) -> None:
    config = llava[1] / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "base_model_name_or_path": None}))
    with pytest.raises(PolyptychError, match="does not say which model it belongs to"):
        merge_adapter(llava[1], tmp_path / "merged")
    merge = merge_adapter(llava[1], tmp_path / "merged", base=llava[0])
    assert isinstance(merge, Merge) and merge.base == str(llava[0])


def test_the_command_merges_and_says_how_far_it_is(
    llava: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ["merge", str(llava[1]), "--out", str(tmp_path / "merged")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "off those of base and adapter together" in done.output
    again = CliRunner().invoke(cli.app, words)
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.endswith("merged: exists already\n")
    wrong = CliRunner().invoke(cli.app, [*words[:-1], str(tmp_path / "x"), "--precision", "int8"])
    assert wrong.exit_code == 2 and "known: float32, float16, bfloat16" in wrong.stderr
