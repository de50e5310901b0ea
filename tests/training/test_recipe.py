"""Recipes: round trip, overrides, and what is wrong with a bad one in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_runs import run, small_recipe

from polyptych.errors import PolyptychError
from polyptych.recipes import load_recipe, recipe_names
from polyptych.training.recipe import DataSource, Recipe, read_recipe


def test_a_recipe_survives_json_and_the_run(tmp_path: Path) -> None:
    recipe = small_recipe(
        steps=1,
        optimizer={"learning_rate": 1e-3, "learning_rate_multipliers": {"language_model": 0.1}},
    )
    assert Recipe(**json.loads(recipe.model_dump_json())) == recipe
    run(tmp_path, recipe)
    assert read_recipe(tmp_path / "recipe.json") == recipe
    assert load_recipe(tmp_path / "recipe.json") == recipe
    saved = json.loads((tmp_path / "recipe.json").read_text())
    assert saved["recipe"]["optimizer"]["betas"] == [0.9, 0.999]  # defaults are written out
    assert {"python", "torch", "transformers"} <= saved["versions"].keys()
    assert saved["data"]["train"][0]["examples"] == 12


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe(**recipe.model_dump(mode="json")) == recipe


def test_recipes_come_from_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from polyptych.recipes import Recipe\nRECIPE = Recipe(name='mine', steps=3)\n")
    assert load_recipe(path) == Recipe(name="mine", steps=3)
    assert load_recipe(str(path)).steps == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("RECIPE = 3", "defines no RECIPE"),
        ("1 / 0", "ZeroDivisionError"),
        ("from polyptych.recipes import Recipe\nRECIPE = Recipe(step=3)", "recipe: step: Extra"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(PolyptychError, match=f"bad.py: .*{message}"):
        load_recipe(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PolyptychError, match=r"nothing: no recipe .*storybook_align"):
        load_recipe("nothing")


def test_plain_paths_are_sources() -> None:
    recipe = Recipe(data={"train": ["a.jsonl", {"path": "b.jsonl", "limit": 3}]})
    assert recipe.data.train == (DataSource(path="a.jsonl"), DataSource(path="b.jsonl", limit=3))


def test_overrides() -> None:
    recipe = Recipe().with_overrides(
        [
            "optimizer.learning_rate=1e-3",
            "name=run 2",
            'trainable=["guidance"]',
            "data.train=new.jsonl",
            "save_every=null",
            "model.config.num_query_tokens=4",
        ]
    )
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.name == "run 2"
    assert recipe.trainable == ("guidance",)
    assert recipe.data.train == (DataSource(path="new.jsonl"),)
    assert recipe.save_every is None
    assert recipe.model.config == {"num_query_tokens": 4}
    assert Recipe().name == "run"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "is no FIELD=VALUE"),
        ("optimiser.eps=1", "the recipe has no optimiser.eps"),
        ("optimizer.lr=1", r"recipe: optimizer.lr: Extra"),
        ("steps=many", r"recipe: steps: .*got 'many'"),
        ("steps=0", r"recipe: steps: .*greater than 0, got 0"),
        ("stage=pretrain", r"recipe: stage: .*'align' or 'finetune', got 'pretrain'"),
    ],
)
def test_bad_overrides_are_said_in_one_line(override: str, message: str) -> None:
    with pytest.raises(PolyptychError, match=message) as error:
        Recipe().with_overrides([override])
    assert "\n" not in str(error.value)
