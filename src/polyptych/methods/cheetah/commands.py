"""Commands of ``polyptych cheetah``; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyptych.errors import PolyptychError

DISCRIMINATE_EXAMPLE = "polyptych cheetah discriminate --count 2000 --out data/discriminative"
"""A command that works as it stands."""


def discriminative(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for records and pictures.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="BLIP-2 model whose Q-Former overlooks things.")
    ] = "storybook-base",
    count: Annotated[int, typer.Option(min=1, help="Pictures to draw and edit.")] = 1000,
    split: Annotated[str, typer.Option(help="Compositions: train, validation or test.")] = "train",
    selection: Annotated[
        str, typer.Option(help="Objects to edit: least_attended, or random as a control.")
    ] = "least_attended",
    edits: Annotated[int, typer.Option(min=1, help="Edits of each picture.")] = 1,
    second_view: Annotated[
        bool, typer.Option("--second-view", help="Also turn and shade everything a little.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed makes another set.")] = 0,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Photographs with captions instead of drawings: records of any format."),
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="Photographs: folder of a Segment Anything model.")
    ] = None,
    writer: Annotated[
        str | None, typer.Option(help="Photographs: folder of an instruction-tuned LLM.")
    ] = None,
    painter: Annotated[
        str | None, typer.Option(help="Photographs: folder of a diffusers inpainting pipeline.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="Photographs: folder of a CLIP model.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Make pairs of pictures that differ in a detail that a Q-Former overlooks.

    Every pair has an instruction and a sentence that says the difference. A killed run goes on
    where it stopped; summary.json counts what was dropped and why.
    """
    folders = {"segmenter": segmenter, "writer": writer, "painter": painter, "clip": clip}
    _check_source(pictures, folders)
    from polyptych.methods.cheetah import discriminative_data as data
    from polyptych.methods.cheetah.discriminative import sources
    from polyptych.models.checkpoint import load_model

    _check_word("selection", selection, ("least_attended", "random"))
    _check_word("split", split, ("train", "validation", "test"))
    loaded, processor = load_model(model, device=device)
    chosen: Any
    if pictures is None:
        chosen = sources.StorybookPictures(count, split, seed)
        steps = data.storybook_steps(
            loaded,
            processor,
            split=split,  # type: ignore[arg-type]  # checked above
            second_view=second_view,
        )
    else:
        chosen = sources.read_pictures(pictures)
        steps = data.photograph_steps(loaded, processor, device=device, **folders)  # type: ignore[arg-type]
    settings = data.DiscriminativeSettings(
        selection=selection,  # type: ignore[arg-type]  # checked above
        edits_per_picture=edits,
        seed=seed,
    )
    summary = data.build_discriminative_data(chosen, out, steps, settings=settings)
    for reason, entry in summary["dropped"].items():
        typer.echo(f"dropped {entry['count']:>6}  {reason}")
    typer.echo(f"kept {summary['kept']} of {summary['tried']}; records in {out}")


def _check_source(pictures: Path | None, folders: dict[str, str | None]) -> None:
    """Drawings need no models of photographs, photographs need all of them."""
    given = [f"--{name}" for name, folder in folders.items() if folder is not None]
    missing = [f"--{name}" for name, folder in folders.items() if folder is None]
    if pictures is None and given:
        raise PolyptychError(f"{', '.join(given)} without --pictures: drawings are edited without")
    if pictures is not None and missing:
        raise PolyptychError(f"--pictures needs {', '.join(missing)}, too")


def _check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise PolyptychError(f"--{option} {word!r}; known: {', '.join(known)}")
