"""SIMA's commands on adapted bases: answers, critic, pairs, tuning from ln 2, the merged model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_bases import MIXED, draw
from typer.testing import CliRunner

from polyptych.adapters.adapt import adapt
from polyptych.adapters.image_only import save_processor
from polyptych.adapters.loading import load_any
from polyptych.adapters.sam import Sam
from polyptych.adapters.tiny import TINY, tiny_family
from polyptych.adapters.vpgc import VpgC
from polyptych.cli import app
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.task import GenerationSettings
from polyptych.methods.sima.records import read_responses, read_verdicts
from polyptych.methods.sima.responses import SamplingSettings, draw_candidates, prompt_seed
from polyptych.schema import PreferencePair
from polyptych.training.preference import tune
from polyptych.training.preference_data import TwoRowCollator
from polyptych.training.preference_settings import PreferenceSettings

KINDS = ("llava", "qwen2_vl")
"""Images of one size, and ragged ones with three axes of positions."""

TUNING = ("lora_rank=4", "learning_rate=0.001", "steps=3", "global_batch_size=6", "log_every=1")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with trained methods, saved as a training leaves it."""
    base, out = (tmp_path_factory.mktemp(name) for name in ("base", "adapted"))
    # The critic's prompt is long.
    model, processor = tiny_family(request.param, sizes=replace(TINY, positions=8192))
    model.save_pretrained(base)
    save_processor(processor, base)
    adapted, its_processor = adapt(base, [Sam(), VpgC()])
    draw(adapted, 0.3)
    adapted.save_pretrained(out)
    assert its_processor is not None
    its_processor.save_pretrained(out)
    return out


def call(*words: Any) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_stage_runs_on_an_adapted_base(folder: Path, tmp_path: Path) -> None:
    responses, verdicts = tmp_path / "responses.jsonl", tmp_path / "verdicts.jsonl"
    drawn = ("storybook/description", "--count", 6, "--model", folder, "--max-new-tokens", 6)
    call("sima", "respond", *drawn, "--out", responses)
    answers = [item.answers for item in read_responses(responses)]
    assert len(answers) == 6 and any(greedy != sampled for greedy, sampled in answers)
    call("sima", "criticise", responses, "--model", folder, "--out", verdicts)
    judged = [c for verdict in read_verdicts(verdicts) for c in verdict.comparisons]
    assert judged and all(len(c.orders) == 2 and c.margin is not None for c in judged)
    call("sima", "pair", verdicts, "--out", tmp_path)
    tuned = tmp_path / "tuned"
    settings = [word for setting in TUNING for word in ("--set", setting)]
    call("sima", "tune", tmp_path / "pairs.jsonl", "--model", folder, "--out", tuned, *settings)
    lines = (tuned / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0]
    call("merge", tuned / "adapter", "--out", tmp_path / "merged")
    model, _ = load_any(tmp_path / "merged")
    start, _ = load_any(folder)
    changed = {
        name
        for name, weight in model.state_dict().items()
        if not torch.equal(weight, start.state_dict()[name])
    }
    # LoRA in the decoder, and nothing else.
    assert changed and all("language_model" in name for name in changed)
    assert not any("polyptych_methods" in name for name in changed)


def test_answers_do_not_depend_on_their_batch(folder: Path) -> None:
    model, processor = load_any(folder)
    settings = SamplingSettings(samples=2, max_new_tokens=4)
    asked = [replace(example, messages=example.messages[:1]) for example in MIXED]
    seeds = [prompt_seed(0, example.id) for example in asked]
    together = draw_candidates(model, processor, asked, seeds, settings)
    greedy = answer(model, processor, asked, GenerationSettings(max_new_tokens=4))
    assert [texts[0] for texts in together] == greedy
    more = replace(settings, samples=3)
    for example, seed, texts in zip(asked, seeds, together, strict=True):
        assert draw_candidates(model, processor, [example], [seed], more)[0][:3] == texts


def pairs() -> list[PreferencePair]:
    return [
        PreferencePair(e.id, e.messages[:1], "a red ball in a tree", "a dog", e.images)
        for e in MIXED
    ]


def test_two_rows_score_the_answers_alone(folder: Path) -> None:
    _, processor = load_any(folder)
    batch = TwoRowCollator(processor, pairs())([{"index": 3}, {"index": 1}])
    rows, columns = batch["scored_rows"], batch["scored_columns"]
    assert torch.equal(batch["input_ids"][rows, columns + 1], batch["scored_targets"])
    words = [
        processor.tokenizer.decode(
            batch["scored_targets"][batch["scored_answers"] == answer], skip_special_tokens=True
        ).strip()
        for answer in range(4)
    ]
    assert words == ["a red ball in a tree"] * 2 + ["a dog"] * 2


def test_an_answer_beyond_the_limit_is_cut_and_a_prompt_beyond_it_refused(folder: Path) -> None:
    _, processor = load_any(folder)
    whole = TwoRowCollator(processor, pairs())([{"index": 1}])
    prompt = int(whole["last_prompt"][0]) + 1
    cut = TwoRowCollator(processor, pairs(), max_length=prompt + 2)([{"index": 1}])
    assert cut["scored_answers"].tolist() == [0, 0, 1, 1]
    assert cut["attention_mask"].sum(1).tolist() == [prompt + 2] * 2
    with pytest.raises(
        PolyptychError, match=rf"pair none: a prompt of {prompt} tokens .* {prompt}"
    ):
        TwoRowCollator(processor, pairs(), max_length=prompt)([{"index": 1}])


def test_what_only_models_of_ours_have_is_refused(folder: Path, tmp_path: Path) -> None:
    for change in ({"train_connector": True}, {"feature_cache": str(tmp_path / "cache")}):
        with pytest.raises(PolyptychError, match="for models of this package"):
            settings = PreferenceSettings(steps=1, **change)
            tune(pairs(), folder, tmp_path / "run", settings, load=load_any)
    assert not (tmp_path / "run").exists()
