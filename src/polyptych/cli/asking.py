"""``polyptych ask`` and ``chat``: questions about pictures, one or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import (
    BeamsOption,
    DeviceOption,
    LengthOption,
    chosen_decoding,
    example,
    find_device,
    hide_bars,
)
from polyptych.errors import PolyptychError

commands = typer.Typer()


@commands.command(
    epilog=example('polyptych ask --image a.jpg --image b.jpg "What do these have in common?"')
)
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] QUESTION",
            help="A model (default: the bundled one) and what to ask; <image> marks the place of "
            "a picture, without it all pictures come first.",
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="A picture; repeat the option for more, in order."),
    ] = None,
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    device: DeviceOption = None,
) -> None:
    """Ask a model about some pictures."""
    if len(words) > 2:
        raise PolyptychError(
            f"expected a question, or a model and a question; got {len(words)} words: "
            "put the question in quotes"
        )
    from polyptych.serving import chat

    hide_bars()
    settings = chosen_decoding(chat.SETTINGS, num_beams=beams, max_new_tokens=max_new_tokens)
    model = words[0] if len(words) == 2 else None
    answer = chat.ask(model, image or [], words[-1], settings=settings, device=find_device(device))
    typer.echo(answer)


@commands.command(epilog=example("polyptych chat --image a.jpg --image b.jpg"))
def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder, hub name or bundled name; default: the bundled model."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="A picture for the first question; may be repeated."),
    ] = None,
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    device: DeviceOption = None,
) -> None:
    """Talk with a model about pictures, in several turns.

    What it has read is not read again. Type /image FILE to show more pictures, /quit to leave.
    """
    from polyptych.serving import chat_loop

    hide_bars()
    settings = chosen_decoding(chat_loop.SETTINGS, num_beams=beams, max_new_tokens=max_new_tokens)
    chat_loop.chat(model, image or [], settings=settings, device=find_device(device))
