"""``polyptych merge``: an adapter becomes part of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import check_choice, example, hide_bars

commands = typer.Typer()


@commands.command(epilog=example("polyptych merge runs/sima/adapter --out models/llava-sima"))
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, as tuning leaves it.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The new model's folder; nothing is overwritten.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Its model; default: the one that the adapter names.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Type of the stored weights: float32, float16 or bfloat16.")
    ] = "float32",
) -> None:
    """Put an adapter into its model and save a plain folder.

    Logits are compared before and after; the folder stays only if they agree.
    """
    from polyptych.adapters.loading import load_any
    from polyptych.models.merging import TOLERANCES, merge_adapter

    check_choice("--precision", precision, TOLERANCES)
    hide_bars()
    merged = merge_adapter(
        adapter,
        out,
        base=base,
        precision=precision,  # type: ignore[arg-type]
        load=load_any,
    )
    typer.echo(
        f"written to {merged.folder}; its logits are {merged.drift:.1e} off those of base and "
        f"adapter together, {merged.effect:.1e} off those of the base"
    )
