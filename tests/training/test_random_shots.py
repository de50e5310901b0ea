"""Random numbers of shots: seeded, one for each place of the order, and the first ones kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.testing import tiny_camml, tiny_camml_processor, tiny_shot_examples
from polyptych.training.data import TrainingData
from polyptych.training.recipe import DataRecipe, DataSource, OptimizerRecipe, Recipe
from polyptych.training.shots import RandomShots
from polyptych.training.supervised import train

EXAMPLES = tiny_shot_examples(6, (4, 1, 0))


def counts(shots: RandomShots) -> list[int]:
    return [len(shots[index].shots) for index in range(len(shots))]


def test_the_first_shots_are_kept_and_their_number_is_drawn_anew_at_every_place() -> None:
    order = EXAMPLES[:1] * 300
    drawn = RandomShots(order, 3, seed=0)
    for index in range(20):
        assert drawn[index].shots == EXAMPLES[0].shots[: len(drawn[index].shots)]
    spread = Counter(counts(drawn))
    assert set(spread) == {1, 2, 3} and min(spread.values()) > 70
    assert counts(drawn) == counts(RandomShots(order, 3, seed=0))
    assert counts(drawn) != counts(RandomShots(order, 3, seed=1))


def test_an_example_with_fewer_keeps_what_it_has() -> None:
    drawn = RandomShots(EXAMPLES * 20, 10, seed=0)
    assert {(len(e.shots), n) for e, n in zip(EXAMPLES * 20, counts(drawn), strict=True)} == {
        *((4, n) for n in (1, 2, 3, 4)),
        (1, 1),
        (0, 0),
    }


def recipe(path: Path, **changes: object) -> Recipe:
    fields: dict[str, object] = {
        "trainable": ("camml",),
        "data": DataRecipe(train=(DataSource(path=str(path)),), random_shots=3),
        "optimizer": OptimizerRecipe(learning_rate=1e-3),
        "steps": 3,
        "global_batch_size": 2,
        "tensorboard": False,
    }
    return Recipe(**(fields | changes))


def test_training_sees_the_drawn_numbers_in_any_micro_batch(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", EXAMPLES)
    data = TrainingData(recipe(tmp_path / "r.jsonl"))
    drawn = [len(data.train[index].shots) for index in range(len(data.train))]
    assert len(drawn) == 6 and max(drawn) <= 3

    weights = []
    for micro in (1, 2):
        model: Any = tiny_camml()
        seen: list[int] = []
        read = model.camml.context_tokens

        def spy(tokens: Any, numbers: Any, read: Any = read, seen: list[int] = seen) -> Any:
            seen.extend(numbers.tolist())
            return read(tokens, numbers)

        model.camml.context_tokens = spy
        train(
            recipe(tmp_path / "r.jsonl", micro_batch_size=micro),
            out=tmp_path / f"run{micro}",
            model=model,
            processor=tiny_camml_processor(),
        )
        # A micro batch of questions without shots does not call the perceivers.
        assert [n for n in seen if n] == [n for n in drawn if n]
        weights.append(model.camml.context_perceiver.vision_queries.detach().clone())
    torch.testing.assert_close(*weights, atol=1e-5, rtol=0)


def test_no_number_below_one() -> None:
    with pytest.raises(PolyptychError, match="random_shots"):
        Recipe(data={"random_shots": 0})
