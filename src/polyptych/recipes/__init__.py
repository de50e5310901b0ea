"""Recipes: one training run = one short Python file with ``RECIPE = Recipe(...)``.

Every value in such a file says where it comes from. :func:`load_recipe` finds a recipe of this
package by name and any other by path.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.training.recipe import Recipe, read_recipe

__all__ = ["Recipe", "load_recipe", "recipe_names"]


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem[0] != "_")


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of that name, or of a ``.py`` file or a run's ``recipe.json`` at that path.

    Raises:
        PolyptychError: If there is no such recipe, or the file defines none.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        return read_recipe(path)
    if str(name_or_path) in recipe_names():
        path = Path(__file__).with_name(f"{name_or_path}.py")
    if path.suffix != ".py" or not path.is_file():
        raise PolyptychError(
            f"{name_or_path}: no recipe of this name or path; known: {', '.join(recipe_names())}"
        )
    try:
        recipe = runpy.run_path(str(path)).get("RECIPE")
    except PolyptychError as error:
        raise PolyptychError(f"{path}: {error}") from error
    except Exception as error:
        raise PolyptychError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise PolyptychError(f"{path}: defines no RECIPE = Recipe(...)")
    return recipe
