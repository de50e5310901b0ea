"""What all commands share: exit codes, the form of errors and help, options, devices.

Nothing heavy is imported at the top of this or any other file of commands, so that every ``--help``
answers at once; each command imports what it needs when it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from polyptych.errors import PolyptychError

USER_ERROR = 2
"""Exit code of everything a user can cause, as of a wrong option."""

_USERS_OS_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Folder, hub name or bundled name; default: the bundled model."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")
]
BeamsOption = Annotated[int | None, typer.Option(min=1, help="Beams of the search; 1 is greedy.")]
LengthOption = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Examples answered together.")]


class _Commands(TyperGroup):
    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # for an absent flag without default, typer imports pydantic
        return option

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("interrupted")
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            _fail(line)


def explain(error: Exception) -> str | None:
    """The one line for an error that a user caused; None for a bug, which keeps its traceback."""
    if isinstance(error, PolyptychError):
        return " ".join(str(error).splitlines())
    if isinstance(error, _USERS_OS_ERRORS):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, OSError) and error.errno is None and str(error).strip():
        return str(error).strip().splitlines()[0]  # transformers: no such model on the hub
    for refusal in ("No space left on device", "Read-only file system"):
        if refusal in str(error):  # libraries report these in types of their own
            return refusal
    return None


def _fail(line: str) -> NoReturn:
    typer.echo(f"polyptych: {line}", err=True)
    raise typer.Exit(USER_ERROR)


def example(command: str) -> str:
    """The last lines of a help text: one command that works as it stands, never wrapped."""
    return f"\b\nExample:\n  {command}"


def command_group(text: str, command: str) -> typer.Typer:
    """A group of commands.

    Args:
        text: Its help.
        command: Example for the end of the help.
    """
    return typer.Typer(
        cls=_Commands,
        help=text,
        epilog=example(command),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help keeps the examples in one piece and is faster
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def find_device(name: str | None) -> str:
    """The device of that name, or the best there is.

    Raises:
        PolyptychError: If it cannot be used.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PolyptychError(f"device {name!r} cannot be used: {reason}") from error
    return name


def hide_bars() -> None:
    """Hide transformers' bars for reading and writing weights; those of downloads stay."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    enable_progress_bars()


def chosen_decoding(default: Any, **chosen: Any) -> Any:
    """The default settings with what was chosen on the command line put in."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return dataclasses.replace(default, **given)


def check_choice(option: str, value: str, known: Iterable[str]) -> None:
    """Refuse a word that an option does not know.

    Raises:
        PolyptychError: Naming the option, the word and what is known.
    """
    known = list(known)
    if value not in known:
        raise PolyptychError(f"{option} {value!r}; known: {', '.join(known)}")
