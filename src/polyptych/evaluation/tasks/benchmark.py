"""One row of the table of benchmarks, :data:`polyptych.evaluation.tasks.catalog.BENCHMARKS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polyptych.errors import PolyptychError
from polyptych.evaluation.task import Task

Scoring = Literal["local", "server", "judge"]
"""Whether the truth is public, or the benchmark's server keeps it, or a judge has to be asked."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One row of the table."""

    name: str
    """Also of its folder, unless :attr:`folder` says otherwise."""
    title: str
    metric: str
    """The number that papers report."""
    flavors: tuple[str, ...]
    files: tuple[str, ...]
    """What is looked for in its folder; images as a folder with a slash at its end."""
    license: str
    """Of questions and answers; images have their own."""
    source: str
    """Where its files are."""
    scoring: Scoring
    """Of the split that the files hold; a file of answers, where one has it, is always used."""
    make: Callable[[Path], Task]
    """From its folder to the task."""
    folder: str = ""
    """Below the folder of all data; empty for its name."""
    sample: Callable[[Path], None] | None = None
    """Draws a small set in the published layout into its folder; None where there is none yet."""

    def root(self, data: str | Path) -> Path:
        """Its folder in the folder of all data."""
        return Path(data, self.folder or self.name)

    def task(self, data: str | Path) -> Task:
        """The task over its files in ``data``.

        Raises:
            PolyptychError: If its folder is missing.
        """
        root = self.root(data)
        if not root.is_dir():
            raise PolyptychError(f"{self.name}: no folder {root}; it should hold {self.files[0]}")
        return self.make(root)
