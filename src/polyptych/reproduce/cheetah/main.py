"""Cheetah's claim in the small: does a second, guided look help, and what has to teach it?

A backbone whose Q-Former knows what captions say, and nothing of the rest, is asked about changes
between two pictures and about details of one of several. With language model and Q-Former frozen,
VPG-C is added and trained (arXiv 2308.04152, table 4):

``backbone``        no VPG-C (row 1)
``captions``        VPG-C trained on captions only (row 3)
``discriminative``  VPG-C trained on captions and on pairs of pictures that differ in an object that
                    the Q-Former overlooks (row 4)
``random``          the control: the same with objects chosen by chance

All have equally many parameters, steps, and examples in a step. Stages: draw the data -> cache
features -> train backbones -> edit pictures by what each overlooks -> cache states below layer k ->
choose each variant's learning rate on validation over one grid -> all seeds -> other layers, and
smaller sets of edited pictures. Every run has a folder, resumes where it was killed, and is
appended to the results file when it ends.

Command: ``polyptych reproduce cheetah --out DIR [--quick]``, and then, with ``--real DATA_DIR``,
the same over NLVR (:mod:`polyptych.reproduce.cheetah.real`) with the rates chosen before.
"""

from __future__ import annotations

from pathlib import Path

from polyptych.reproduce.answers import cache_features
from polyptych.reproduce.cheetah.backbone import cache_states, fresh_backbone, train_backbone
from polyptych.reproduce.cheetah.nlvr_encoder import train_box_encoder
from polyptych.reproduce.cheetah.real import REAL_SETTINGS, NlvrWorkshop
from polyptych.reproduce.cheetah.study import (
    EDITED,
    VARIANTS,
    CheetahSettings,
    CheetahWorkshop,
    Placement,
)
from polyptych.reproduce.runs import best_rates, execute_all, in_parallel
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.workshop import Run


def main(
    out: Path,
    *,
    quick: bool = False,
    results: Path | None = None,
    encoder: Path = ENCODER,
    workers: int = 2,
    settings: CheetahSettings | None = None,
    real: Path | None = None,
) -> Path:
    """Run whatever is not done yet; returns the results file.

    Args:
        out: Working folder: data, features, states, backbones, runs (several GB).
        quick: One seed, no learning rate grid, no sweeps.
        results: Results file; default ``out/cheetah.json``.
        encoder: Folder of the frozen vision encoder.
        workers: Runs at the same time, one thread each.
        settings: Sizes; default: the published study's.
        real: Folder with the folder ``nlvr``: the study over its statements.
    """
    default = CheetahSettings() if real is None else REAL_SETTINGS
    settings = settings or default
    if quick:
        settings = settings.quick()
    drawn = CheetahWorkshop(Path(out), settings, Path(encoder))
    results = Path(results or drawn.root / "cheetah.json")
    if real is None:
        return run_study(drawn, results, workers)
    trained, source = Path(out) / "real" / "encoder", Path(real) / "nlvr"
    if not (trained / "accuracy.json").exists():
        train_box_encoder(source, Path(encoder), trained)
    shop = NlvrWorkshop(trained.parent, settings, trained, source)
    rates = best_rates(drawn, results)
    return run_study(shop, shop.root / "cheetah_real.json", workers, rates)


def run_study(
    shop: CheetahWorkshop,
    results: Path,
    workers: int,
    rates: dict[str, float] | None = None,
) -> Path:
    """All stages, skipping what is done.

    ``rates`` gives each trained variant's learning rate; without them the grid is run.
    """
    settings = shop.settings
    model, processor = fresh_backbone(shop, 0)
    cache_features(shop, model, processor, shop.data.values())
    bases = sorted({shop.base_of(seed) for seed in settings.seeds})
    list(in_parallel(train_backbone, [(shop, base) for base in bases], workers))
    for base in bases:  # one after the other: they extend one cache of features
        for variant in EDITED:
            shop.edit(variant, base)
    here = settings.placement.layer
    cached = [(shop, base, here) for base in bases]
    cached += [(shop, shop.base_of(s), k) for k in settings.layers for s in settings.sweep_seeds]
    list(in_parallel(cache_states, sorted(set(cached), key=lambda c: c[1:]), workers))

    if not rates:
        execute_all(shop, grid(settings), results, workers)
        rates = best_rates(shop, results) or dict.fromkeys(VARIANTS, settings.learning_rates[0])
    execute_all(shop, main_runs(settings, rates), results, workers)
    execute_all(shop, sweeps(settings, rates), results, workers)
    return results


def grid(settings: CheetahSettings) -> list[Run]:
    """Every trained variant with every learning rate, on validation sets."""
    return [
        Run(variant, 0, rate, settings.grid_steps, settings.placement, "grid")
        for rate in settings.learning_rates
        for variant in VARIANTS[1:]
        if len(settings.learning_rates) > 1
    ]


def main_runs(settings: CheetahSettings, rates: dict[str, float]) -> list[Run]:
    """Every variant with every seed; the backbone is tested as it is."""
    return [
        Run(variant, seed, rates[variant], settings.steps, settings.placement, "main")
        if variant != VARIANTS[0]
        else Run(variant, seed, 0.0, 0, settings.placement, "main")
        for seed in settings.seeds
        for variant in VARIANTS
    ]


def sweeps(settings: CheetahSettings, rates: dict[str, float]) -> list[Run]:
    """Other layers for what is trained; smaller sets for what learns from edited pictures."""
    return [
        Run(variant, seed, rates[variant], settings.steps, Placement(layer), "sweep")
        for layer in settings.layers
        for seed in settings.sweep_seeds
        for variant in ("captions", "discriminative")
    ] + [
        Run(
            "discriminative",
            seed,
            rates["discriminative"],
            settings.steps,
            Placement(settings.placement.layer, share),
            "sweep",
        )
        for share in settings.shares
        for seed in settings.sweep_seeds
    ]
