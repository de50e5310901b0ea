"""SIMA's claim in the small: a model that improves itself on its own answers hallucinates less.

A base that hallucinates (half of the descriptions that it learned from are wrong on purpose) and
has practised judging improves itself on new pictures, and is then asked to describe others:

``base``         before
``sima``         the loop: likelihood verdicts in both orders, metrics and ground truth
``words``        verdicts that the model writes
``one_order``    likelihood verdicts in the published order only
``no_metrics``   a critic without the three visual metrics
``no_truth``     a critic without the ground truth
``random``       verdicts by chance
``truth``        verdicts of the scene graph: what a perfect critic would give
``best_of_n``    best against worst of several samples
``temperature``  colder samples
``sft``          no loop: the prompts' ground truths learned by heart, equally many steps

CHAIR, recall, coverage, POPE's questions and CIDEr are recorded, and how often each critic agrees
with the scene graph. Stages: draw the sets -> a base per seed -> choose learning rates on
validation pictures -> all variants and seeds -> second and third iteration. Every run has a folder,
resumes where it was killed, and is appended to the results file when it ends.

Command: ``polyptych reproduce sima --out DIR [--quick]``, and then, with ``--real DATA_DIR``, the
questions of :mod:`polyptych.reproduce.sima.real` with the rates chosen before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from polyptych.reproduce.answers import cache_features
from polyptych.reproduce.runs import best_rates, execute_all, in_parallel
from polyptych.reproduce.sima.real import REAL_SETTINGS, CocoWorkshop
from polyptych.reproduce.sima.study import (
    REPEATED,
    Rounds,
    SimaSettings,
    SimaWorkshop,
)
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.workshop import Purpose, Run

GRID = ("sima", "sft")
"""Variants whose learning rate is chosen; every other loop has that of ``sima``."""


def main(
    out: Path,
    *,
    quick: bool = False,
    results: Path | None = None,
    workers: int = 2,
    settings: SimaSettings | None = None,
    real: Path | None = None,
) -> Path:
    """Run whatever is not done yet; returns the results file.

    Args:
        out: Working folder: data, features, bases, loops, runs.
        quick: One seed, no learning rate grid, one iteration.
        results: Results file; default ``out/sima.json``.
        workers: Runs at the same time, one thread each.
        settings: Sizes; default: the published study's.
        real: Folder with the folders ``chair``, ``valse`` and ``coco_cc``: the study over these.
    """
    default = SimaSettings() if real is None else REAL_SETTINGS
    settings = settings or default
    if quick:
        settings = settings.quick()
    drawn = SimaWorkshop(Path(out), settings, ENCODER)
    results = Path(results or drawn.root / "sima.json")
    if real is None:
        return run_study(drawn, results, workers)
    shop = CocoWorkshop(drawn.root / "real", settings, ENCODER, Path(real))
    rates = best_rates(drawn, results)
    return run_study(shop, shop.root / "sima_real.json", workers, rates)


def run_study(
    shop: SimaWorkshop,
    results: Path,
    workers: int,
    chosen: Mapping[str, float] | None = None,
) -> Path:
    """All stages, skipping what is done.

    ``chosen`` gives each learning rate of :data:`GRID`; without them the grid is run.
    """
    settings = shop.settings
    # Drawn and encoded once, before several processes ask for it.
    cache_features(shop, *shop.fresh(settings.seeds[0]), shop.data.values())
    list(in_parallel(type(shop).train_base, [(shop, s) for s in settings.seeds], workers))
    rates = dict.fromkeys(GRID, settings.learning_rates[0]) | dict(chosen or {})
    if not chosen and len(settings.learning_rates) > 1:
        execute_all(shop, grid(settings), results, workers)
        rates |= best_rates(shop, results)
    execute_all(shop, runs(settings, rates, settings.rounds), results, workers)
    # One after the other: each goes on in the folders of the one before.
    for rounds in settings.more_rounds:
        more = runs(settings, rates, rounds, REPEATED, "sweep")
        execute_all(shop, more, results, workers)
    return results


def grid(settings: SimaSettings) -> list[Run]:
    """The loop and supervised fine-tuning with every learning rate, on validation pictures."""
    rounds = replace(settings.rounds, split="validation")
    return [
        Run(variant, settings.seeds[0], rate, 0, rounds, "grid")
        for rate in settings.learning_rates
        for variant in GRID
        if variant in settings.variants
    ]


def runs(
    settings: SimaSettings,
    rates: Mapping[str, float],
    rounds: Rounds,
    variants: tuple[str, ...] | None = None,
    purpose: Purpose = "main",
) -> list[Run]:
    """Those of the variants that the settings have (None: all of these), with every seed."""
    chosen = {"base": 0.0, "sft": rates["sft"]}
    return [
        Run(variant, seed, chosen.get(variant, rates["sima"]), 0, rounds, purpose)
        for seed in settings.seeds
        for variant in (settings.variants if variants is None else variants)
        if variant in settings.variants
    ]
