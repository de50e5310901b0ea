"""Recipes: one training run = one short Python file with ``RECIPE = Recipe(...)``.

Preference tunings, which start from pairs, have ``SETTINGS = PreferenceSettings(...)`` instead.
Every value in such a file says where it comes from. :func:`load_recipe` and
:func:`load_preference_settings` find what comes with the package by name and any other by path.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import TypeVar

from polyptych.errors import PolyptychError
from polyptych.training.preference_settings import PreferenceSettings
from polyptych.training.recipe import Recipe, read_recipe

__all__ = [
    "PreferenceSettings",
    "Recipe",
    "load_preference_settings",
    "load_recipe",
    "preference_names",
    "recipe_names",
]

Kind = TypeVar("Kind", Recipe, PreferenceSettings)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return _names("RECIPE")


def preference_names() -> list[str]:
    """Names of the preference tunings that come with the package."""
    return _names("SETTINGS")


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of that name, or of a ``.py`` file or a run's ``recipe.json`` at that path.

    Raises:
        PolyptychError: If there is no such recipe, or the file defines none.
    """
    if Path(name_or_path).suffix == ".json":
        return read_recipe(name_or_path)
    return _load(name_or_path, "RECIPE", Recipe)


def load_preference_settings(name_or_path: str | Path) -> PreferenceSettings:
    """The settings of that name, or of a ``.py`` file or a run's ``recipe.json`` at that path.

    Raises:
        PolyptychError: If there are none, or the file defines none.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        return _load(name_or_path, "SETTINGS", PreferenceSettings)
    try:
        return PreferenceSettings(**json.loads(path.read_text(encoding="utf-8"))["recipe"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise PolyptychError(f"{path}: no readable settings ({error})") from error


def _names(variable: str) -> list[str]:
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return [path.stem for path in files if f"\n{variable} = " in path.read_text(encoding="utf-8")]


def _load(name_or_path: str | Path, variable: str, kind: type[Kind]) -> Kind:
    path, known = Path(name_or_path), _names(variable)
    if str(name_or_path) in known:
        path = Path(__file__).with_name(f"{name_or_path}.py")
    if path.suffix != ".py" or not path.is_file():
        raise PolyptychError(
            f"{name_or_path}: no recipe of this name or path; known: {', '.join(known)}"
        )
    try:
        found = runpy.run_path(str(path)).get(variable)
    except PolyptychError as error:
        raise PolyptychError(f"{path}: {error}") from error
    except Exception as error:
        raise PolyptychError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(found, kind):
        raise PolyptychError(f"{path}: defines no {variable} = {kind.__name__}(...)")
    return found
