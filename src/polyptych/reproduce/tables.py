"""Results files become tables in the documents, between markers; no number is typed by hand.

A document holds ``<!-- table: NAME -->`` and ``<!-- end -->``; what is between them is replaced.

Command: ``python -m polyptych.reproduce.tables RESULTS_DIR DOCUMENT...``.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyptych.files import write_aside
from polyptych.reproduce.adapters import study as adapters_study
from polyptych.reproduce.camml import study as camml_study
from polyptych.reproduce.cheetah import study as cheetah_study
from polyptych.reproduce.sam import variants as sam_variants
from polyptych.reproduce.sima import real as sima_real
from polyptych.reproduce.sima import study as sima_study
from polyptych.reproduce.summary import mean_interval

_PERCENT = ("accuracy", "rouge", "bleu")
"""Metrics in 0..1 that are shown as percentages; CIDEr is shown x 100 as is customary."""

_MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


Variants = Sequence[str]
"""In the order of their columns, the baseline first."""


def main_table(
    results: Mapping[str, Any],
    condition: str,
    variants: Variants,
    also: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Every metric under one condition: mean of each variant with its interval, and the gains.

    Columns: task, metric, each variant as ``mean ± half width``; then the gains over the baseline
    (and, where ``also`` names some, over others) with the p value of the paired bootstrap.
    """
    pairs: list[tuple[str, str | None]] = [(variant, None) for variant in variants[1:]]
    pairs += [(variant, other) for variant, others in (also or {}).items() for other in others]
    gains = [f"{variant} over {other or variants[0]}" for variant, other in pairs]
    rows = []
    for task, metrics in results["summary"][condition].items():
        for metric, found in metrics.items():
            cells = [_mean(found.get(variant)) for variant in variants]
            cells += [_gain(_over(found.get(variant), other)) for variant, other in pairs]
            rows.append([task.replace("_", " "), f"`{metric}`", *cells])
    return _markdown(["task", "metric", *variants, *gains], rows)


def _over(row: Mapping[str, Any] | None, reference: str | None) -> Mapping[str, Any] | None:
    """The part of a summary's row that speaks of one reference; None stands for the baseline."""
    if row is None or reference is None:
        return row
    return row.get("over", {}).get(reference)


def relative_table(results: Mapping[str, Any], condition: str, variants: Variants) -> str:
    """The headline in the paper's terms: relative CIDEr gain over reading alone, in percent."""
    rows = []
    for task, metrics in results["summary"][condition].items():
        for variant in variants[1:]:
            found = metrics["cider[coco]"].get(variant, {}).get("relative_gain_percent")
            if found:
                low, high = found["low"], found["high"]
                interval = "" if math.isnan(low) else f" ({low:+.1f} to {high:+.1f})"
                rows.append([task.replace("_", " "), variant, f"{found['mean']:+.1f} %{interval}"])
    return _markdown(["task", "variant", "CIDEr over reading alone (95 % interval)"], rows)


def sweep_table(
    results: Mapping[str, Any],
    variants: Variants,
    head: str,
    conditions: Sequence[str],
    chosen: Callable[[str], bool],
) -> str:
    """How results move over conditions: one row per condition, task and chosen metric."""
    rows = []
    for condition in (name for name in conditions if name in results["summary"]):
        for task, metrics in results["summary"][condition].items():
            for metric in filter(chosen, metrics):
                found = metrics[metric]
                cells = [_mean(found.get(variant)) for variant in variants]
                seeds = max(row["seeds"] for row in found.values())
                rows.append([condition, task.replace("_", " "), f"`{metric}`", *cells, str(seeds)])
    return _markdown([head, "task", "metric", *variants, "seeds"], rows)


def breakdown_table(
    results: Mapping[str, Any], variants: Variants, task: str, part: str, metric: str
) -> str:
    """One metric of the main runs over groups of test examples (``by_pictures`` and the like)."""
    groups: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = {}
    for run in results["runs"]:
        if run["purpose"] == "main" and run["variant"] in variants:
            for group, values in run["tasks"][task][part].items():
                groups.setdefault(group, {}).setdefault(run["variant"], []).append(values[metric])
                counts[group] = values["count"]
    rows = [
        [group, str(counts[group]), *(_number(metric, _average(v.get(x, []))) for x in variants)]
        for group, v in sorted(groups.items())
    ]
    return _markdown([part.removeprefix("by_"), "examples", *variants], rows)


def control_table(
    results: Mapping[str, Any],
    variants: Variants,
    task: str,
    metric: str,
    *,
    own: str = "own pictures",
) -> str:
    """A task as it is (``own``), and with what its controls make of it."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in results["runs"]:
        if run["purpose"] == "main":
            record = run["tasks"][task]
            parts = {own: record, **record["controls"]}
            for name, values in parts.items():
                row = found.setdefault(name.replace("_", " "), {})
                row.setdefault(run["variant"], []).append(values[metric])
    rows = [
        [name, *(_number(metric, _average(values.get(x, []))) for x in variants)]
        for name, values in found.items()
    ]
    return _markdown([f"`{metric}`", *variants], rows)


def loop_table(results: Mapping[str, Any], condition: str, variants: Variants, task: str) -> str:
    """One task with a row per variant: mean of each metric, and the gain over the baseline."""
    metrics = results["summary"][condition][task]
    rows = []
    for variant in variants:
        cells = []
        for found in metrics.values():
            gain = _gain(found.get(variant))
            cells.append(_mean(found.get(variant)) + ("" if gain == "–" else f"; {gain}"))
        rows.append([variant.replace("_", " "), *cells])
    return _markdown(["variant", *(f"`{metric}`" for metric in metrics)], rows)


def critic_table(results: Mapping[str, Any], condition: str, variants: Variants) -> str:
    """How often each critic prefers the truer answer, and what was left to tune on."""
    rows = []
    for variant in variants:
        named = (r for r in results["runs"] if r["name"].startswith(f"{condition}-{variant}-"))
        first = [run["critic"][0] for run in named if run.get("critic")]
        agreed = [c["critic_agrees_with_truth"] for c in first if c["critic_agrees_with_truth"]]
        if first:
            share = mean_interval([found["share"] for found in agreed]) if agreed else None
            compared = sum(found["count"] for found in agreed)
            pairs = sum(counts["pairs"] for counts in first)
            prompts = sum(counts["prompts"] for counts in first)
            rows.append(
                [variant.replace("_", " "), _mean(share), str(compared), f"{pairs} of {prompts}"]
            )
    return _markdown(["critic", "agrees with the truth, %", "comparisons", "pairs"], rows)


def critic_forms_table(results: Mapping[str, Any]) -> str:
    """How often the bases prefer the truer text, by what a critic is told and how it judges."""
    found: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    columns: dict[str, None] = {}
    for critic in (c for run in results["runs"] for c in run.get("critics", ())):
        row = (critic["shown"].replace("_", " "), "yes" if critic["metrics"] else "no")
        column = f"{critic['judge']}, {critic['orders']}"
        columns[column] = None
        if "share" in critic:
            found.setdefault(row, {}).setdefault(column, []).append(critic)
    rows = [
        [
            *row,
            *(
                _mean(mean_interval([c["share"] for c in cells[k]])) if k in cells else "–"
                for k in columns
            ),
            str(max(c["count"] for critics in cells.values() for c in critics)),
        ]
        for row, cells in found.items()
    ]
    return _markdown(["told in", "metrics", *columns, "pairs"], rows)


def cost_table(results: Mapping[str, Any], condition: str, variants: Variants) -> str:
    """What an answer costs by the number of shots: tokens of the prompt, milliseconds."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for run in results["runs"]:
        if run["purpose"] == "main" and run["name"].startswith(f"{condition}-"):
            for shots, costs in run["costs"].items():
                row = found.setdefault(shots, {}).setdefault(run["variant"], {})
                for name, value in costs.items():
                    row.setdefault(name, []).append(value)
    rows = []
    for shots in sorted(found, key=int):
        for name, label, scale in (
            ("tokens", "tokens", 1),
            ("seconds", "ms", 1000),
            ("cached_seconds", "ms, datastore encoded before", 1000),
        ):
            values = [_average(found[shots].get(v, {}).get(name, [])) for v in variants]
            cells = ["–" if math.isnan(value) else f"{scale * value:.0f}" for value in values]
            rows.append([shots, label, *cells])
    return _markdown(["shots", "an answer's", *variants], rows)


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
    makers = {
        "sam": _sam,
        "sam_real": _sam_real,
        "cheetah": _cheetah,
        "cheetah_real": _cheetah_real,
        "camml": _camml,
        "camml_real": _camml_real,
        "adapters": _adapters,
        "sima": _sima,
        "sima_real": _sima_real,
    }
    tables: dict[str, str] = {}
    for name, make in makers.items():
        path = folder / f"{name}.json"
        if path.exists():
            tables |= make(json.loads(path.read_text()))
    return tables


def _sam(results: Mapping[str, Any]) -> dict[str, str]:
    variants, budget = sam_variants.VARIANTS, f"q{results['settings']['budget']['tokens']}"
    group = ("group_captioning", "factor_accuracy[storybook]")
    story = ("storytelling", "name_accuracy[storybook]")
    tables = {
        "sam-main": main_table(results, budget, variants),
        "sam-relative": relative_table(results, budget, variants),
        "sam-budgets": sweep_table(
            results,
            variants,
            "budget",
            list(results["summary"]),
            lambda metric: metric == "cider[coco]" or "accuracy" in metric,
        ),
    }
    for other in set(results["summary"]) - {budget}:
        tables[f"sam-{other}"] = main_table(results, other, variants)
        tables[f"sam-{other}-relative"] = relative_table(results, other, variants)
    for part in ("by_pictures", "by_things", "by_factor"):
        tables[f"sam-group-{part}"] = breakdown_table(results, variants, group[0], part, group[1])
    tables["sam-story-by_pictures"] = breakdown_table(
        results, variants, story[0], "by_pictures", story[1]
    )
    return tables


def _sam_real(results: Mapping[str, Any]) -> dict[str, str]:
    variants, budget = sam_variants.VARIANTS, f"q{results['settings']['budget']['tokens']}"
    return {
        "sam-real": main_table(results, budget, variants),
        "sam-real-controls": control_table(results, variants, "african_storybook", "cider[coco]"),
    }


def _cheetah(results: Mapping[str, Any]) -> dict[str, str]:
    variants, settings = cheetah_study.VARIANTS, results["settings"]
    here = f"k{settings['placement']['layer']}"
    layers = sorted(f"k{layer}" for layer in (*settings["layers"], settings["placement"]["layer"]))
    shares = [*(f"{here}d{share:g}" for share in sorted(settings["shares"])), here]

    def headline(metric: str) -> bool:
        return metric == "cider[coco]" or "accuracy" in metric

    tables = {
        "cheetah-main": main_table(results, here, variants, cheetah_study.ALSO),
        "cheetah-layers": sweep_table(results, variants, "layer", layers, headline),
        "cheetah-shares": sweep_table(results, variants, "edited pictures", shares, headline),
    }
    for task, metric, parts in (
        ("change_captioning", "change_accuracy[storybook]", ("by_salience", "by_change")),
        ("detail_questions", "accuracy[detail]", ("by_salience", "by_question")),
    ):
        for part in parts:
            name = f"cheetah-{task.partition('_')[0]}-{part}"
            tables[name] = breakdown_table(results, variants, task, part, metric)
    return tables


def _cheetah_real(results: Mapping[str, Any]) -> dict[str, str]:
    variants, here = cheetah_study.VARIANTS, f"k{results['settings']['placement']['layer']}"
    return {
        "cheetah-real": main_table(results, here, variants, cheetah_study.ALSO),
        "cheetah-real-controls": control_table(results, variants, "statements", "accuracy[nlvr]"),
    }


def _camml(results: Mapping[str, Any]) -> dict[str, str]:
    variants, settings = camml_study.VARIANTS, results["settings"]
    here = f"q{settings['context']['queries']}"
    counts = settings["shots"]
    middle = f"shots_{counts[(len(counts) - 1) // 2]}"
    sizes = [f"q{size['queries']}" for size in (*settings["sweep"], settings["context"])]
    metric = "accuracy[knowledge]"
    tables = {
        "camml-main": main_table(results, here, variants, camml_study.ALSO),
        "camml-costs": cost_table(results, here, variants),
        "camml-sizes": sweep_table(
            results,
            ("camml",),
            "context",
            sorted(sizes, key=lambda name: int(name[1:])),
            lambda name: name == metric,
        ),
    }
    # Of shots by chance, others have the fact.
    retrieved = tuple(variant for variant in variants if variant != "random")
    tables["camml-by_found"] = breakdown_table(results, retrieved, middle, "by_found", metric)
    tables["camml-by_attribute"] = breakdown_table(
        results, variants, middle, "by_attribute", metric
    )
    return tables


def _camml_real(results: Mapping[str, Any]) -> dict[str, str]:
    variants = camml_study.VARIANTS
    here = f"q{results['settings']['context']['queries']}"
    return {"camml-real": main_table(results, here, variants, camml_study.ALSO)}


def _adapters(results: Mapping[str, Any]) -> dict[str, str]:
    variants, settings = adapters_study.VARIANTS, results["settings"]
    bases = [f"{base['family']}{base['grid'] ** 2}" for base in settings["bases"]]
    tables = {
        f"adapters-{name}": main_table(results, name, variants, adapters_study.ALSO)
        for name in bases
    }
    tables["adapters-budgets"] = sweep_table(
        results,
        variants,
        "base",
        sorted(results["summary"]),
        lambda metric: metric == "cider[coco]" or "accuracy" in metric,
    )
    return tables


def _sima(results: Mapping[str, Any]) -> dict[str, str]:
    settings = results["settings"]
    variants = settings["variants"]
    rounds = [settings["rounds"], *settings["more_rounds"]]
    names = [f"i{each['iterations']}" for each in rounds]
    here, repeated = names[0], [v for v in sima_study.REPEATED if v in variants]
    return {
        "sima-description": loop_table(results, here, variants, "description"),
        "sima-existence": loop_table(results, here, variants, "existence"),
        "sima-critic": critic_table(results, here, variants),
        "sima-iterations": sweep_table(
            results, repeated, "iterations", names, lambda metric: "yes_ratio" not in metric
        ),
    }


def _sima_real(results: Mapping[str, Any]) -> dict[str, str]:
    variants = results["settings"]["variants"]
    here = f"i{results['settings']['rounds']['iterations']}"
    share = "accuracy[likelihood]"
    return {
        "sima-real-critic": critic_forms_table(results),
        "sima-real-loops": critic_table(results, here, variants),
        "sima-real-tuning": main_table(
            {"summary": {here: {"foils": results["summary"][here]["foils"]}}},
            here,
            variants,
            sima_real.ALSO,
        ),
        "sima-real-controls": control_table(
            results, variants, "foils", share, own="the picture's list"
        ),
        "sima-real-by_decided": breakdown_table(results, variants, "foils", "by_decided", share),
        "sima-real-lists": loop_table(results, here, variants, "lists"),
        "sima-real-photos": loop_table(results, here, variants, "photos"),
        "sima-real-photo-controls": control_table(
            results, variants, "photos", "cider[coco]", own="own photo and list"
        ),
    }


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
