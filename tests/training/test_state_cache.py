"""Training from kept states of the lower decoder layers equals training through all layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyptych.data.collation import Collator
from polyptych.data.dataset import ExampleDataset
from polyptych.data.mixture import mixture
from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.language.state_cache import StateCache
from polyptych.testing import tiny_cheetah, tiny_examples, tiny_model, tiny_processor
from polyptych.training.data import TrainingData
from polyptych.training.recipe import Recipe
from polyptych.training.supervised import train


def recipe(**data: object) -> Recipe:
    return Recipe(
        trainable=("vpgc",),
        data=data,
        optimizer={"learning_rate": 1e-2},
        steps=4,
        global_batch_size=4,
        threads=1,
        tensorboard=False,
    )


def test_training_from_kept_states_equals_training_through_all_layers(tmp_path: Path) -> None:
    trained = []
    for name, data in {
        "whole": {},
        "kept": {
            "feature_cache": str(tmp_path / "features"),
            "state_cache": str(tmp_path / "states"),
        },
    }.items():
        model = tiny_cheetah()
        train(
            recipe(**data),
            out=tmp_path / name,
            model=model,
            processor=tiny_processor(),
            train_examples=tiny_examples(8, (2, 3, 1)),
        )
        trained.append(model.vpgc.state_dict())
    start = tiny_cheetah().vpgc.state_dict()
    for name, value in trained[0].items():
        assert (value - start[name]).abs().max() > 1e-3, f"{name} did not learn"
        # Image features are kept in half precision.
        torch.testing.assert_close(trained[1][name], value, atol=2e-3, rtol=0)


def fill(cache: StateCache, count: int) -> int:
    model, processor = tiny_cheetah(), tiny_processor()
    return cache.fill(
        tiny_examples(count),
        lambda batch: model.lower_states(**batch),
        Collator(processor, training=True),
        lambda example: processor.encode(example, with_target=True),
        batch_size=2,
    )


def test_a_torn_end_is_written_again(tmp_path: Path) -> None:
    assert fill(StateCache(tmp_path, "m"), 6) == 6
    for name, cut in (("states.bin", 100), ("index.txt", 3)):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-cut])
    again = StateCache(tmp_path, "m")
    assert len(again) == 5
    assert fill(again, 6) == 1
    reopened = StateCache(tmp_path, "m")
    assert len(reopened) == 6

    examples, processor, model = tiny_examples(6), tiny_processor(), tiny_cheetah()
    batch = Collator(processor, training=True)(examples)
    rows = [processor.encode(example, with_target=True) for example in examples]
    here = batch["attention_mask"].bool()
    torch.testing.assert_close(
        reopened.states(examples, rows)[here], model.lower_states(**batch)[here]
    )


def test_states_of_another_model_are_refused(tmp_path: Path) -> None:
    fill(StateCache(tmp_path, "layer 1 of a"), 2)
    with pytest.raises(PolyptychError, match="states of layer 1 of a, not of layer 1 of b"):
        StateCache(tmp_path, "layer 1 of b")


def test_kept_states_need_a_method_at_a_layer_and_a_frozen_lower_half(tmp_path: Path) -> None:
    processor, examples = tiny_processor(), tiny_examples(4)
    for model, trainable, message in (
        (tiny_model(), ("connector",), "not for a polyptych_sam"),
        (tiny_cheetah(), ("vpgc", "connector"), "connector.* below it is trained"),
    ):
        with pytest.raises(PolyptychError, match=message):
            train(
                recipe(state_cache=str(tmp_path / "s")).model_copy(update={"trainable": trainable}),
                out=tmp_path / message[:8],
                model=model,
                processor=processor,
                train_examples=examples,
            )


def test_exact_shares_hold_in_every_step() -> None:
    sets = [ExampleDataset(tiny_examples(count), load_images=False) for count in (5, 7)]
    mixed = mixture(sets, [3, 8], length=44, block=11)
    for start in range(0, 44, 11):
        assert (mixed.items[start : start + 11, 0] == 0).sum() == 3
    passes = mixture(sets, [4, 8], length=48, block=12, together=4).items[:, 0].reshape(-1, 4)
    assert all(len(set(one)) == 1 for one in passes)
    assert [int(step.sum()) for step in passes.reshape(-1, 12)] == [8] * 4
    assert len({tuple(step[::4]) for step in passes.reshape(-1, 12)}) > 1  # in changing order
    with pytest.raises(PolyptychError, match=r"exact shares of 4 of 8 items would be 1.09"):
        mixture(sets, [3, 8], length=8, block=4)


def test_every_image_of_every_set_is_cached(tmp_path: Path) -> None:
    """Sets of different sizes, the larger first; each with images of its own."""
    examples = tiny_examples(8, (2, 1))
    for name, part in (("large", examples[:6]), ("small", examples[6:])):
        write_records(tmp_path / name / "records.jsonl", part)
    sources = [str(tmp_path / name / "records.jsonl") for name in ("large", "small")]
    data = TrainingData(recipe(train=sources, feature_cache=str(tmp_path / "features")))
    cache = data.features(tiny_cheetah().requires_grad_(False), tiny_processor())
    assert cache is not None
    assert len(cache) == sum(len(example.images) for example in examples)
