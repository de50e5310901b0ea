"""The page of two runs: scores side by side, and the items that changed most with both answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from polyptych.errors import PolyptychError
from polyptych.evaluation.comparing import Compared, compare_results, is_clear
from polyptych.evaluation.report import gallery, is_lower_better, label, page, score_table, text
from polyptych.evaluation.report_cards import Answer, card, choose_changed, with_kinds
from polyptych.evaluation.report_scores import anchor, points_of, shown
from polyptych.evaluation.results import read_run
from polyptych.evaluation.tasks.catalog import BENCHMARKS
from polyptych.files import write_aside

CARDS = 8
"""Cards of each kind."""

CHANGES = {"gained": "gained most", "lost": "lost most"}


def write_comparison(first: str | Path, second: str | Path, out: str | Path) -> Path:
    """Write the page of two runs: scores side by side and the items that changed most.

    Raises:
        PolyptychError: If they share no task.
    """
    runs = read_run(first), read_run(second)
    shared = [name for name in runs[0] if name in runs[1]]
    if not shared:
        raise PolyptychError(f"{first} and {second} share no task")
    sections = []
    names = ("", "")
    for name in shared:
        compared = compare_results(runs[0][name], runs[1][name])
        names = compared.systems
        if names[0] == names[1]:
            names = (f"{names[0]} ({first})", f"{names[1]} ({second})")
        sections.append(_compared(compared, names))
    lead = (
        f'<header><h1><span class="name-first">{text(names[0])}</span> and '
        f'<span class="name-second">{text(names[1])}</span></h1><p class="lead">'
        f"{len(shared)} tasks, judged on the items that both answered. A difference is second "
        "minus first, with its 95 % interval; p is two-sided, from paired resampling.</p></header>"
    )
    out = Path(out)
    with write_aside(out) as file:
        file.write(page(f"{names[0]} and {names[1]}", lead + "".join(sections)))
    return out


def _compared(compared: Compared, names: tuple[str, str]) -> str:
    known = BENCHMARKS.get(compared.task)
    title = known.title if known else compared.task
    head = f'<section id="{anchor(compared.task)}"><h2>{text(title)}</h2>'
    if not compared.rows:
        return f"{head}<p>Its answers are not scored here.</p></section>"
    points = partial(points_of, compared.task)
    rows = [row for row in compared.rows if shown(row.first.name)]
    unclear = [label(row.first.name)[0] for row in rows if not is_clear(row)]
    warning = (
        f'<p class="warning">Inside the interval, so no difference shown: '
        f"{text(', '.join(dict.fromkeys(unclear)))}.</p>"
        if unclear
        else ""
    )
    problems = "".join(f"<li>{text(line)}</li>" for line in compared.problems[:20])
    return (
        f"{head}{score_table(rows, names, f'{len(compared.examples):,} items', points)}{warning}"
        f"{f'<ul>{problems}</ul>' if problems else ''}{_changed(compared, names)}</section>"
    )


def _changed(compared: Compared, names: tuple[str, str]) -> str:
    row = next((row for row in compared.rows if row.first.per_item), None)
    if row is None:
        return ""
    first, second = row.first.per_item or {}, row.second.per_item or {}
    better = (second, first) if is_lower_better(row.first.name) else (first, second)
    chosen = choose_changed(*better, CARDS)
    if not chosen:
        return "<p><small>No item changed its value.</small></p>"
    said = [{p.id: p.text for p in predictions} for predictions in compared.predictions]
    examples = {example.id: example for example in compared.examples}
    cards = [
        (
            kind,
            card(
                example,
                [
                    Answer(name, texts[example.id], values.get(example.id))
                    for name, texts, values in zip(names, said, (first, second), strict=True)
                ],
            ),
        )
        for kind, example in with_kinds(chosen, examples, CHANGES)
    ]
    return gallery(anchor(compared.task), cards, CHANGES)
