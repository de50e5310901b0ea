"""``polyptych demo`` and ``doctor``: what it does, and whether it can work here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyptych.cli.common import USER_ERROR, ModelOption, example, hide_bars

commands = typer.Typer()


@commands.command(epilog=example("polyptych demo --out demo --seed 7"))
def demo(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the report.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Examples of each task.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed draws other examples.")] = None,
) -> None:
    """Answer questions over drawn pictures and write a report."""
    from polyptych.serving.demo import main as run

    options: dict[str, Any] = {"out": out, "count": count, "seed": seed}
    run(**{name: value for name, value in options.items() if value is not None})


@commands.command(epilog=example("polyptych doctor --model my_model/"))
def doctor(model: ModelOption = None) -> None:
    """Look for what keeps polyptych from working here.

    Exit code 0 if it is usable.
    """
    from polyptych.doctor import diagnose, render

    hide_bars()
    findings = diagnose(model)
    typer.echo(render(findings))
    if any(finding.is_problem for finding in findings):
        raise typer.Exit(USER_ERROR)
