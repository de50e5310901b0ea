"""A conversation at the terminal: a line is a question, a line with a slash in front a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation.task import GenerationSettings
from polyptych.models.checkpoint import load_model
from polyptych.schema import ImageRef
from polyptych.serving.chat import SETTINGS
from polyptych.serving.conversation import Conversation
from polyptych.serving.shots import TOP_K, ShotFinder

HELP = """\
A line is a question; <image> marks the place of a picture, without it pictures come first.
/image FILE ...  show pictures with the next question
/new             forget the conversation
/quit            leave (so does the end of the input)"""


def chat(
    model: str | Path | None,
    images: Sequence[str | Path] = (),
    *,
    settings: GenerationSettings = SETTINGS,
    device: str = "cpu",
    index: str | Path | None = None,
    shots: int | None = None,
    read: Callable[[str], str] = input,
    write: Callable[[str], object] = print,
) -> None:
    """Talk until the input ends.

    Args:
        model: As for :class:`polyptych.serving.chat.Chat`.
        images: Pictures that go with the first question.
        settings: Decoding.
        device: Where to compute.
        index: Index whose nearest entries a model of CaMML is given with the first question.
        shots: How many; None for the usual number.
        read: Asks for a line, given what to show in front of it.
        write: Shows a text.

    Raises:
        PolyptychError: If the model cannot be loaded or one of ``images`` cannot be read; whatever
            is wrong with a question is shown, and the conversation goes on.
    """
    waiting = _readable(images)
    loaded, processor = load_model(model, device=device)
    find = None
    if index is not None:
        find = ShotFinder(index, shots or TOP_K, device=device).find
    conversation = Conversation(loaded, processor, settings, find)
    write(HELP)
    while True:
        try:
            line = read(f"[{len(waiting)} pictures] > " if waiting else "> ").strip()
        except EOFError:
            return
        try:
            if line == "/quit":
                return
            if line == "/new":
                conversation, waiting = Conversation(loaded, processor, settings, find), []
            elif line.split(maxsplit=1)[:1] == ["/image"]:
                waiting = [*waiting, *_readable(_words(line)[1:])]
            elif line.startswith("/"):
                write(HELP)
            elif line:
                write(conversation.ask(line, waiting))
                waiting = []
        except PolyptychError as error:
            write(f"polyptych: {error}")


def _words(line: str) -> list[str]:
    """A command's words; quotes keep blanks in a file's name."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise PolyptychError(f"{line}: {error}") from error


def _readable(images: Sequence[str | Path]) -> list[Path]:
    """Refuses now what would otherwise spoil every question to come."""
    for image in images:
        if not Path(image).is_file():
            raise PolyptychError(f"image {image} does not exist")
        load_image(ImageRef(path=str(image)), where="chat")
    return [Path(image) for image in images]
