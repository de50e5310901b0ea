"""SAM's claim in the small: does it help when images guide each other while tokens are extracted?

Three variants start from one base as the same function with equally many parameters, see the same
examples in the same order for the same number of steps, and are tested on compositions that no
training picture shows:

``independent``  every picture is read alone
``released``     guidance as the published code computes it
``paper``        guidance as the method figure draws it

Stages: draw the data -> cache frozen features -> train one base per budget -> choose each variant's
learning rate on validation over one grid -> all seeds -> other budgets of visual tokens. Every run
has a folder, resumes where it was killed, and is appended to the results file when it ends.

Command: ``polyptych reproduce sam --out DIR [--quick]``, and then, with ``--real DATA_DIR``, the
same over real pictures (:mod:`polyptych.reproduce.sam.real`) with the rates chosen before.
"""

from __future__ import annotations

from pathlib import Path

from polyptych.reproduce.runs import best_rates
from polyptych.reproduce.sam.real import main as main_real
from polyptych.reproduce.sam.study import SamWorkshop, StudySettings, run_study
from polyptych.reproduce.small_models import ENCODER


def main(
    out: Path,
    *,
    quick: bool = False,
    results: Path | None = None,
    encoder: Path = ENCODER,
    workers: int = 2,
    settings: StudySettings | None = None,
    real: Path | None = None,
) -> Path:
    """Run whatever is not done yet; returns the results file.

    Args:
        out: Working folder: data, features, bases, runs (several GB).
        quick: One seed, one budget, no learning rate grid.
        results: Results file; default ``out/sam.json``.
        encoder: Folder of the frozen vision encoder.
        workers: Runs at the same time, one thread each.
        settings: Sizes; default: the published study's.
        real: Folder with TrashNet, Noto emoji and African Storybook: the study over these.
    """
    settings = settings or StudySettings()
    if quick:
        settings = settings.quick()
    shop = SamWorkshop(Path(out), settings, Path(encoder))
    results = Path(results or shop.root / "sam.json")
    if real is not None:
        rates = best_rates(shop, results)
        return main_real(Path(real), Path(out) / "real", rates=rates, workers=workers, quick=quick)
    return run_study(shop, results, workers)
