"""Results files become tables in the documents, between markers; no number is typed by hand.

A document holds ``<!-- table: NAME -->`` and ``<!-- end -->``; what is between them is replaced.


Command: ``python -m polyptych.reproduce.tables RESULTS_DIR DOCUMENT...``.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyptych.files import write_aside
from polyptych.reproduce.sam_variants import VARIANTS

_PERCENT = ("accuracy", "rouge", "bleu")
"""Metrics in 0..1 that are shown as percentages; CIDEr is shown x 100 as is customary."""

_MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main_table(results: Mapping[str, Any], budget: str) -> str:
    """Every metric of one budget: mean of each variant with its interval, and the gains.

    Columns: task, metric, then each variant as ``mean ± half width``; the gains over reading alone
    with the p value of the paired bootstrap over items.
    """
    head = ["task", "metric", *VARIANTS, "released gain", "paper gain"]
    rows = []
    for task, metrics in results["summary"][budget].items():
        for metric, variants in metrics.items():
            cells = [_mean(variants.get(variant)) for variant in VARIANTS]
            gains = [_gain(variants.get(variant)) for variant in VARIANTS[1:]]
            rows.append([task.replace("_", " "), f"`{metric}`", *cells, *gains])
    return _markdown(head, rows)


def relative_table(results: Mapping[str, Any], budget: str) -> str:
    """The headline in the paper's terms: relative CIDEr gain over reading alone, in percent."""
    rows = []
    for task, metrics in results["summary"][budget].items():
        for variant in VARIANTS[1:]:
            found = metrics["cider[coco]"].get(variant, {}).get("relative_gain_percent")
            if found:
                low, high = found["low"], found["high"]
                interval = "" if math.isnan(low) else f" ({low:+.1f} to {high:+.1f})"
                rows.append([task.replace("_", " "), variant, f"{found['mean']:+.1f} %{interval}"])
    return _markdown(["task", "variant", "CIDEr over reading alone (95 % interval)"], rows)


def budget_table(results: Mapping[str, Any]) -> str:
    """How accuracy moves with what a picture may say: one row per budget, task and metric."""
    rows = []
    for budget, tasks in results["summary"].items():
        for task, metrics in tasks.items():
            for metric in ("cider[coco]", *(m for m in metrics if "accuracy" in m)):
                cells = [_mean(metrics[metric].get(variant)) for variant in VARIANTS]
                seeds = max(v["seeds"] for v in metrics[metric].values())
                rows.append([budget, task.replace("_", " "), f"`{metric}`", *cells, str(seeds)])
    return _markdown(["budget", "task", "metric", *VARIANTS, "seeds"], rows)


def breakdown_table(results: Mapping[str, Any], task: str, part: str, metric: str) -> str:
    """One metric of the main runs over groups of test examples (``by_pictures`` and the like)."""
    groups: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = {}
    for run in results["runs"]:
        if run["purpose"] == "main":
            for group, values in run["tasks"][task][part].items():
                groups.setdefault(group, {}).setdefault(run["variant"], []).append(values[metric])
                counts[group] = values["count"]
    rows = [
        [group, str(counts[group]), *(_number(metric, _average(v.get(x, []))) for x in VARIANTS)]
        for group, v in sorted(groups.items())
    ]
    return _markdown([part.removeprefix("by_"), "examples", *VARIANTS], rows)


def control_table(results: Mapping[str, Any], task: str, metric: str) -> str:
    """A task with its own pictures, with pictures of other examples, and with none."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in results["runs"]:
        if run["purpose"] == "main":
            record = run["tasks"][task]
            parts = {"own pictures": record, **record["controls"]}
            for name, values in parts.items():
                row = found.setdefault(name.replace("_", " "), {})
                row.setdefault(run["variant"], []).append(values[metric])
    rows = [
        [name, *(_number(metric, _average(values.get(x, []))) for x in VARIANTS)]
        for name, values in found.items()
    ]
    return _markdown([f"`{metric}`", *VARIANTS], rows)


def _average(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _number(metric: str, value: float) -> str:
    scale = 100 if metric.startswith("cider") or any(p in metric for p in _PERCENT) else 1
    return "–" if math.isnan(value) else f"{scale * value:.1f}"


def _mean(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "–"
    text = f"{100 * found['mean']:.1f}"
    half = 100 * (found["high"] - found["mean"])
    return text if math.isnan(half) else f"{text} ± {half:.1f}"


def _gain(found: Mapping[str, Any] | None) -> str:
    if not found or "gain" not in found:
        return "–"
    text = f"{100 * found['gain']['mean']:+.1f}"
    bootstrap = found.get("paired_bootstrap")
    return text if bootstrap is None else f"{text} (p {max(bootstrap['p'], 0.001):.3f})"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def all_tables(folder: Path) -> dict[str, str]:
    """Name -> table, for every results file that is there."""
    tables = {}
    if (folder / "sam.json").exists():
        results = json.loads((folder / "sam.json").read_text())
        budget = f"q{results['settings']['budget']['tokens']}"
        tables["sam-main"] = main_table(results, budget)
        tables["sam-relative"] = relative_table(results, budget)
        tables["sam-budgets"] = budget_table(results)
        factor, story = "factor_accuracy[storybook]", "name_accuracy[storybook]"
        for part in ("by_pictures", "by_things", "by_factor"):
            tables[f"sam-group-{part}"] = breakdown_table(results, "group_captioning", part, factor)
        tables["sam-story-by_pictures"] = breakdown_table(
            results, "storytelling", "by_pictures", story
        )
    if (folder / "sam_real.json").exists():
        results = json.loads((folder / "sam_real.json").read_text())
        budget = f"q{results['settings']['budget']['tokens']}"
        tables["sam-real"] = main_table(results, budget)
        tables["sam-real-controls"] = control_table(results, "african_storybook", "cider[coco]")
    return tables


def fill(document: Path, tables: Mapping[str, str]) -> int:
    """Replace the marked tables of a document; returns how many."""
    filled = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal filled
        if match["name"] not in tables:
            return match[0]
        filled += 1
        return match[1] + tables[match["name"]] + match[3]

    text = _MARKED.sub(replace, document.read_text(encoding="utf-8"))
    with write_aside(document) as file:
        file.write(text)
    return filled


if __name__ == "__main__":
    found = all_tables(Path(sys.argv[1]))
    for name in sys.argv[2:]:
        print(f"{name}: {fill(Path(name), found)} tables")
