"""The runs of a study: bases, a grid of learning rates, all seeds, other budgets.

Every run has a folder, goes on where it was killed, and joins the results file when it ends.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyptych.data.collation import Collator
from polyptych.data.records import read_records
from polyptych.evaluation.scorers import estimate, measure
from polyptych.files import write_aside
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.models.checkpoint import load_model
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.study import (
    VARIANTS,
    Budget,
    GroupBy,
    Workshop,
    build_base,
    build_processor,
    build_variant,
    connector_size,
)
from polyptych.reproduce.summary import summarize
from polyptych.schema import Example, Prediction
from polyptych.training.recipe import (
    DataRecipe,
    DataSource,
    OptimizerRecipe,
    Recipe,
    ValidationRecipe,
)
from polyptych.training.supervised import train
from polyptych.vision.feature_cache import FeatureCache, encoder_fingerprint

ANSWER_TOKENS = 40
TEST_BATCH = 64


@dataclass(frozen=True, slots=True)
class Run:
    """One training with its test."""

    variant: str
    seed: int
    learning_rate: float
    steps: int
    budget: Budget
    purpose: str
    """``grid`` (validation only), ``main`` or ``sweep``."""

    @property
    def name(self) -> str:
        """Folder name: everything that tells runs apart."""
        rate = f"lr{self.learning_rate:g}"
        return f"{self.budget.name}-{self.variant}-{rate}-s{self.steps}-seed{self.seed}"


def run_study(
    shop: Workshop, results: Path, workers: int, rates: Mapping[str, float] | None = None
) -> Path:
    """All stages over one workshop, skipping what is done.

    ``rates`` gives each variant's learning rate; without them the grid is run.
    """
    settings = shop.settings
    cache_features(shop)
    align(shop, settings.budget)

    grid = [
        Run(variant, 0, rate, settings.grid_steps, settings.budget, "grid")
        for rate in settings.learning_rates
        for variant in VARIANTS
        if rates is None and len(settings.learning_rates) > 1
    ]
    _execute(shop, grid, results, workers)
    rates = rates or best_rates(results)
    rates = rates or dict.fromkeys(VARIANTS, settings.learning_rates[0])
    main_runs = [
        Run(variant, seed, rates[variant], settings.steps, settings.budget, "main")
        for seed in settings.seeds
        for variant in VARIANTS
    ]
    _execute(shop, main_runs, results, workers)
    list(_in_parallel(align, [(shop, budget) for budget in settings.sweep], workers))
    sweep = [
        Run(variant, seed, rates[variant], settings.steps, budget, "sweep")
        for budget in settings.sweep
        for seed in settings.sweep_seeds
        for variant in VARIANTS
    ]
    _execute(shop, sweep, results, workers)
    return results


def cache_features(shop: Workshop) -> FeatureCache:
    """Encode every picture once, before several runs read the cache at the same time."""
    model, processor = _encoder_model(shop)
    cache = feature_cache(shop, model, processor)
    for path in shop.data.values():
        refs = (ref for example in read_records(path) for ref in example.images)
        cache.fill(refs, model.vision_encoder, processor.pixels)
    return cache


def _encoder_model(
    shop: Workshop,
) -> tuple[PolyptychSamForConditionalGeneration, PolyptychProcessor]:
    torch.set_num_threads(1)
    processor = build_processor(shop.encoder, shop.data, shop.settings.budget.tokens)
    return build_base(shop.encoder, processor, shop.settings.budget, seed=0).eval(), processor


def align(shop: Workshop, budget: Budget) -> None:
    """A base that sees and speaks, reading every picture alone; what all variants start from."""
    settings, data = shop.settings, shop.data
    if shop.base(budget).exists():
        return
    torch.set_num_threads(1)
    processor = build_processor(shop.encoder, data, budget.tokens)
    model = build_base(shop.encoder, processor, budget, seed=0)
    names = shop.base_sets
    recipe = Recipe(
        name=f"base-{budget.name}",
        trainable=("connector", "language_model"),
        data=DataRecipe(
            train=tuple(DataSource(path=str(data[name])) for name in names),
            feature_cache=str(shop.features),
        ),
        optimizer=OptimizerRecipe(
            learning_rate=settings.base_learning_rate,
            warmup_steps=settings.base_steps // 20,
            weight_decay=0.05,
        ),
        steps=settings.base_steps,
        global_batch_size=settings.batch_size,
        threads=1,
        precision="bf16",
        log_every=20,
        save_every=500,
        tensorboard=False,
    )
    with sdpa_kernel(SDPBackend.MATH):
        shop.teach_to_see(model, feature_cache(shop, model, processor))
        train(recipe, out=shop.base(budget).parent, model=model, processor=processor)


def feature_cache(
    shop: Workshop, model: PolyptychSamForConditionalGeneration, processor: PolyptychProcessor
) -> FeatureCache:
    """The workshop's cache, checked against the model's encoder."""
    fingerprint = encoder_fingerprint(model.vision_encoder, processor.image_processor)
    return FeatureCache(shop.features, fingerprint)


def execute(shop: Workshop, run: Run) -> dict[str, Any]:
    """Train one variant and test it; returns the record for the results file."""
    folder, data, settings = run_folder(shop, run), shop.data, shop.settings
    done = folder / "record.json"
    if done.exists():
        return json.loads(done.read_text())
    torch.set_num_threads(1)
    base, processor = load_model(shop.base(run.budget))
    model = build_variant(cast(PolyptychSamForConditionalGeneration, base), run.variant, run.seed)
    recipe = Recipe(
        name=run.name,
        stage="finetune",
        trainable=("connector", "language_model"),
        data=DataRecipe(
            train=tuple(DataSource(path=str(data[f"{task}-train"])) for task in shop.tasks),
            validation=tuple(
                DataSource(path=str(data[f"{task}-validation"])) for task in shop.tasks
            ),
            feature_cache=str(shop.features),
        ),
        optimizer=OptimizerRecipe(
            learning_rate=run.learning_rate, warmup_steps=run.steps // 20, weight_decay=0.05
        ),
        steps=run.steps,
        global_batch_size=settings.batch_size,
        seed=run.seed,
        threads=1,
        precision="bf16",
        log_every=20,
        save_every=500,
        validation=ValidationRecipe(batch_size=TEST_BATCH, max_new_tokens=ANSWER_TOKENS),
        tensorboard=False,
    )
    started = time.perf_counter()
    with sdpa_kernel(SDPBackend.MATH):  # the fused CPU kernel is slow for a handful of queries
        result = train(recipe, out=folder, model=model, processor=processor)
    record = {
        **asdict(run),
        "name": run.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "connector_parameters": connector_size(model),
        "train_loss": result.loss,
        "validation": result.validation,
        "tasks": {},
    }
    if run.purpose != "grid":
        cache = feature_cache(shop, model, processor)
        items = {}
        for task in shop.tasks:
            examples = list(read_records(data[f"{task}-test"]))
            record["tasks"][task], items[task] = test(shop, model, processor, task, examples, cache)
            record["tasks"][task]["controls"] = {
                name: test(shop, model, processor, task, change(examples), cache)[0]
                for name, change in shop.controls(task).items()
            }
        with write_aside(folder / "items.json") as file:
            json.dump(items, file)
    record["seconds"] = round(time.perf_counter() - started)
    with write_aside(done) as file:
        json.dump(record, file, indent=1)
    return record


def test(
    shop: Workshop,
    model: PolyptychSamForConditionalGeneration,
    processor: PolyptychProcessor,
    task: str,
    examples: Sequence[Example],
    features: FeatureCache,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Answer the test set greedily; every metric, its course over the number of pictures, items."""
    collate = Collator(processor, training=False, features=features)
    predictions = []
    for start in range(0, len(examples), TEST_BATCH):
        part = examples[start : start + TEST_BATCH]
        batch = collate(part)
        with torch.inference_mode():
            sequences = model.eval().generate(
                **batch,
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=processor.pad_token_id,
            )
        texts = processor.decode_answers(sequences, batch["input_ids"].shape[1])
        predictions += [
            Prediction(e.id, text, e.references) for e, text in zip(part, texts, strict=True)
        ]
    scores = [
        estimate(m, resamples=200) for m in measure(shop.scorers[task], examples, predictions)
    ]
    items = {score.name: dict(score.per_item) for score in scores if score.per_item is not None}
    record: dict[str, Any] = {score.name: score.value for score in scores}
    record["examples"] = len(examples)
    for name, key in shop.groups(task).items():
        record[name] = _by(examples, items, key)
    return record, items


def _by(
    examples: Sequence[Example], items: dict[str, dict[str, float]], key: GroupBy
) -> dict[str, dict[str, float]]:
    """Means of every item metric within groups of examples."""
    groups = defaultdict(list)
    for example in examples:
        groups[str(key(example))].append(example.id)
    return {
        group: {"count": len(ids)}
        | {
            name: float(np.mean([values[i] for i in ids if i in values] or [np.nan]))
            for name, values in items.items()
        }
        for group, ids in sorted(groups.items())
    }


def best_rates(results: Path) -> dict[str, float]:
    """Each variant's learning rate with the best validation CIDEr; empty without a grid."""
    found: dict[str, tuple[float, float]] = {}
    runs = json.loads(results.read_text())["runs"] if results.exists() else []
    for run in (run for run in runs if run["purpose"] == "grid"):
        cider = next(v for name, v in run["validation"].items() if name.startswith("cider"))
        variant = run["variant"]
        if variant not in found or cider > found[variant][0]:
            found[variant] = (cider, run["learning_rate"])
    return {variant: rate for variant, (_, rate) in found.items()}


def run_folder(shop: Workshop, run: Run) -> Path:
    """Where a run lives."""
    return shop.root / "runs" / run.name


def _execute(shop: Workshop, runs: Sequence[Run], results: Path, workers: int) -> None:
    """Run all, append each finished one to the results file at once."""
    for record in _in_parallel(execute, [(shop, run) for run in runs], workers):
        _append(shop, results, record)


def _append(shop: Workshop, results: Path, record: dict[str, Any]) -> None:
    content = json.loads(results.read_text()) if results.exists() else {"runs": []}
    kept = [run for run in content["runs"] if run["name"] != record["name"]]
    runs = sorted([*kept, record], key=lambda run: (run["purpose"], run["name"]))
    content = {
        "settings": asdict(shop.settings),
        "summary": summarize(runs, shop.headline, shop.root),
        "runs": runs,
    }
    with write_aside(results) as file:
        json.dump(content, file, indent=1)
    print(f"{time.strftime('%H:%M:%S')} {record['name']}: {record.get('seconds')} s", flush=True)


def _in_parallel(function: Any, arguments: Sequence[tuple], workers: int) -> Iterator[Any]:
    """Call in separate processes; results as they come, in the order in which they end."""
    if workers == 1 or len(arguments) <= 1:
        for values in arguments:
            yield function(*values)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(function, *values) for values in arguments]):
            yield future.result()
