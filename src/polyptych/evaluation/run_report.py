"""The page of a run: scores with intervals, baselines and published rows, then answers to look at.

One file, no scripts, nothing fetched; made from what stands in the run's folder, so that it can be
made again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polyptych.data.records import IMAGE_TOKEN, parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.aggregation import Summary
from polyptych.evaluation.demon.benchmark import SUMMARY_FILE
from polyptych.evaluation.demon.report import category_rows, remarks
from polyptych.evaluation.published import published_for
from polyptych.evaluation.report import gallery, is_lower_better, label, page, text
from polyptych.evaluation.report_cards import Answer, card, choose, some_of, with_kinds
from polyptych.evaluation.report_scores import (
    DRAWN_CHIP,
    Row,
    anchor,
    overview_table,
    published_table,
    task_table,
)
from polyptych.evaluation.results import Result, read_run, settings_text
from polyptych.evaluation.runner import ITEMS_FILE, PREDICTIONS_FILE
from polyptych.evaluation.task import load_examples
from polyptych.evaluation.tasks.catalog import BENCHMARKS
from polyptych.files import write_aside
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock

REPORT_FILE = "report.html"

CARDS = 8
"""Cards of each kind, for up to :data:`MANY_TASKS` tasks; of more tasks half as many."""
MANY_TASKS = 6

FAULTS = 20
"""Bad items of a task that are named on the page; ``scores.json`` has all."""

OUTCOMES = {"best": "best", "worst": "worst"}


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        run: Its folder.
        out: The page; default: ``report.html`` in the folder.

    Returns:
        Where it is.

    Raises:
        PolyptychError: If there is no finished run.
    """
    parts = [Part(result) for result in read_run(run).values()]
    path = Path(out) if out is not None else Path(run, REPORT_FILE)
    with write_aside(path) as file:
        file.write(render(parts))
    return path


@dataclass(frozen=True)
class Part:
    """What the page says of one task."""

    result: Result

    @property
    def name(self) -> str:
        """Its task."""
        return self.result.task_name

    @property
    def title(self) -> str:
        """How people call it."""
        known = BENCHMARKS.get(self.name)
        return known.title if known else self.name.replace("_", " ")

    @property
    def drawn(self) -> bool:
        """Whether its items are a drawn sample, none of the benchmark's."""
        return bool(self.result.record.get("origin", {}).get("drawn"))

    @cached_property
    def rows(self) -> list[Row]:
        """Its metrics, the one that papers report first."""
        record = self.result.record
        baselines = {
            name: baseline["values"] for name, baseline in record.get("baselines", {}).items()
        }
        rows = [Row.read(self.name, score, baselines) for score in record["scores"]]
        first = headline(self.name, [row.name for row in rows])
        return sorted(rows, key=lambda row: row.name != first)

    @cached_property
    def ranking(self) -> str | None:
        """The metric that orders its items: the headline, or the first that items have."""
        names = [row.name for row in self.rows]
        return next((n for n in names if any(n in own for own in self.items.values())), None)

    @cached_property
    def items(self) -> dict[str, dict[str, float]]:
        """Id to metric to value."""
        records = _records(self.result.folder / ITEMS_FILE)
        return {record["id"]: record["scores"] for record in records}

    @cached_property
    def values(self) -> dict[str, float]:
        """Id to its value of the ranking metric."""
        name = self.ranking
        return {i: own[name] for i, own in self.items.items() if name is not None and name in own}

    @property
    def merits(self) -> dict[str, float]:
        """The same with more as better."""
        sign = -1 if self.ranking is not None and is_lower_better(self.ranking) else 1
        return {identity: sign * value for identity, value in self.values.items()}

    @cached_property
    def predictions(self) -> dict[str, dict[str, Any]]:
        """Id to the whole line of its answer."""
        return {r["id"]: r for r in _records(self.result.folder / PREDICTIONS_FILE)}

    @cached_property
    def examples(self) -> dict[str, Example]:
        """Id to example; where the task's files are gone, what the answers' lines tell of it."""
        try:
            return {example.id: example for example in load_examples(self.result.task).examples}
        except PolyptychError:
            return {i: _example_of(record) for i, record in self.predictions.items()}


def _records(path: Path) -> list[dict[str, Any]]:
    return [parse_json(line, where) for where, line in read_lines(path)]


def _example_of(record: Mapping[str, Any]) -> Example:
    """The example as the line of its answer tells of it, without choices and metadata."""
    pieces = record["prompt"].split(IMAGE_TOKEN)
    blocks: list[Block] = [TextBlock(pieces[0])]
    for piece in pieces[1:]:
        blocks += [ImageBlock(), TextBlock(piece)]
    return Example(
        record["id"],
        (Message("user", tuple(blocks)),),
        tuple(ImageRef(path=path) for path in record["images"]),
        tuple(record["references"]),
    )


def headline(task: str, names: Sequence[str]) -> str | None:
    """The metric of a task that papers report; of several flavors the first."""
    known = BENCHMARKS.get(task)
    if known is not None:
        for name in names:
            if name.partition("[")[0] == known.metric:
                return name
    return names[0] if names else None


# The page.

_DRAWN = (
    '<p class="warning">Tasks marked as a drawn sample are a few drawn questions in the layout of '
    "the benchmark whose name they bear. They show that reading, answering and scoring work; their "
    "numbers say nothing about the benchmark.</p>"
)


def render(parts: Sequence[Part]) -> str:
    """The page of one run."""
    answerers = list(dict.fromkeys(part.result.answerer for part in parts))
    total = sum(part.result.record["count"] for part in parts)
    name = ", ".join(answerers)
    plain = [part for part in parts if not part.name.startswith("demon/")]
    demon = [part for part in parts if part.name.startswith("demon/")]
    count = CARDS if len(parts) <= MANY_TASKS else CARDS // 2
    body = [
        f"<header><h1>{text(name)}</h1>",
        f'<p class="lead">{len(parts)} task{"s" * (len(parts) != 1)}, {total:,} items. Every score '
        "has its 95 % interval: bootstrap over items, those of one picture drawn together. "
        "Percent, unless it says points.</p></header>",
        _DRAWN if any(part.drawn for part in plain) else "",
        overview_table([(p.name, p.title, p.rows, p.drawn) for p in plain]) if plain else "",
        _demon(demon),
        *(_task(part, count) for part in plain),
        *([_answers_of(demon, max(1, CARDS // 4))] if demon else []),
        _facts(parts),
    ]
    return page(f"Evaluation of {name}", "\n".join(filter(None, body)))


def _task(part: Part, count: int) -> str:
    record = part.result.record
    chip = DRAWN_CHIP if part.drawn else ""
    lines = [f'<section id="{anchor(part.name)}"><h2>{text(part.title)}{chip}</h2>']
    clusters = record.get("bootstrap", {}).get("clusters", record["count"])
    shared = f" over {clusters:,} sets of pictures" if clusters != record["count"] else ""
    decoding = settings_text(record)
    lines.append(f"<p>{record['count']:,} items{shared}; {text(decoding)}.</p>")
    lines.append(_faults(record.get("faults", [])))
    if not part.rows:
        lines.append("<p>Not scored here: its server or a judge does that.</p>")
        return "".join([*lines, "</section>"])
    lines.append(task_table(part.rows))
    for row in () if part.drawn else part.rows:
        if rows := published_for(part.name, row.name.partition("[")[0]):
            lines.append(published_table(part.result.answerer, row, rows))
            lines.append(
                f"<p><small>Published rows are over the whole published set, this run over "
                f"{record['count']:,} items.</small></p>"
            )
            break
    lines.append(_gallery(part, count))
    return "".join([*lines, "</section>"])


def _faults(faults: Sequence[str]) -> str:
    """What was left out of a task, and why."""
    if not faults:
        return ""
    shown = "".join(f"<li>{text(line)}</li>" for line in faults[:FAULTS])
    more = f"<li>and {len(faults) - FAULTS:,} more</li>" if len(faults) > FAULTS else ""
    head = f"Left out: {len(faults):,} bad item{'s' * (len(faults) != 1)} of the task's files."
    return f'<div class="warning">{head}<ul>{shown}{more}</ul></div>'


def _gallery(part: Part, count: int) -> str:
    chosen = choose(part.merits, count)
    if not chosen or part.ranking is None:
        some = [
            ("some", card(part.examples[identity], [_said(part, identity)]))
            for identity in some_of(part.predictions, count)
            if identity in part.examples
        ]
        head = "<p><small>No item stands out; some of them, by chance.</small></p>"
        return head + gallery(anchor(part.name), some, {})
    name, flavor = label(part.ranking)
    cards = [
        (kind, card(example, [_said(part, example.id)]))
        for kind, example in with_kinds(chosen, part.examples, OUTCOMES)
    ]
    return (
        f"<p><small>Items by their own {text(name)} {text(flavor)}, best and worst; of equal ones "
        f"a choice at random.</small></p>{gallery(anchor(part.name), cards, OUTCOMES)}"
    )


def _said(part: Part, identity: str) -> Answer:
    said = part.predictions[identity]["prediction"]
    return Answer(part.result.answerer, said, part.values.get(identity))


def _demon(parts: Sequence[Part]) -> str:
    """DEMON's table by category beside its 11 published rows."""
    folders = {part.result.folder.parent for part in parts}
    paths = [folder / SUMMARY_FILE for folder in folders if (folder / SUMMARY_FILE).is_file()]
    found = []
    for path in paths:
        summary = Summary.load(path)
        head, rows = category_rows(summary)
        cells = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
        ours = len(rows) - 2
        lines = "".join(
            f'<tr{" class=ours" if number >= ours else ""}><th scope="row">{text(row[0])}</th>'
            + "".join(
                f'<td data-label="{text(column)}">{text(cell)}</td>'
                for column, cell in zip(head[1:], row[1:], strict=True)
            )
            + "</tr>"
            for number, row in enumerate(rows)
        )
        notes = "".join(f"<li>{text(line)}</li>" for line in remarks(summary))
        found.append(
            f'<section id="demon"><h2>DEMON-{text(summary.split.title())}</h2><div class="scroll">'
            f'<table class="scores wide"><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody>'
            f"</table></div><ul>{notes}</ul></section>"
        )
    return "".join(found)


def _answers_of(parts: Sequence[Part], count: int) -> str:
    """One gallery over all tasks of DEMON."""
    cards = [
        (kind, f'<p class="of">{text(part.name)}</p>' + card(example, [_said(part, example.id)]))
        for part in parts
        for kind, example in with_kinds(choose(part.merits, count), part.examples, OUTCOMES)
    ]
    cards.sort(key=lambda entry: list(OUTCOMES).index(entry[0]))
    return f"<section><h2>Answers to DEMON</h2>{gallery('demon', cards, OUTCOMES)}</section>"


def _facts(parts: Sequence[Part]) -> str:
    """What repeats the numbers."""
    record = parts[0].result.record
    model = record.get("model", {})
    facts = {
        "Model": ", ".join(f"{key} {value}" for key, value in model.items()),
        "Prompt layout": record.get("prompt_template", "the answerer's own"),
        "Images read by": record.get("image_backend", "the answerer itself, from RGB"),
        "Versions": ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()),
        "Intervals": "95 %, {resamples} resamples, seed {seed}".format(**record["bootstrap"]),
    }
    for part in parts:
        own = part.result.record
        facts[part.title] = (
            f"data {own['data_hash']}, decoding {settings_text(own)}, settings "
            f"{own['settings_hash']}; first prompt: {own.get('prompt', '')!r}"
        )
    lines = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in facts.items())
    head = '<section id="facts"><h2>What made these numbers</h2>'
    return f'{head}<dl class="facts">{lines}</dl></section>'
