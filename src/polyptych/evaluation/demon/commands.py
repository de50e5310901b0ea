"""``polyptych demon ...``: draw a sample, export to lmms-eval, show results again.

Imports nothing heavy at the top, like ``polyptych.cli``, which adds these commands to itself.
Running the benchmark is ``polyptych evaluate MODEL demon``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

SplitOption = Annotated[str, typer.Option(help="core (29 tasks) or full (31).")]


def add_commands(app: typer.Typer, example: Callable[[str], str]) -> None:
    """Add the commands to a group; ``example`` makes the last lines of a help text."""
    app.command("make-sample", epilog=example("polyptych demon make-sample data/demon"))(
        make_sample
    )
    app.command(
        "lmms-eval", epilog=example("polyptych demon lmms-eval tasks/demon --root data/demon")
    )(lmms_eval)
    app.command("report", epilog=example("polyptych demon report runs/demon --out demon.md"))(
        report
    )


def make_sample(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the tasks.")],
    per_task: Annotated[int, typer.Option(min=1, help="Samples of each task.")] = 20,
    seed: Annotated[int, typer.Option(help="Another seed draws another set.")] = 0,
    split: SplitOption = "core",
) -> None:
    """Draw a small DEMON of Storybook pictures, to run the benchmark offline."""
    from polyptych.evaluation.demon import sample

    chosen: Any = split
    root = sample.make_sample(out, per_task=per_task, seed=seed, split=chosen)
    typer.echo(f"{len(sample.SAMPLE_TASKS)} tasks with {per_task} samples each in {root}")


def lmms_eval(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for --include_path.")],
    root: Annotated[
        Path | None, typer.Option(help="DEMON's folder; without it no data are written.")
    ] = None,
    split: SplitOption = "core",
) -> None:
    """Write DEMON as a task folder of lmms-eval."""
    from polyptych.evaluation.demon.benchmark import read_benchmark
    from polyptych.evaluation.demon.lmms_eval_export import write_lmms_eval

    chosen: Any = split
    benchmark = read_benchmark(root, chosen) if root is not None else None
    tasks = write_lmms_eval(out, benchmark, chosen)
    typer.echo(f"{len(tasks)} tasks in {out}; run: lmms-eval --include_path {out} --tasks demon")
    if benchmark is None:
        typer.echo("no data were written; add --root DIR to do so", err=True)


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a run, with its demon.json.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Markdown file for the whole report.")
    ] = None,
) -> None:
    """Show the results of a run beside the 11 published rows."""
    from polyptych.evaluation.demon.aggregation import Summary
    from polyptych.evaluation.demon.benchmark import SUMMARY_FILE
    from polyptych.evaluation.demon.report import to_markdown
    from polyptych.files import write_aside

    summary = Summary.load(folder / SUMMARY_FILE)
    show(summary)
    if out is not None:
        with write_aside(out) as file:
            file.write(to_markdown(summary))
        typer.echo(f"written to {out}")


def show(summary: Any) -> None:
    """Print a summary's table, and what a reader of it must know to stderr."""
    from rich.console import Console

    from polyptych.evaluation.demon.report import remarks, to_table

    Console().print(to_table(summary))
    for line in remarks(summary):
        typer.echo(line, err=True)
