"""``polyptych data ...``: make, show and check data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import USER_ERROR, ModelOption, command_group, example
from polyptych.errors import PolyptychError

commands = command_group("Make, show and check data sets.", "polyptych data check my_data/")


@commands.command(
    epilog=example(
        "polyptych data make storybook --task storytelling --count 500 --out data/stories"
    )
)
def make(
    source: Annotated[str, typer.Argument(help="What to make: storybook.")],
    task: Annotated[str, typer.Option(help="Kind of example, such as group_captioning.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for records and pictures.")],
    count: Annotated[int, typer.Option(min=1, help="Number of examples.")] = 100,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed draws another set.")] = 0,
) -> None:
    """Draw a data set."""
    if source != "storybook":
        raise PolyptychError(f"cannot make {source!r}; known: storybook")
    from polyptych.storybook.generation import write_dataset

    path = write_dataset(task, out, count=count, split=split, seed=seed)
    typer.echo(f"{count} records in {path}")


@commands.command(
    epilog=example("polyptych data show data/stories/records.jsonl --line 3 --out sheet.png")
)
def show(
    records: Annotated[Path, typer.Argument(help="A file or folder of any known format.")],
    identity: Annotated[str | None, typer.Option("--id", help="Which record, by id.")] = None,
    line: Annotated[int, typer.Option(min=1, help="Which record, by position.")] = 1,
    model: ModelOption = None,
    tokens: Annotated[bool, typer.Option(help="Also what a model reads and learns.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG file for a sheet of the pictures.")
    ] = None,
) -> None:
    """Show one record: pictures, messages, tokens and labels."""
    from polyptych.data.inspection import describe, find_example, write_contact_sheet

    example = find_example(records, example_id=identity, line=line)
    processor = None
    if tokens:
        from polyptych.models.checkpoint import load_processor

        processor = load_processor(model)
    typer.echo(describe(example, processor))
    if out is not None:
        write_contact_sheet(example, out)
        typer.echo(f"pictures in {out}")


@commands.command(epilog=example("polyptych data check data/stories"))
def check(
    path: Annotated[Path, typer.Argument(help="A file or folder of any known format.")],
    decode: Annotated[bool, typer.Option(help="Decode every picture once.")] = True,
) -> None:
    """Read a whole data set and list everything that is wrong with it."""
    from polyptych.data.checking import check_data

    report = check_data(path, decode=decode)
    for problem in report.problems:
        typer.echo(problem, err=True)
    typer.echo(report.summary)
    if not report.ok:
        raise typer.Exit(USER_ERROR)
