"""Bad items in a task's files: one stops the reading, or is named and left out.

Readers work on each item inside :func:`item`. Alone, the first bad one raises. Inside
:func:`collected`, it is named in a list and the next one follows:

    with collected() as faults:
        examples = list(task.load())
    faults     # ["ROOT/answers.json question '7': 9 human answers, 10 are needed"]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from polyptych.data.records import OnError
from polyptych.errors import PolyptychError

_collecting: ContextVar[list[str] | None] = ContextVar("collecting", default=None)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect what is wrong with items instead of stopping; read all of them inside."""
    faults: list[str] = []
    token = _collecting.set(faults)
    try:
        yield faults
    finally:
        _collecting.reset(token)


@contextmanager
def item() -> Iterator[None]:
    """Work on one item; what is wrong with it is named, where faults are collected.

    Raises:
        PolyptychError: As it comes, where they are not.
    """
    try:
        yield
    except PolyptychError as error:
        faults = _collecting.get()
        if faults is None:
            raise
        faults.append(str(error))


def on_error() -> OnError | None:
    """What readers of data call for a bad record, where faults are collected; None to raise."""
    faults = _collecting.get()
    return None if faults is None else lambda error: faults.append(str(error))


def note(faults: Iterable[str]) -> None:
    """Say again what an earlier reading found; nothing is said where faults are not collected."""
    collecting = _collecting.get()
    if collecting is not None:
        collecting.extend(faults)
