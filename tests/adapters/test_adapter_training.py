"""Training a tiny adapted base by a recipe, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_bases import base_model, processor_of
from typer.testing import CliRunner

from polyptych.adapters.adapt import adapt
from polyptych.adapters.image_only import save_processor
from polyptych.adapters.sam import Sam
from polyptych.adapters.training import adapted_for
from polyptych.adapters.vpgc import VpgC
from polyptych.cli import app
from polyptych.data.records import read_records
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.task import GenerationSettings
from polyptych.recipes import load_recipe
from polyptych.serving.answerers import load_answerer
from polyptych.training.supervised import train

TINY = (
    "precision=fp32",
    "steps=2",
    "global_batch_size=2",
    "micro_batch_size=2",
    "gradient_checkpointing=false",
    "tensorboard=false",
    "log_every=1",
    "threads=1",
    'validation={"batch_size": 2, "select_by": "loss"}',
)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four examples of Storybook with small pictures, and tiny bases beside them."""
    folder = tmp_path_factory.mktemp("storybook")
    runner = CliRunner()
    made = runner.invoke(
        app,
        [
            "data",
            "make",
            "storybook",
            "--task",
            "group_captioning",
            "--count",
            "4",
            "--out",
            str(folder),
        ],
    )
    assert made.exit_code == 0, made.output
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA and a Qwen2-VL as folders of transformers."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("llava", "qwen2_vl"):
        base_model(kind).save_pretrained(folder / kind)
        save_processor(processor_of(kind), folder / kind)
    return folder


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_a_base_is_trained_from_the_command_line(
    kind: str, records: Path, bases: Path, tmp_path: Path
) -> None:
    data = json.dumps({"train": [str(records)], "validation": [str(records)]})
    command = ["train", "modern", *TINY, f"data={data}", "--out", str(tmp_path)]
    command += ["--base", str(bases / kind), "--methods", "sam,vpgc"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    kept = sorted(path.name for path in (tmp_path / "final").iterdir())
    assert "polyptych_adapter.safetensors" in kept and "model.safetensors" not in kept
    model, processor = adapt(tmp_path / "final")
    moved = model.get_parameter("model.polyptych_methods.sam.w_to_query.weight")
    assert moved.any()
    assert (
        processor is not None and processor.tokens_per_image == {"llava": 16, "qwen2_vl": 4}[kind]
    )
    # It is evaluated like any other model.
    asked = list(read_records(records / "records.jsonl"))[:2]
    settings = GenerationSettings(max_new_tokens=2, num_beams=1)
    said = load_answerer(str(tmp_path / "final")).answer(asked, settings)
    assert said == answer(model, processor, asked, settings)
    # A second start finds the finished run.
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output


def test_a_killed_run_goes_on_and_a_trained_base_is_saved_with_its_methods(
    records: Path, bases: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("modern").with_overrides(
        [
            *TINY,
            "steps=3",
            "save_every=1",
            'trainable=["polyptych_methods", "model.language_model"]',
            json.dumps({"train": [str(records)]}).join(["data=", ""]),
        ]
    )

    def run(out: Path, steps: int | None = None) -> Any:
        model, processor = adapted_for(recipe, str(bases / "llava"), "sam,vpgc")
        if steps is not None:
            forward, calls = model.forward, iter(range(steps))

            def killed(*args: Any, **kwargs: Any) -> Any:
                next(calls)
                return forward(*args, **kwargs)

            model.forward = killed
        return train(recipe, out=out, model=model, processor=processor), model

    whole, model = run(tmp_path / "whole")
    with pytest.raises(StopIteration):
        run(tmp_path / "killed", steps=2)
    resumed, again = run(tmp_path / "killed")
    assert resumed.loss == whole.loss
    for name, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
    saved, _ = adapt(tmp_path / "killed" / "final")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, saved.get_parameter(name)), name


def test_answers_come_from_the_runner_of_evaluations(records: Path, bases: Path) -> None:
    model, processor = adapt(bases / "qwen2_vl", [Sam(), VpgC()])
    examples = list(read_records(records / "records.jsonl"))[:3]
    settings = GenerationSettings(max_new_tokens=3, num_beams=2)
    together = answer(model, processor, examples, settings)
    assert len(together) == 3
    assert together == [answer(model, processor, [one], settings)[0] for one in examples]


def test_words_that_do_not_fit_together_are_refused(bases: Path) -> None:
    refused = CliRunner().invoke(app, ["train", "modern", "--methods", "sam"])
    assert refused.exit_code == 2
    with pytest.raises(PolyptychError, match="storybook_finetune starts from 'storybook-base'"):
        adapted_for(load_recipe("storybook_finetune"), str(bases / "llava"), None)
    small, _ = adapted_for(load_recipe("modern"), str(bases / "llava"), None)
    assert small.dtype == torch.bfloat16 and [*small.methods] == ["sam", "vpgc"]


def test_lora_of_a_recipe_learns_beside_the_methods(
    records: Path, bases: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    data = json.dumps({"train": [str(records)]})
    overrides = [*TINY, f"data={data}", 'lora={"rank": 2, "alpha": 4}']
    recipe = load_recipe("modern").with_overrides(overrides)
    model, processor = adapted_for(recipe, str(bases / "llava"), "sam")
    train(recipe, out=tmp_path, model=model, processor=processor)
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "polyptych_methods" in name for name in learned)
    assert not [name for name in learned if "vision" in name]
    saved, _ = adapt(tmp_path / "final")
    examples = list(read_records(records / "records.jsonl"))[:2]
    batch = processor.collate(examples, training=True)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            saved(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4
        )
