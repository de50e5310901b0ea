"""Our rows beside the 11 published ones: Markdown for files, a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyptych.evaluation.demon.aggregation import AVERAGES, FLAVOURS, Summary, Value
from polyptych.evaluation.demon.catalog import CATEGORIES, DATASETS, datasets_of
from polyptych.evaluation.demon.published import PublishedRow, published_models

SHORT = dict(zip(CATEGORIES, ("MD", "VS", "VRI", "MC", "KG", "TR", "MI"), strict=True))
"""The paper's abbreviations, for narrow tables."""

NOTHING = "\N{EN DASH}"


def to_markdown(summary: Summary) -> str:
    """The whole report: categories, tasks with intervals, each beside the published rows."""
    parts = [
        f"# DEMON-{summary.split.title()}: {summary.model}",
        "Percent; ROUGE-L for the first three categories, accuracy for the others; a category is "
        "the unweighted mean of its tasks, the averages are means of categories. `released` "
        "repeats the published scorer with its quirks, `fixed` mends them; published rows were "
        "made with the former and with sampling.",
        "## Categories",
        _markdown_table(*category_rows(summary)),
        "95 % intervals (bootstrap over answers, stratified by task):",
        _markdown_table(*_interval_rows(summary)),
    ]
    for category in CATEGORIES:
        rows = _dataset_rows(summary, category)
        if rows:
            parts += [f"## {category}", _markdown_table(*rows)]
    parts += _remarks(summary)
    return "\n\n".join(parts) + "\n"


def to_table(summary: Summary) -> Any:
    """A ``rich`` table of categories: 11 published rows, then ours."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    _, rows = category_rows(summary)
    head = ["Model", *SHORT.values(), "R-L", "Acc"]
    title = f"DEMON-{summary.split.title()}, percent"
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,  # 80 columns suffice
    )
    for number, column in enumerate(head):
        table.add_column(column, justify="right" if number else "left", no_wrap=bool(number))
    published = len(published_models())
    for number, row in enumerate(rows):
        style = "bold" if number >= published else None
        cells = map(Text, row)  # as it is: "[fixed]" is no markup
        table.add_row(*cells, style=style, end_section=number == published - 1)
    return table


def remarks(summary: Summary) -> list[str]:
    """One line each: missing tasks, odd data, and where the published scorer stops."""
    lines = list(summary.notes)
    if summary.missing:
        total = len(datasets_of(summary.split))  # type: ignore[arg-type]
        lines.insert(
            0, f"{len(summary.missing)} of {total} tasks missing: {', '.join(summary.missing)}"
        )
    return lines


def _remarks(summary: Summary) -> list[str]:
    lines = remarks(summary)
    return ["## Remarks", "\n".join(f"- {line}" for line in lines)] if lines else []


def category_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table by category; ours are the last two."""
    head = ["Model", *SHORT.values(), *AVERAGES]
    rows = [
        [row.name, *_numbers(row.categories, CATEGORIES), *_averages(row)]
        for row in published_models()
    ]
    for flavour in FLAVOURS:
        values = {name: v.value for name, v in summary.categories[flavour].items()}
        rows.append([f"{summary.model} [{flavour}]", *_numbers(values, (*CATEGORIES, *AVERAGES))])
    return head, rows


def _averages(row: PublishedRow) -> list[str]:
    return [
        f"{sum(row.categories[c] for c in categories) / len(categories):.2f}"
        for categories in AVERAGES.values()
    ]


def _interval_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    names = [*CATEGORIES, *AVERAGES, "Overall"]
    rows = [
        [
            name,
            *(_with_interval(summary.categories[f].get(name)) for f in FLAVOURS),
            _behind(name, summary),
        ]
        for name in names
    ]
    return ["", *FLAVOURS, "tasks (answers)"], rows


def _behind(name: str, summary: Summary) -> str:
    value = summary.categories["fixed"].get(name)
    return f"{value.datasets} ({value.count})" if value else NOTHING


def _dataset_rows(summary: Summary, category: str) -> tuple[list[str], list[list[str]]] | None:
    names = [name for name, dataset in DATASETS.items() if dataset.category == category]
    names = [name for name in names if any(name in summary.datasets[f] for f in FLAVOURS)]
    if not names:
        return None
    rows = [[row.name, *_numbers(row.datasets, names)] for row in published_models()]
    for flavour in FLAVOURS:
        ours = [_with_interval(summary.datasets[flavour].get(name)) for name in names]
        rows.append([f"{summary.model} [{flavour}]", *ours])
    return ["Model", *names], rows


def _numbers(values: Mapping[str, float], names: Iterable[str]) -> list[str]:
    return [f"{values[name]:.2f}" if name in values else NOTHING for name in names]


def _with_interval(value: Value | None) -> str:
    if value is None:
        return NOTHING
    return f"{value.value:.2f} [{value.interval.low:.1f}, {value.interval.high:.1f}]"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
