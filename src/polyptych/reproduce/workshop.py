"""What every study has: folders, sets, judges, and variants that are trained alike.

A study compares *variants*; the first of them is the *baseline*. It says how a variant is built and
by which recipe it is trained; :mod:`polyptych.reproduce.runs` trains, tests and records it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from transformers import PreTrainedModel

from polyptych.data.records import read_records
from polyptych.evaluation.scorers import Scorer
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import Example
from polyptych.training.recipe import Recipe

GroupBy = Callable[[Example], Any]
"""Puts a test example into a group, to see where a gain comes from."""

Change = Callable[[Sequence[Example]], list[Example]]
"""Makes a control out of a test set."""

Purpose = Literal["first", "grid", "main", "sweep"]


ANSWER_TOKENS = 40
"""Longest answer of a study that says nothing else."""


class Condition(Protocol):
    """What a sweep varies; runs of one condition are compared with each other."""

    @property
    def name(self) -> str:
        """Short and without a hyphen: run names begin with it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training with its test."""

    variant: str
    seed: int
    learning_rate: float
    steps: int
    """Steps of training; 0 tests the variant as it is built."""
    condition: Any
    """A :class:`Condition`, and a dataclass, so that it is written into the record."""
    purpose: Purpose
    """``grid`` runs choose learning rates and never see a test set; others go on from ``first``
    ones, which are not tested at all."""

    @property
    def name(self) -> str:
        """Folder name: everything that tells runs apart."""
        rate = f"lr{self.learning_rate:g}"
        return f"{self.condition.name}-{self.variant}-{rate}-s{self.steps}-seed{self.seed}"


@dataclass(frozen=True)
class Workshop(ABC):
    """Folders, data and judges of one study.

    Args:
        root: Working folder: data, features, bases, runs.
        settings: Sizes; a dataclass.
        encoder: Folder of the frozen vision encoder.
    """

    root: Path
    settings: Any
    encoder: Path

    variants: ClassVar[tuple[str, ...]]
    """What is compared, the baseline first."""
    ranked: ClassVar[tuple[str, ...]] = ()
    """Tasks whose answer is the likelier of an example's two choices; all others are written."""
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Variant -> what it is compared with besides the baseline."""

    answer_tokens: ClassVar[int] = ANSWER_TOKENS
    """Longest answer."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """What is tested; ``data`` has a set ``TASK-test`` for each."""

    @property
    @abstractmethod
    def data(self) -> Mapping[str, Path]:
        """Name of a set -> its JSONL file; drawn where it is not there yet."""

    @property
    @abstractmethod
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """What judges each task."""

    @property
    @abstractmethod
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""

    @abstractmethod
    def build(self, run: Run) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """A run's model before its first step."""

    @abstractmethod
    def recipe(self, run: Run) -> Recipe:
        """How a run is trained."""

    @abstractmethod
    def merit(self, record: Mapping[str, Any]) -> float:
        """What a finished grid run is worth, from validation sets alone."""

    def answered(self, run: Run) -> str | None:
        """Split that a finished run answers; a grid run none, unless its merit lies in answers."""
        return None if run.purpose == "grid" else "test"

    def asked(self, run: Run, task: str, split: str) -> Sequence[Example]:
        """What a finished run answers; the same for all runs unless a study says otherwise."""
        return list(read_records(self.data[f"{task}-{split}"]))

    def measure(
        self, run: Run, model: PreTrainedModel, processor: PolyptychProcessor
    ) -> dict[str, Any]:
        """More that is recorded of a finished run, such as what an answer costs."""
        return {}

    def sizes(self, model: PreTrainedModel) -> dict[str, int]:
        """Numbers of parameters for the record."""
        return {"parameters": sum(p.numel() for p in model.parameters())}

    def controls(self, task: str) -> Mapping[str, Change]:
        """Changed test sets that every run answers, too: name -> change."""
        return {}

    def groups(self, task: str) -> dict[str, GroupBy]:
        """How a task's test results are broken down."""
        return {}

    @property
    def features(self) -> Path:
        """Cached image features."""
        return self.root / "features"

    def run_folder(self, run: Run) -> Path:
        """Where a run lives."""
        return self.root / "runs" / run.name
