"""Comparing a method with golden outputs of its published code: one line per tensor.

What a method computes under which golden name is told in its own ``parity.py``; how two tensors are
compared, printed and dumped is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from polyptych.errors import PolyptychError
from polyptych.files import write_aside

Values = dict[str, Tensor]

INPUT = "input of the run, read as it is"
"""Why most of what is not compared is not: the run starts from it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One golden tensor against ours."""

    name: str
    difference: float
    """Largest absolute difference; infinite where shapes differ or ours is missing."""
    tolerance: float
    note: str = ""
    """Why it is not compared (then nothing else counts), or why it could not be."""
    applies: bool = True

    @property
    def ok(self) -> bool:
        """Within the tolerance, or not to be compared."""
        return not self.applies or self.difference <= self.tolerance

    def __str__(self) -> str:
        if not self.applies:
            return f"{self.name}  n/a: {self.note}"
        verdict = "ok" if self.ok else f"FAIL {self.note}".rstrip()
        return f"{self.name}  {self.difference:.2e}  {self.tolerance:.0e}  {verdict}"


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All comparisons of a case; as text, one line each and a last line that sums up."""

    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was compared."""
        return bool(self.compared) and all(c.ok for c in self.comparisons)

    @property
    def compared(self) -> list[Comparison]:
        """Those with a meaning in our code."""
        return [c for c in self.comparisons if c.applies]

    @property
    def max_difference(self) -> float:
        """The largest difference of all."""
        return max((c.difference for c in self.compared), default=math.inf)

    def __str__(self) -> str:
        summary = (
            f"COMPARED {len(self.compared)} of {len(self.comparisons)}, "
            f"max diff {self.max_difference:.2e}"
        )
        return "\n".join([*map(str, self.comparisons), summary])


def compare(
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    *,
    tolerance: float,
    not_compared: Mapping[str, str] | None = None,
    where: Mapping[str, Tensor] | None = None,
) -> ParityReport:
    """Every golden tensor against ours of the same name.

    Args:
        theirs: The golden values; their order is that of the report.
        ours: What was computed.
        tolerance: Largest absolute difference that passes; ids, masks and ranks have to be equal.
        not_compared: Golden name -> why it is not.
        where: Golden name -> mask over its leading dimensions, for values that mean something only
            there (states at padded positions).
    """
    not_compared, where = not_compared or {}, where or {}
    comparisons = []
    for name, value in theirs.items():
        if name in not_compared:
            skipped = Comparison(name, 0.0, tolerance, not_compared[name], applies=False)
            comparisons.append(skipped)
        else:
            comparisons.append(_compare(name, value, ours.get(name), tolerance, where.get(name)))
    return ParityReport(tuple(comparisons))


def _compare(
    name: str, theirs: Tensor, mine: Tensor | None, tolerance: float, where: Tensor | None
) -> Comparison:
    tolerance = tolerance if theirs.is_floating_point() else 0.0
    if mine is None:
        return Comparison(name, math.inf, tolerance, "not computed")
    if mine.shape != theirs.shape:
        shapes = f"{tuple(mine.shape)}, not {tuple(theirs.shape)}"
        return Comparison(name, math.inf, tolerance, shapes)
    if where is not None:
        mine, theirs = mine[where], theirs[where]
    mine = mine.detach()
    apart = (mine.double() - theirs.double()).abs().masked_fill(mine == theirs, 0.0)
    return Comparison(name, float(apart.nan_to_num(math.inf).max()), tolerance)


def dump(values: Mapping[str, Tensor], path: str | Path) -> None:
    """Write our values as safetensors under the golden names.

    Raises:
        PolyptychError: When the system refuses.
    """
    own = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in values.items()
    }
    with write_aside(path, binary=True) as file:
        file.write(save(own))  # which refuses names that share memory


def as_bytes(texts: list[str]) -> Tensor:
    """Texts as a tensor, one per line, to be compared and dumped like all the rest."""
    return torch.tensor(list("\n".join(texts).encode()), dtype=torch.uint8)


def no_case(directory: Path, case: str, method: str, error: Exception) -> PolyptychError:
    """The error for a golden case that is not there, or not whole."""
    return PolyptychError(f"{directory}: no golden case {case!r} of {method} here: {error}")
