"""``polyptych data ...``: make, show and check data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import (
    USER_ERROR,
    DeviceOption,
    ModelOption,
    command_group,
    example,
    find_device,
    hide_bars,
)
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


@commands.command(
    epilog=example("polyptych data shard data/stories --out data/stories-shards --format tar")
)
def shard(
    path: Annotated[Path, typer.Argument(help="A file or folder of any known format.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards.")],
    kind: Annotated[str, typer.Option("--format", help="parquet or tar.")] = "parquet",
    per_shard: Annotated[int, typer.Option(min=1, help="Examples of a shard.")] = 1000,
) -> None:
    """Pack a data set with its pictures into shards, for training on more than a disk holds."""
    from polyptych.data.readers import read_examples
    from polyptych.data.shard_writing import write_shards

    written = write_shards(out, read_examples(path), kind, per_shard)
    typer.echo(f"{written} examples in {out}")


@commands.command(
    epilog=example("polyptych data features data/stories --cache runs/features --ray local")
)
def features(
    path: Annotated[Path, typer.Argument(help="A file or folder of any known format.")],
    cache: Annotated[Path, typer.Option(help="Folder, as in a recipe's data.feature_cache.")],
    model: ModelOption = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Ray cluster: auto, ray://... or local."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the cluster.")] = 2,
    device: DeviceOption = None,
) -> None:
    """Compute the image features of a data set beforehand.

    A killed call goes on where it stopped.
    """
    from polyptych.data.cluster import Cluster
    from polyptych.data.readers import read_examples
    from polyptych.models.image_features import cache_image_features

    hide_bars()
    cluster = None if ray is None else Cluster(ray, workers)
    device = find_device(device)
    filled = cache_image_features(model, read_examples(path), cache, cluster=cluster, device=device)
    typer.echo(f"features of {len(filled)} images in {cache}")
