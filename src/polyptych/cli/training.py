"""``polyptych train``: a run by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import example, hide_bars

commands = typer.Typer()


@commands.command(
    epilog=example("polyptych train storybook_finetune optimizer.learning_rate=1e-3 --out runs/sam")
)
def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe in polyptych.recipes, or a .py or .json file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="Values to change, read as JSON or text."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; default: runs/NAME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on with what the folder holds, or start again.")
    ] = True,
) -> None:
    """Train a model by a recipe.

    A killed run goes on where it stopped.
    """
    from polyptych.recipes import load_recipe
    from polyptych.training.supervised import train as run

    hide_bars()
    chosen = load_recipe(recipe).with_overrides(overrides or [])
    result = run(chosen, out=out or Path("runs", chosen.name), resume=resume, progress=True)
    typer.echo(f"{result.steps} steps, loss {result.loss:.4f}; model in {result.final}")
    if result.best is not None:
        typer.echo(f"best on validation: step {result.best_step} in {result.best}")
