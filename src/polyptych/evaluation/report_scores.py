"""The tables of a run's page: all tasks at a glance, one task's metrics, and published rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyptych.evaluation.published import PublishedRow, published_for
from polyptych.evaluation.report import NOTHING, is_lower_better, label, text, written
from polyptych.evaluation.tasks import mme

_HIDDEN = frozenset({"bleu_1", "bleu_2", "bleu_3"})
"""Steps on the way to BLEU-4; they stand in ``scores.json``."""

DRAWN_CHIP = ' <span class="chip middle">drawn sample</span>'

_POINTS = {
    **{("mme", name): 200.0 * len(tasks) for name, tasks in mme.PARTS.items()},
    ("mmhal", "score"): 6.0,
    ("chair", "length"): 100.0,
}


def points_of(task: str, metric: str) -> float | None:
    """The largest value of a metric that papers print in points; None for shares."""
    return _POINTS.get((task, metric.partition("[")[0].partition(".")[0]))


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one task."""

    task: str
    name: str
    value: float
    low: float
    high: float
    count: int
    baselines: Mapping[str, float]
    """``majority`` and ``chance``, as far as there are any."""

    @classmethod
    def read(
        cls, task: str, score: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]]
    ) -> Row:
        """From an entry of a task's ``scores.json``; null is NaN."""
        numbers = [score["value"], *score["interval"]]
        value, low, high = (math.nan if number is None else number for number in numbers)
        own = {
            name: values[score["name"]]
            for name, values in baselines.items()
            if score["name"] in values
        }
        return cls(task, score["name"], value, low, high, score["count"], own)

    @property
    def stem(self) -> str:
        """Its name without flavor."""
        return self.name.partition("[")[0]

    @property
    def top(self) -> float | None:
        """Largest value of a metric in points; None for shares."""
        return points_of(self.task, self.name)

    def written(self, value: float) -> str:
        """A value in the unit that papers print."""
        return written(value, self.top)


def anchor(name: str) -> str:
    """A task's name as the target of links."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def shown(name: str) -> bool:
    """Whether a metric has a row of its own."""
    return name.partition("[")[0] not in _HIDDEN


def overview_table(tasks: Sequence[tuple[str, str, Sequence[Row], bool]]) -> str:
    """One line per task: its headline metric.

    Args:
        tasks: Name, title, metrics with the headline first, and whether it is a drawn sample,
            beside which nothing published stands.
    """
    head = ("Task", "Score", "95 % interval", "Majority", "Chance", "Published")
    lines = []
    for name, title, rows, drawn in tasks:
        link = f'<a href="#{anchor(name)}">{text(title)}</a>{DRAWN_CHIP if drawn else ""}'
        if not rows:
            cells = f'<td class="source" colspan="{len(head) - 1}">not scored here</td>'
        else:
            metric, flavor = label(rows[0].name)
            link += f"<br><small>{text(metric)} {text(flavor)}</small>"
            cells = _cells(rows[0]) + (
                _empty("Published") if drawn else _best_published(name, rows[0])
            )
        lines.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    return _table(head, lines, "Scores", "scores overview")


def task_table(rows: Sequence[Row]) -> str:
    """All metrics of one task."""
    head = ("Metric", "Score", "95 % interval", "Majority", "Chance", "Items")
    lines = []
    for row in rows:
        if shown(row.name):
            metric, flavor = label(row.name)
            lines.append(
                f'<tr><th scope="row">{text(metric)} <small>{text(flavor)}</small></th>'
                f'{_cells(row)}<td data-label="Items">{row.count:,}</td></tr>'
            )
    return _table(head, lines, "")


def published_table(answerer: str, own: Row, rows: Sequence[tuple[PublishedRow, float]]) -> str:
    """Published rows of a metric with ours at its place, best first."""
    factor = 1.0 if own.top is not None else 100.0
    entries = [(value, row.model, row.source, "") for row, value in rows]
    if not math.isnan(own.value):
        interval = f"this run, {own.written(own.low)} to {own.written(own.high)}"
        entries.append((factor * own.value, answerer, interval, ' class="ours"'))
    entries.sort(key=lambda entry: entry[0], reverse=not is_lower_better(own.name))
    lines = [
        f'<tr{kind}><th scope="row">{text(model)}</th>'
        f'<td data-label="{text(label(own.name)[0])}">{own.written(value / factor)}</td>'
        f'<td class="source" data-label="Source">{text(source)}</td></tr>'
        for value, model, source, kind in entries
    ]
    metric, flavor = label(own.name)
    head = ("Model", f"{metric} {flavor}", "Source")
    return _table(head, lines, "Beside published numbers", "scores published")


def _cells(row: Row) -> str:
    baselines = "".join(
        f'<td data-label="{name.capitalize()}">{row.written(row.baselines[name])}</td>'
        if name in row.baselines
        else _empty(name.capitalize())
        for name in ("majority", "chance")
    )
    interval = f"{row.written(row.low)} to {row.written(row.high)}"
    return (
        f'<td class="second" data-label="Score">{row.written(row.value)}</td>'
        f'<td class="plot"><span>{interval}</span>{_whisker(row)}</td>{baselines}'
    )


def _empty(column: str) -> str:
    return f'<td class="none" data-label="{column}">{NOTHING}</td>'


def _best_published(task: str, row: Row) -> str:
    rows = published_for(task, row.stem)
    if not rows:
        return _empty("Published")
    better = min if is_lower_better(row.name) else max
    best, value = better(rows, key=lambda entry: entry[1])
    shown_value = row.written(value if row.top is not None else value / 100)
    return f'<td data-label="Published">{shown_value} <small>{text(best.model)}</small></td>'


def _whisker(row: Row) -> str:
    """Dot and interval on an axis from zero; short bars where the baselines are."""
    if math.isnan(row.value):
        return ""
    top = row.top or max(1.0, 1.05 * row.high)
    at = [200 * number / top for number in (row.low, row.high, row.value)]
    ticks = "".join(
        f'<line class="baseline" x1="{200 * value / top:.1f}" x2="{200 * value / top:.1f}" y1="2" '
        f'y2="16"><title>{text(name)}</title></line>'
        for name, value in row.baselines.items()
        if not math.isnan(value)
    )
    return (
        f'<svg viewBox="-5 0 210 18" aria-hidden="true"><line class="axis" x1="0" x2="200" y1="9" '
        f'y2="9"/>{ticks}<g class="second"><line x1="{at[0]:.1f}" x2="{at[1]:.1f}" y1="9" y2="9"/>'
        f'<circle cx="{at[2]:.1f}" cy="9" r="4"/></g></svg>'
    )


def _table(head: Sequence[str], lines: Sequence[str], caption: str, kind: str = "scores") -> str:
    cells = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{title}<thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
