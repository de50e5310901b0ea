"""The demo: the bundled models answer fresh questions over groups of pictures, side by side.

One reads every picture alone, the other (SAM, arXiv 2408.12867) lets the pictures guide each other.
Both are asked the same newly drawn test examples; the answers are scored, a table is printed, and
``report.html`` shows pictures, answers and where each model looked.

    python -m polyptych.serving.demo --out demo
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import LocalModel, model_hash
from polyptych.evaluation.report import Comparison, label, percent, signed
from polyptych.evaluation.runner import data_hash, generate
from polyptych.evaluation.scorers import compare, estimate, measure
from polyptych.evaluation.statistics import Interval
from polyptych.evaluation.task import GenerationSettings
from polyptych.evaluation.tasks.storybook import SETTINGS, storybook_task
from polyptych.files import write_aside
from polyptych.models.checkpoint import load_model
from polyptych.serving.attention import looks
from polyptych.serving.demo_page import SHORT_NAMES, Answered, render

REPORT = "report.html"

ALONE = "Each picture alone"
TOGETHER = "Pictures guide each other (SAM)"


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo asks whom."""

    alone: str | None = "storybook-independent"
    """The model that reads every picture alone."""
    together: str | None = "storybook-sam"
    """The model whose pictures guide each other."""
    tasks: tuple[str, ...] = ("group_captioning", "storytelling")
    drawing: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "group_captioning": {
                "pictures": (3, 5),
                "things": (3, 5),
                "factor_types": ("kind", "colored_kind", "category", "place"),
            },
            "storytelling": {"things": (3, 5)},
        }
    )
    """What the drawer is told, by task: questions of the sort that the bundled models learned."""
    count: int = 120
    """Examples per task."""
    seed: int = 2026
    """Seed of the drawn examples; another one draws others."""
    shown: int = 24
    """Examples per task in the report: the first ones drawn, not picked."""
    printed: int = 3
    """Examples per task on the console."""
    decoding: GenerationSettings = SETTINGS
    """How both models decode: as the Storybook tasks are evaluated."""


DEFAULTS = DemoSettings()


@dataclass(frozen=True, slots=True)
class System:
    """One of the two models."""

    name: str
    model: Any
    processor: Any


def run(settings: DemoSettings, out: Path, console: Console | None = None) -> Path:
    """Ask both models, print answers and scores, write the report.

    Args:
        settings: What is asked.
        out: Folder of the report and of both models' predictions.
        console: Where to print.

    Returns:
        The path of the report.

    Raises:
        PolyptychError: If a model cannot be loaded or ``out`` cannot be written.
    """
    console, start = console or Console(highlight=False), time.perf_counter()
    disable_progress_bar()  # of transformers, for loading a few megabytes
    systems = (
        System(ALONE, *load_model(settings.alone)),
        System(TOGETHER, *load_model(settings.together)),
    )
    answered = [_answer_task(name, systems, settings, out) for name in settings.tasks]
    for part in answered:
        _print_answers(part, settings.printed, console)
        console.print(_table(part))
    with write_aside(out / REPORT) as file:
        file.write(render(answered, _facts(settings, systems, answered)))
    console.print(
        f"\n{len(answered)} tasks, {sum(len(part.examples) for part in answered)} examples, "
        f"{time.perf_counter() - start:.0f} s. Pictures, answers and where each model looked: "
        f"[bold]{out / REPORT}[/bold]"
    )
    return out / REPORT


def _answer_task(
    name: str, systems: tuple[System, System], settings: DemoSettings, out: Path
) -> Answered:
    """Draw the examples, let both models answer, score and compare."""
    options = settings.drawing.get(name, {})
    task = storybook_task(name, count=settings.count, seed=settings.seed, **options)
    examples = list(task.load())
    predictions, measured, seen = [], [], []
    for system, short in zip(systems, ("alone", "together"), strict=True):
        path = out / f"{name}-{short}.jsonl"
        path.unlink(missing_ok=True)  # the demo always asks anew
        predictions.append(
            generate(
                LocalModel(system.model, system.processor, system.name),
                examples,
                path,
                settings=settings.decoding,
            )
        )
        measured.append(measure(task.scorers, examples, predictions[-1]))
        seen.append(looks(system.model, system.processor, examples[: settings.shown]))
    comparisons = [
        Comparison(estimate(alone), estimate(together), compare(together, alone))
        for alone, together in zip(*measured, strict=True)
        if label(alone.name)[0] not in ("BLEU-1", "BLEU-2", "BLEU-3")
    ]
    return Answered(
        name, examples, (predictions[0], predictions[1]), comparisons, (seen[0], seen[1])
    )


def _print_answers(part: Answered, count: int, console: Console) -> None:
    console.rule(f"[bold]{part.task.replace('_', ' ')}[/bold]", align="left")
    for number, example in enumerate(part.examples[:count]):
        console.print(f"\n[bold]{len(example.images)} pictures[/bold]")
        console.print(f"  reference  {escape(example.references[0])}")
        for name, predictions in zip(SHORT_NAMES, part.predictions, strict=True):
            console.print(f"  {name:<9}  {escape(predictions[number].text)}")
    console.print()


def _table(part: Answered) -> Table:
    """Scores of both models, times 100, with 95 % intervals."""
    table = Table(
        title=f"{part.task.replace('_', ' ').capitalize()}, {len(part.examples)} test examples",
        caption="Values times 100 [95 % interval]; * the difference's interval excludes 0.",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column("")
    for column in (*SHORT_NAMES, "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in part.comparisons:
        low, high = row.difference.interval
        star = "*" if low > 0 or high < 0 else " "
        table.add_row(
            label(row.first.name)[0],
            _with_interval(percent(row.first.value), row.first.interval),
            _with_interval(percent(row.second.value), row.second.interval),
            _with_interval(signed(row.difference.value), row.difference.interval) + star,
        )
    return table


def _with_interval(value: str, interval: Interval) -> str:
    return f"{value} [dim]\\[{percent(interval.low)}, {percent(interval.high)}][/dim]"


def _facts(
    settings: DemoSettings, systems: tuple[System, System], answered: Sequence[Answered]
) -> dict[str, str]:
    """What a reader needs to repeat the numbers, as the report's last section."""
    decoding = settings.decoding
    facts = {
        "Command": f"python -m polyptych.serving.demo --count {settings.count} "
        f"--seed {settings.seed}",
        "Examples": "; ".join(
            f"{part.task}: {len(part.examples)} of the test split, seed {settings.seed}, "
            f"data {data_hash(part.examples)}"
            for part in answered
        ),
        "Decoding": f"{decoding.num_beams} beams, at most {decoding.max_new_tokens} new tokens, "
        f"batches of {decoding.batch_size}",
    }
    for system in systems:
        parameters = sum(weight.numel() for weight in system.model.parameters())
        facts[system.name] = (
            f"{parameters:,} parameters, "
            f"{system.processor.tokens_per_image} visual tokens per picture, "
            f"weights {model_hash(system.model)}"
        )
    return facts


def main(out: Path = Path("demo"), count: int = DEFAULTS.count, seed: int = DEFAULTS.seed) -> Path:
    """Run the demo with the bundled models; what ``polyptych demo`` calls.

    One thread: the models are so small that more gain little on an idle machine, and on a busy one
    they wait for each other (measured: 8 times as long with 2 threads on 2 shared cores).
    """
    torch.set_num_threads(1)
    return run(DemoSettings(count=count, seed=seed), out)


def _command_line() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polyptych.serving.demo",
        description="Ask both bundled models about drawn pictures and write a report.",
        epilog="example: python -m polyptych.serving.demo --out demo --seed 7",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the report")
    parser.add_argument("--count", type=int, default=DEFAULTS.count, help="examples per task")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, help="draws other examples")
    try:
        main(**vars(parser.parse_args()))
    except PolyptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_command_line())
