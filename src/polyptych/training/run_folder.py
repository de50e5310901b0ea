"""The folder of a training run: what it was told, how it went, what came out.

recipe.json       every value of the recipe, versions, fingerprints of data and start
data.json         what is learned from, counted; dropped.txt has a line per left-out record
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.models.checkpoint import first_line

_FULL = 2**20
"""Free bytes below which a write that failed has failed for want of room."""

_PACKAGES = ("polyptych", "torch", "transformers", "accelerate", "tokenizers", "numpy")


class RunFolder:
    """One run's files.

    Args:
        path: The folder; made when the run is opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.data = self.path / "data.json"
        self.dropped = self.path / "dropped.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.saving = self.path / "checkpoints.partial"
        """Where checkpoints are written aside."""
        self.best = self.path / "best"
        self.final = self.path / "final"
        self.result = self.path / "result.json"

    def open(
        self,
        recipe: BaseModel,
        fingerprints: dict[str, Any],
        *,
        resume: bool,
        is_main: bool = True,
    ) -> Path | None:
        """Write what the run was told, or check that it is the same as before.

        Args:
            recipe: The recipe, or other settings, with every value filled in.
            fingerprints: What tells data and starting weights from others.
            resume: Go on with what the folder holds; otherwise remove it and start again.
            is_main: Whether this is the process that writes; the others come after it.

        Returns:
            The newest complete checkpoint, None to start from the beginning.

        Raises:
            PolyptychError: If the folder holds a run of another recipe, data or start; names the
                first difference.
        """
        told = {"recipe": recipe.model_dump(mode="json"), **fingerprints}
        if is_main and not resume:
            self._clear()
        elif self.recipe.exists():
            before = json.loads(self.recipe.read_text(encoding="utf-8"))
            before.pop("versions", None)
            # Fields that a recipe of today has more were at their defaults.
            before["recipe"] = type(recipe)(**before["recipe"]).model_dump(mode="json")
            difference = _first_difference(before, json.loads(json.dumps(told)))
            if difference:
                raise PolyptychError(
                    f"{self.path} holds a run of another recipe: {difference}; "
                    "choose another folder, or start again without resuming"
                )
            if is_main:
                self._mend()
            return self.newest_checkpoint()
        self.write_json(self.recipe, {**told, "versions": _versions()})
        return None

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the latest step; one under its name is whole."""
        steps = {
            int(path.name.split("-")[1]): path for path in self.checkpoints.glob("checkpoint-*")
        }
        return steps[max(steps)] if steps else None

    def publish_checkpoint(self, step: int) -> None:
        """Give a checkpoint its name; only now the ones before it are no longer needed."""
        written, whole = (place / f"checkpoint-{step}" for place in (self.saving, self.checkpoints))
        _flush(written)
        self.checkpoints.mkdir(exist_ok=True)
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(written, whole)
        self.saving.rmdir()
        for folder in self.checkpoints.glob("checkpoint-*"):
            if folder != whole:
                shutil.rmtree(folder, ignore_errors=True)

    def save_model(
        self,
        target: Path,
        model: PreTrainedModel,
        processor: Any,
        notes: dict[str, Any],
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Save a whole model aside and put it in place of an earlier one.

        Args:
            target: Its folder.
            model: The model.
            processor: Saved beside it.
            notes: Written to ``training.json`` there.
            weights: All weights, where the model itself holds only a part of them.

        Raises:
            PolyptychError: When the system refuses (full disk, no permission).
        """
        partial, old = target.with_name(f"{target.name}.partial"), _replaced(target)
        with said_if_unsaved(target):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                with _no_progress_bar():
                    model.save_pretrained(partial, state_dict=weights)
                processor.save_pretrained(partial)
                self.write_json(partial / "training.json", notes)
                shutil.rmtree(old, ignore_errors=True)
                if target.exists():
                    os.replace(target, old)
                os.replace(partial, target)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

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

    def write_dropped(self, problems: Sequence[str]) -> None:
        """Write the records that are left out, one line each; no file where there are none."""
        if problems:
            with write_aside(self.dropped) as file:
                file.writelines(f"{problem}\n" for problem in problems)

    def _mend(self) -> None:
        """Clear what a killed run has left half done."""
        for target in (self.best, self.final):
            old = _replaced(target)
            if old.exists() and not target.exists():  # killed between two renames
                os.replace(old, target)
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(target.with_name(f"{target.name}.partial"), ignore_errors=True)
        shutil.rmtree(self.saving, ignore_errors=True)

    def _clear(self) -> None:
        for folder in (self.checkpoints, self.saving, self.best, self.final):
            shutil.rmtree(folder, ignore_errors=True)
        files = (self.recipe, self.data, self.dropped, self.metrics, self.result)
        for file in (*files, *self.path.glob("events.out.*")):
            file.unlink(missing_ok=True)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _flush(folder: Path) -> None:
    """Bring a folder's files to the disk, so that a rename never outruns their contents."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def said_if_unsaved(target: Path) -> Iterator[None]:
    """One line for a refused write: torch and safetensors have errors of their own for it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or _in_words(error, target)
        raise PolyptychError(f"cannot save {target}: {reason}") from error


def _in_words(error: Exception, target: Path) -> str:
    """What failed in words: torch says where in its own files, not that the disk is full."""
    place = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if "No space left" in str(error) or free < _FULL:
        return f"No space left on device ({free / 2**20:.1f} MiB are free)"
    return first_line(error)


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
