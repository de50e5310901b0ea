"""What changed: the answers to held-out prompts, before and after each iteration.

Every measure that the prompts allow is taken: caption metrics where there are references, CHAIR and
the truth of an answer where it is known what the pictures show; changed words always.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyptych.data.images import load_image
from polyptych.evaluation.scorers import (
    Measurement,
    Scorer,
    caption_scorer,
    compare,
    estimate,
    item_scorer,
    measure,
)
from polyptych.evaluation.scoring.chair import chair_scorer, storybook_words
from polyptych.files import write_aside
from polyptych.methods.sima.records import GREEDY, Responses
from polyptych.methods.sima.truth import truth
from polyptych.schema import Example, Prediction

REPORT_FILE, PAGE_FILE = "report.json", "report.html"

SHOWN = 12
"""Answers that the page shows, those that changed first."""

LESS_IS_BETTER = ("chair_i", "chair_s")


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers of one model and what was measured of them."""

    answers: tuple[Responses, ...]
    measurements: tuple[Measurement, ...]


def measure_answers(answers: Sequence[Responses]) -> Measured:
    """Take every measure that the prompts allow."""
    examples = [item.prompt.example for item in answers]
    predictions = [Prediction(item.id, item.answers[GREEDY]) for item in answers]
    scorers: list[Scorer] = [item_scorer("words", lambda text, _: float(len(text.split())))]
    if all(example.references for example in examples):
        scorers.append(caption_scorer("cider"))
    if all(truth("", example.metadata) is not None for example in examples):
        scorers.append(item_scorer("truth", lambda text, about: truth(text, about) or 0.0))
    if all(example.metadata.get("task") == "description" for example in examples):
        scorers.append(chair_scorer(storybook_words(), "fixed"))
        examples = [_with_objects(example) for example in examples]
    found = [m for m in measure(scorers, examples, predictions) if not m.name.startswith("length")]
    return Measured(tuple(answers), tuple(found))


def _with_objects(example: Example) -> Example:
    """CHAIR reads ``objects``; a description's references name every thing of its picture."""
    return dataclasses.replace(example, metadata={**example.metadata, "objects": []})


def write_report(out: Path, run: dict[str, Any], measures: Sequence[Measured]) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html``.

    Args:
        out: The run's folder.
        run: Start, settings and counts of every iteration.
        measures: Of the start and of the model after each iteration.
    """
    start = measures[0]
    table = []
    for place, measurement in enumerate(start.measurements):
        row: dict[str, Any] = {"metric": measurement.name, "models": []}
        for measured in measures:
            now = measured.measurements[place]
            score = estimate(now)
            entry: dict[str, Any] = {"value": score.value, "interval": list(score.interval)}
            if measured is not start:
                change = compare(now, measurement)
                entry["change"] = {
                    "value": change.value,
                    "interval": list(change.interval),
                    "p_value": change.p_value,
                }
            row["models"].append(entry)
        table.append(row)
    before = [item.answers[GREEDY] for item in start.answers]
    changed = [
        sum(a != item.answers[GREEDY] for a, item in zip(before, m.answers, strict=True))
        for m in measures[1:]
    ]
    report = {**run, "changed_answers": changed, "metrics": table}
    with write_aside(out / REPORT_FILE) as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
    with write_aside(out / PAGE_FILE) as file:
        file.write(_page(report, measures))
    return report


def table_lines(report: dict[str, Any]) -> list[str]:
    """The report for a terminal: a row per metric, a column per model."""
    count = len(report["iterations"]) + 1
    names = ["start", *(f"iteration {number}" for number in range(1, count))]
    lines = [f"{'held-out prompts':<18}" + "".join(f"{name:>30}" for name in names)]
    for row in report["metrics"]:
        cells = "".join(f"{_cell(entry):>30}" for entry in row["models"])
        lines.append(f"{row['metric']:<18}{cells}")
    total = report["prompts"]["held out"]
    changed = "".join(f"{f'{n} of {total}':>30}" for n in report["changed_answers"])
    return [*lines, f"{'changed answers':<18}{'':>30}{changed}"]


def _cell(entry: dict[str, Any]) -> str:
    """``0.6067``; with the change from the start and its interval ``0.61 +0.02 [-0.1, 0.1]``."""
    if "change" not in entry:
        return f"{entry['value']:.4f}"
    low, high = entry["change"]["interval"]
    return f"{entry['value']:.4f} {entry['change']['value']:+.3f} [{low:.3f}, {high:.3f}]"


# The page

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1d2430; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #d5dae2;
  vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 8rem; max-height: 8rem; image-rendering: auto; margin-right: .3rem; }
.sure { font-weight: 600; }
small { color: #5b6675; }
@media (prefers-color-scheme: dark) { body { color: #e4e8ee; background: #14181f; }
  th, td { border-color: #333b47; } small { color: #9aa5b4; } }
"""


def _page(report: dict[str, Any], measures: Sequence[Measured]) -> str:
    names = ["start", *(f"iteration {n}" for n in range(1, len(measures)))]
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(_metric_row(row) for row in report["metrics"])
    counts = "".join(_iteration_row(n, it) for n, it in enumerate(report["iterations"], start=1))
    answers = "".join(_answer_row(group) for group in _shown(measures))
    prompts = report["prompts"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>What changed</title>"
        f"<style>{_STYLE}</style><h1>What changed</h1>"
        f"<p>{prompts['improved on']} prompts to improve on, {prompts['held out']} held out; the "
        "held-out ones are measured here. Below each value: change from the start, with its 95 % "
        "interval (paired bootstrap); bold where the interval excludes 0.</p>"
        f"<table><tr><th>metric</th>{head}</tr>{rows}</table>"
        "<h2>Pairs</h2><table><tr><th>iteration</th><th>prompts</th><th>pairs</th><th>dropped</th>"
        f"<th>critic agrees with the truth</th></tr>{counts}</table>"
        f"<h2>Answers</h2><table><tr><th>images</th><th>question</th>{head}</tr>{answers}</table>"
        "</html>\n"
    )


def _metric_row(row: dict[str, Any]) -> str:
    arrow = " (less is better)" if row["metric"].startswith(LESS_IS_BETTER) else ""
    cells = []
    for entry in row["models"]:
        text = f"{entry['value']:.4f}"
        if "change" in entry:
            change = entry["change"]
            low, high = change["interval"]
            sure = " class=sure" if low > 0 or high < 0 else ""
            text += f"<br><small{sure}>{change['value']:+.4f} [{low:.4f}, {high:.4f}]</small>"
        cells.append(f"<td class=number>{text}</td>")
    return f"<tr><td>{html.escape(row['metric'])}{arrow}</td>{''.join(cells)}</tr>"


def _iteration_row(number: int, iteration: dict[str, Any]) -> str:
    drops = ", ".join(f"{count} {reason}" for reason, count in iteration["dropped"].items())
    agreed = iteration["critic_agrees_with_truth"]
    told = "not known"
    if agreed is not None:
        low, high = (100 * bound for bound in agreed["interval"])
        told = f"{100 * agreed['share']:.1f} % [{low:.1f}, {high:.1f}] of {agreed['count']}"
    cells = (number, iteration["prompts"], iteration["pairs"], drops or "none", told)
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _shown(measures: Sequence[Measured]) -> list[tuple[Responses, ...]]:
    """The same prompt's answers of every model, those that changed first."""
    groups = list(zip(*(measured.answers for measured in measures), strict=True))
    groups.sort(key=lambda group: len({item.answers[GREEDY] for item in group}) == 1)
    return groups[:SHOWN]


def _answer_row(group: Sequence[Responses]) -> str:
    example = group[0].prompt.example
    images = "".join(_thumbnail(ref) for ref in example.images)
    asked = " ".join(message.text.strip() for message in example.prompt)
    truth_told = group[0].prompt.ground_truth
    question = html.escape(asked)
    if truth_told:
        question += f"<br><small>{html.escape(truth_told)}</small>"
    cells = "".join(f"<td>{html.escape(item.answers[GREEDY])}</td>" for item in group)
    return f"<tr><td>{images}</td><td>{question}</td>{cells}</tr>"


def _thumbnail(ref: Any) -> str:
    image = load_image(ref, where="report")
    image.thumbnail((192, 192))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='' src='data:image/png;base64,{data}'>"
