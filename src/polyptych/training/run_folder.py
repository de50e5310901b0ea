"""The folder of a training run: what it was told, how it went, what came out.

recipe.json       every value of the recipe, versions, fingerprints of data and start
metrics.jsonl     one line per logged step and per validation
events.out.*      the same for TensorBoard
checkpoints/      what is needed to go on exactly where a killed run stopped
best/  final/     whole models with processor, for ``from_pretrained``
result.json       written last; its presence says that the run is finished
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.models.checkpoint import first_line
from polyptych.training.recipe import Recipe

_COMPLETE = "complete"
"""Written into a checkpoint after everything else: without it, the checkpoint is half-written."""

_PACKAGES = ("polyptych", "torch", "transformers", "accelerate", "tokenizers", "numpy")


class RunFolder:
    """One run's files.

    Args:
        path: The folder; made when the run is opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.final = self.path / "final"
        self.result = self.path / "result.json"

    def open(self, recipe: Recipe, fingerprints: dict[str, Any], *, resume: bool) -> Path | None:
        """Write what the run was told, or check that it is the same as before.

        Args:
            recipe: The recipe with every value filled in.
            fingerprints: What tells data and starting weights from others.
            resume: Go on with what the folder holds; otherwise remove it and start again.

        Returns:
            The newest complete checkpoint, None to start from the beginning.

        Raises:
            PolyptychError: If the folder holds a run of another recipe, data or start; names the
                first difference.
        """
        told = {"recipe": recipe.model_dump(mode="json"), **fingerprints}
        if not resume:
            self._clear()
        elif self.recipe.exists():
            before = json.loads(self.recipe.read_text(encoding="utf-8"))
            before.pop("versions", None)
            difference = _first_difference(before, json.loads(json.dumps(told)))
            if difference:
                raise PolyptychError(
                    f"{self.path} holds a run of another recipe: {difference}; "
                    "choose another folder, or start again without resuming"
                )
            return self.newest_checkpoint()
        self.write_json(self.recipe, {**told, "versions": _versions()})
        return None

    def newest_checkpoint(self) -> Path | None:
        """The complete checkpoint of the latest step."""
        complete = [marker.parent for marker in self.checkpoints.glob(f"checkpoint-*/{_COMPLETE}")]
        return max(complete, key=lambda folder: int(folder.name.split("-")[1]), default=None)

    def complete_checkpoint(self, step: int) -> None:
        """Mark a checkpoint as whole; only now the ones before it are no longer needed."""
        whole = self.checkpoints / f"checkpoint-{step}"
        (whole / _COMPLETE).touch()
        for folder in self.checkpoints.glob("checkpoint-*"):
            if folder != whole:
                shutil.rmtree(folder, ignore_errors=True)

    def save_model(
        self, target: Path, model: PreTrainedModel, processor: Any, notes: dict[str, Any]
    ) -> None:
        """Save a whole model aside and put it in place of an earlier one.

        Raises:
            PolyptychError: When the system refuses (full disk, no permission).
        """
        partial, old = target.with_name(f"{target.name}.partial"), target.with_name(".replaced")
        with said_if_unsaved(target):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                with _no_progress_bar():
                    model.save_pretrained(partial)
                processor.save_pretrained(partial)
                self.write_json(partial / "training.json", notes)
                shutil.rmtree(old, ignore_errors=True)
                if target.exists():
                    os.replace(target, old)
                os.replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)

    def notes(self, model: Path) -> dict[str, Any] | None:
        """What was noted beside a saved model."""
        path = model / "training.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @staticmethod
    def write_json(path: Path, content: Any) -> None:
        """Write a JSON file, never half."""
        with write_aside(path) as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")

    def _clear(self) -> None:
        for folder in (self.checkpoints, self.best, self.final):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.recipe, self.metrics, self.result, *self.path.glob("events.out.*")):
            file.unlink(missing_ok=True)


@contextmanager
def said_if_unsaved(target: Path) -> Iterator[None]:
    """One line for a refused write: torch and safetensors have errors of their own for it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise PolyptychError(f"cannot save {target}: {reason}") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "source"
    return versions


def _first_difference(before: Any, now: Any, name: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            path = f"{name}.{key}" if name else key
            difference = _first_difference(before.get(key), now.get(key), path)
            if difference:
                return difference
        return ""
    return "" if before == now else f"{name.removeprefix('recipe.')} was {before!r}, is {now!r}"
