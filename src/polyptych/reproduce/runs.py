"""The runs of a study: trained, tested, recorded.

Every run has a folder, goes on where it was killed, and joins the results file when it ends.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from polyptych.files import write_aside
from polyptych.reproduce.answers import answer_all
from polyptych.reproduce.summary import summarize
from polyptych.reproduce.workshop import Run, Workshop
from polyptych.training.supervised import train


def execute(shop: Workshop, run: Run) -> dict[str, Any]:
    """Train one variant and test it; returns the record for the results file."""
    folder = shop.run_folder(run)
    done = folder / "record.json"
    if done.exists():
        return json.loads(done.read_text())
    torch.set_num_threads(1)
    started = time.perf_counter()
    model, processor = shop.build(run)
    record: dict[str, Any] = {**asdict(run), "name": run.name, **shop.sizes(model), "tasks": {}}
    if run.steps:
        result = train(shop.recipe(run), out=folder, model=model, processor=processor)
        record |= {"train_loss": result.loss, "validation": result.validation}
    split = shop.answered(run)
    if split is not None:
        record["tasks"], items = answer_all(shop, model, processor, split, run)
        folder.mkdir(parents=True, exist_ok=True)
        with write_aside(folder / "items.json") as file:
            json.dump(items, file)
    record |= shop.measure(run, model, processor)
    record["seconds"] = round(time.perf_counter() - started)
    with write_aside(done) as file:
        json.dump(record, file, indent=1)
    return record


def execute_all(shop: Workshop, runs: Sequence[Run], results: Path, workers: int) -> None:
    """Run all, append each finished one to the results file at once."""
    for record in in_parallel(execute, [(shop, run) for run in runs], workers):
        _append(shop, results, record)


def _append(shop: Workshop, results: Path, record: dict[str, Any]) -> None:
    content = json.loads(results.read_text()) if results.exists() else {"runs": []}
    kept = [run for run in content["runs"] if run["name"] != record["name"]]
    runs = sorted([*kept, record], key=lambda run: (run["purpose"], run["name"]))
    content = {
        "settings": asdict(shop.settings),
        "summary": summarize(runs, shop.headline, shop.variants[0], shop.root, shop.also),
        "runs": runs,
    }
    with write_aside(results) as file:
        json.dump(content, file, indent=1)
    print(f"{time.strftime('%H:%M:%S')} {record['name']}: {record.get('seconds')} s", flush=True)


def best_rates(shop: Workshop, results: Path) -> dict[str, float]:
    """Each variant's learning rate with the greatest merit in the grid; empty without a grid."""
    found: dict[str, tuple[float, float]] = {}
    runs = json.loads(results.read_text())["runs"] if results.exists() else []
    for run in (run for run in runs if run["purpose"] == "grid"):
        merit, variant = shop.merit(run), run["variant"]
        if variant not in found or merit > found[variant][0]:
            found[variant] = (merit, run["learning_rate"])
    return {variant: rate for variant, (_, rate) in found.items()}


def in_parallel(function: Any, arguments: Sequence[tuple], workers: int) -> Iterator[Any]:
    """Call in separate processes; results as they come, in the order in which they end."""
    if workers == 1 or len(arguments) <= 1:
        for values in arguments:
            yield function(*values)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(function, *values) for values in arguments]):
            yield future.result()
