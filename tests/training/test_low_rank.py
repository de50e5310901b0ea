"""LoRA in a recipe: what trains, what is saved, and that a resumed run is the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from process_runs import stopped
from training_runs import PROCESSOR, logged, run, small_model, small_recipe

from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_model
from polyptych.testing import tiny_examples

pytest.importorskip("peft")

from polyptych.training.low_rank import merged_weights

LOW_RANK = {"trainable": ("connector",), "lora": {"rank": 4, "alpha": 8}}


@pytest.mark.parametrize("decoder", ["llama", "gpt2"])
def test_saved_is_the_plain_model_with_the_adapters_merged(tmp_path: Path, decoder: str) -> None:
    model = small_model(decoder=decoder)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    result = run(tmp_path, small_recipe(**LOW_RANK), model=model)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(".lora_B." in name for name in learned)
    assert all(".lora_" in name or name.startswith("connector.") for name in learned)
    loaded, _ = load_model(result.final)
    saved = loaded.state_dict()
    assert saved.keys() == plain.keys()
    changed = {name for name, value in saved.items() if not torch.equal(value, plain[name])}
    assert any(name.startswith("language_model.") for name in changed)
    assert not any(name.startswith("vision_encoder.") for name in changed)
    batch = dict(PROCESSOR(text="what?", images=None))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4
        )
    again = small_model(decoder=decoder)
    run(tmp_path, small_recipe(**LOW_RANK), model=again)  # was finished: its weights are loaded
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, loaded(**batch).logits)


def test_validation_and_saving_leave_the_training_alone_and_it_goes_on(tmp_path: Path) -> None:
    """The best model is saved on the way; the resumed run is bit for bit the whole one."""
    recipe = small_recipe(**LOW_RANK, save_every=2, validation={"select_by": "loss", "every": 1})
    examples = tiny_examples(3)
    run(tmp_path / "plain", small_recipe(**LOW_RANK))
    run(tmp_path / "whole", recipe, validation_examples=examples)
    assert logged(tmp_path / "whole") == logged(tmp_path / "plain")
    stopped(tmp_path / "cut", 3, recipe=recipe, train_examples=tiny_examples(12))
    run(tmp_path / "cut", recipe, validation_examples=examples)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert logged(tmp_path / "cut", "validation_loss") == logged(
        tmp_path / "whole", "validation_loss"
    )


def test_merging_does_not_touch_the_model(tmp_path: Path) -> None:
    model = small_model()
    run(tmp_path, small_recipe(**LOW_RANK, steps=2), model=model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged_weights(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_cannot_have_an_adapter_and_learn_itself(tmp_path: Path) -> None:
    recipe = small_recipe(lora={"rank": 2})  # trainable has the language model in it
    with pytest.raises(PolyptychError, match=r"\.weight has a LoRA adapter and is chosen itself"):
        run(tmp_path, recipe)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here"
)
def test_four_bits_need_bitsandbytes(tmp_path: Path) -> None:
    recipe = small_recipe(**LOW_RANK, model={"quantization": "nf4"})
    with pytest.raises(PolyptychError, match="needs bitsandbytes: pip install bitsandbytes"):
        run(tmp_path, recipe)
