"""The stages of the CaMML study, over any workshop: each skips what is done."""

from __future__ import annotations

from pathlib import Path

from polyptych.reproduce.answers import feature_cache
from polyptych.reproduce.camml.base import fresh_base, train_base
from polyptych.reproduce.camml.study import VARIANTS, CammlSettings, CammlWorkshop, Context
from polyptych.reproduce.runs import best_rates, execute_all
from polyptych.reproduce.workshop import Purpose, Run


def run_study(shop: CammlWorkshop, results: Path, workers: int) -> Path:
    """All stages, skipping what is done."""
    settings = shop.settings
    cache_pictures(shop)
    train_base(shop)
    execute_all(shop, first_runs(shop), results, workers)
    rates = dict.fromkeys(VARIANTS, settings.learning_rates[0])
    if len(settings.learning_rates) > 1:
        execute_all(shop, grid(settings), results, workers)
        rates = best_rates(shop, results)
    seeds, sweep_seeds = settings.seeds, settings.sweep_seeds
    main_runs = [_run(settings, rates, v, s, settings.context) for s in seeds for v in VARIANTS]
    execute_all(shop, main_runs, results, workers)
    sweep = [
        _run(settings, rates, "camml", seed, context, "sweep")
        for context in settings.sweep
        for seed in sweep_seeds
    ]
    execute_all(shop, sweep, results, workers)
    return results


def cache_pictures(shop: CammlWorkshop) -> None:
    """Encode every picture once: those of facts and questions are all there are."""
    model, processor = fresh_base(shop)
    cache = feature_cache(shop, model, processor)
    for store in shop.stores():
        refs = (ref for example in (*store.facts, *store.questions) for ref in example.images)
        cache.fill(refs, model.vision_encoder, processor.pixels)


def first_runs(shop: CammlWorkshop) -> list[Run]:
    """What all others go on from."""
    wanted = [(variant, shop.settings.context) for variant in VARIANTS]
    wanted += [("camml", context) for context in shop.settings.sweep]
    return list(dict.fromkeys(shop.first_run(*each) for each in wanted))


def grid(settings: CammlSettings) -> list[Run]:
    """Every variant with every learning rate, on validation questions."""
    return [
        Run(variant, 0, rate, settings.grid_steps, settings.context, "grid")
        for rate in settings.learning_rates
        for variant in VARIANTS
    ]


def _run(
    settings: CammlSettings,
    rates: dict[str, float],
    variant: str,
    seed: int,
    context: Context,
    purpose: Purpose = "main",
) -> Run:
    return Run(variant, seed, rates[variant], settings.steps, context, purpose)
