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

IndexOption = Annotated[
    Path | None,
    typer.Option(help="Index whose nearest entries a model of CaMML is given with the question."),
]
ShotsOption = Annotated[
    int | None, typer.Option("--shots", "-k", min=1, help="How many entries; default: 3.")
]


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
    index: IndexOption = None,
    shots: ShotsOption = None,
    show_shots: Annotated[
        bool, typer.Option("--show-shots", help="List the retrieved examples below the answer.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write answer and retrieved examples as a page.")
    ] = None,
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    device: DeviceOption = None,
) -> None:
    """Ask a model about some pictures.

    With --index, a model of CaMML is given the examples that stand nearest to the question.
    """
    if len(words) > 2:
        raise PolyptychError(
            f"expected a question, or a model and a question; got {len(words)} words: "
            "put the question in quotes"
        )
    if index is None and (shots is not None or show_shots or html is not None):
        raise PolyptychError("--shots, --show-shots and --html need an --index")
    from polyptych.serving import chat

    hide_bars()
    settings = chosen_decoding(chat.SETTINGS, num_beams=beams, max_new_tokens=max_new_tokens)
    model = words[0] if len(words) == 2 else None
    if index is not None:
        from polyptych.serving.shots import TOP_K, ask_with_shots, listing, write_page

        result = ask_with_shots(
            model,
            index,
            image or [],
            words[-1],
            top_k=shots or TOP_K,
            settings=settings,
            device=find_device(device),
        )
        typer.echo(result.text)
        if show_shots:
            typer.echo(listing(result.shots))
        if html is not None:
            write_page(result, Path(model or "model").name, html)
        return
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
    index: IndexOption = None,
    shots: ShotsOption = None,
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
    chat_loop.chat(
        model,
        image or [],
        settings=settings,
        device=find_device(device),
        index=index,
        shots=shots,
    )
