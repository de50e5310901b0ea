"""``polyptych train``: a run by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import example, hide_bars
from polyptych.errors import PolyptychError

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
    parallel: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="ddp, fsdp2, zero2, zero3 or a JSON file, under torchrun."
        ),
    ] = "ddp",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Folder or hub name of a model of transformers to adapt."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="What is put on it: sam, camml, vpgc, or some of them."),
    ] = None,
) -> None:
    """Train a model by a recipe.

    With --base a model of transformers is trained with methods on it: polyptych train modern
    --base llava-hf/llava-onevision-qwen2-0.5b-ov-hf --methods sam,vpgc. A killed run goes on where
    it stopped, also with another number of processes:
    torchrun --nproc-per-node 2 -m polyptych.cli train ...
    """
    from polyptych.recipes import load_recipe
    from polyptych.training.parallel import leave_processes
    from polyptych.training.supervised import train as run

    hide_bars()
    chosen = load_recipe(recipe).with_overrides(overrides or [])
    folder = out or Path("runs", chosen.name)
    if base is None and methods is not None:
        raise PolyptychError(f"--methods {methods} need a --base to be put on")
    model = processor = None
    if base is not None:
        from polyptych.adapters.training import adapted_for

        model, processor = adapted_for(chosen, base, methods)
    result = run(
        chosen,
        out=folder,
        resume=resume,
        parallel=parallel,
        model=model,
        processor=processor,
        progress=True,
    )
    if not leave_processes():
        return
    typer.echo(f"{result.steps} steps, loss {result.loss:.4f}; model in {result.final}")
    if result.best is not None:
        typer.echo(f"best on validation: step {result.best_step} in {result.best}")
