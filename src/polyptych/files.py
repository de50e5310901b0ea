"""Writing files so that a half-written one never exists under its final name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from polyptych.errors import PolyptychError


@contextmanager
def write_aside(path: str | Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Open ``NAME.partial`` beside ``path`` for writing and rename it to ``path`` at the end.

    After any failure, also Ctrl-C, the partial file is removed and an earlier ``path`` stays as it
    was.

    Args:
        path: The final file; missing parent folders are made.
        binary: Open for bytes instead of UTF-8 text.

    Raises:
        PolyptychError: When the system refuses (full disk, no permission), naming file and reason.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            own = error.filename in (None, str(partial), str(path))
            reason = error.strerror if own and error.strerror else error
            raise PolyptychError(f"cannot write {path}: {reason}") from error
        raise


@contextmanager
def line_writer(path: str | Path) -> Iterator[Callable[[str], None]]:
    """Append whole lines, each of which reaches the file at once.

    A torn last line of a killed run is cut off first.

    Raises:
        PolyptychError: When the system refuses (full disk, no permission), naming file and reason.
    """
    path = Path(path)
    with ExitStack() as stack:
        with _refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "ab+", buffering=0))
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

        def write(lines: str) -> None:
            rest = memoryview(lines.encode())
            with _refusals(path):
                while rest:
                    rest = rest[file.write(rest) :]

        yield write


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PolyptychError(f"cannot write {path}: {error.strerror or error}") from error
