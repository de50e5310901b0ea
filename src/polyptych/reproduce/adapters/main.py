"""Do the methods help bases of today's kind, and do they help together? In the small.

A LLaVA and a Qwen2-VL of transformers, with a few hundred thousand parameters each, are trained
from scratch: to see, then on groups of pictures. From each base, variants learn equally long:

``plain``  the layers of both methods, without other images and without the question
``sam``    guidance among the images of a group (arXiv 2408.12867)
``vpgc``   a second look guided by the question (arXiv 2308.04152)
``both``   the two together, which no paper has tried

All have the same parameters. Stages: draw the data -> train the bases -> choose each variant's
learning rate on validation over one grid -> all seeds -> other budgets of visual tokens. Every run
has a folder, resumes where it was killed, and is appended to the results file when it ends.

Command: ``polyptych reproduce adapters --out DIR [--quick]``.
"""

from __future__ import annotations

from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.reproduce.adapters.study import (
    VARIANTS,
    AdaptersSettings,
    AdaptersWorkshop,
    SmallBase,
)
from polyptych.reproduce.runs import best_rates, execute_all, in_parallel
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.workshop import Purpose, Run


def main(
    out: Path,
    *,
    quick: bool = False,
    results: Path | None = None,
    workers: int = 2,
    settings: AdaptersSettings | None = None,
    real: Path | None = None,
) -> Path:
    """Run whatever is not done yet; returns the results file.

    Args:
        out: Working folder: data, bases, runs.
        quick: One seed, no learning rate grid, no other budgets.
        results: Results file; default ``out/adapters.json``.
        workers: Runs at the same time, one thread each.
        settings: Sizes; default: the published study's.
        real: Not for this study.

    Raises:
        PolyptychError: If real data are named.
    """
    if real is not None:
        raise PolyptychError(f"{real}: the study of adapters has drawn pictures only")
    settings = settings or AdaptersSettings()
    if quick:
        settings = settings.quick()
    shop = AdaptersWorkshop(Path(out), settings, ENCODER)
    return run_study(shop, Path(results or shop.root / "adapters.json"), workers)


def run_study(shop: AdaptersWorkshop, results: Path, workers: int) -> Path:
    """All stages, skipping what is done."""
    settings = shop.settings
    assert shop.data  # drawn once, before several processes ask for it
    bases = [*settings.bases, *settings.sweep]
    list(in_parallel(AdaptersWorkshop.train_base, [(shop, base) for base in bases], workers))
    rates = dict.fromkeys(VARIANTS, settings.learning_rates[0])
    if len(settings.learning_rates) > 1:
        execute_all(shop, grid(settings), results, workers)
        rates = best_rates(shop, results)
    main_runs = runs(settings, rates, settings.bases, settings.seeds, "main")
    execute_all(shop, main_runs, results, workers)
    sweep = runs(settings, rates, settings.sweep, settings.sweep_seeds, "sweep")
    execute_all(shop, sweep, results, workers)
    return results


def grid(settings: AdaptersSettings) -> list[Run]:
    """Every variant with every learning rate, on the first base."""
    return [
        Run(variant, 0, rate, settings.grid_steps, settings.bases[0], "grid")
        for rate in settings.learning_rates
        for variant in VARIANTS
    ]


def runs(
    settings: AdaptersSettings,
    rates: dict[str, float],
    bases: tuple[SmallBase, ...],
    seeds: tuple[int, ...],
    purpose: Purpose,
) -> list[Run]:
    """Every variant on some bases with some seeds."""
    return [
        Run(variant, seed, rates[variant], settings.steps, base, purpose)
        for seed in seeds
        for base in bases
        for variant in VARIANTS
    ]
