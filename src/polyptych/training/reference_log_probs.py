"""What the frozen reference thinks of both answers of each pair: computed once, read ever after.

A file of JSON lines: the first says what decides the numbers, each other one belongs to a pair::

    {"reference": {"model": "d1f3...", "variant": "plain", ...}}
    {"pair": "3f9a...", "id": "p1", "chosen": -21.5, "rejected": -30.25}

``pair`` is a hash of everything that the model reads of it, so the file serves any selection of
pairs. Lines are appended as they are computed; a torn end is computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyptych.data.images import image_hash
from polyptych.errors import PolyptychError
from polyptych.files import line_writer
from polyptych.schema import Example, Message, PreferencePair

Line = tuple[str, str, float, float]
"""Hash and id of a pair, log-probabilities of its chosen and its rejected answer."""


def pair_hash(pair: PreferencePair) -> str:
    """Sixteen hex digits of the prompt, both answers, images and shots."""
    content = [
        _messages(pair.prompt),
        pair.chosen,
        pair.rejected,
        [image_hash(image) for image in pair.images],
        [_shot(shot) for shot in pair.shots],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _messages(messages: Iterable[Message]) -> list[Any]:
    return [[m.role, [getattr(block, "text", None) for block in m.content]] for m in messages]


def _shot(shot: Example) -> list[Any]:
    return [_messages(shot.messages), [image_hash(image) for image in shot.images]]


class ReferenceLogProbs:
    """One file of them.

    Args:
        path: Made with the first numbers.
        told: What decides the numbers: the model, its rows, how answers are scored.

    Raises:
        PolyptychError: If the file holds numbers that something else decided; names the first
            difference and both values.
    """

    def __init__(self, path: str | Path, told: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.told: dict[str, Any] = json.loads(json.dumps(told))
        self.known: dict[str, tuple[float, float]] = {}
        """Hash of a pair -> log-probabilities of its chosen and its rejected answer."""
        self._has_head = False
        if self.path.exists():
            self._read()

    def __getitem__(self, key: str) -> tuple[float, float]:
        """Both numbers of a pair, by its hash."""
        return self.known[key]

    def __contains__(self, key: str) -> bool:
        return key in self.known

    @contextmanager
    def writing(self) -> Iterator[Callable[[Iterable[Line]], None]]:
        """Inside, what is called with lines adds them to the file at once.

        Raises:
            PolyptychError: When the system refuses, or a number is none; names the pair.
        """
        with line_writer(self.path) as write:
            if not self._has_head:
                write(json.dumps({"reference": self.told}) + "\n")
                self._has_head = True

            def add(lines: Iterable[Line]) -> None:
                for key, identity, chosen, rejected in lines:
                    if not (math.isfinite(chosen) and math.isfinite(rejected)):
                        raise PolyptychError(
                            f"pair {identity}: its log-probabilities under the reference are "
                            f"{chosen} and {rejected}"
                        )
                    record = {"pair": key, "id": identity, "chosen": chosen, "rejected": rejected}
                    write(json.dumps(record) + "\n")
                    self.known[key] = (chosen, rejected)

            yield add

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last end is torn
        if not lines:
            return
        try:
            head, *records = map(json.loads, lines)
            before = head["reference"]
            self.known = {r["pair"]: (r["chosen"], r["rejected"]) for r in records}
        except (ValueError, KeyError, TypeError) as error:
            raise PolyptychError(f"{self.path}: no reference log-probabilities: {error}") from error
        self._has_head = True
        for name in sorted(before.keys() | self.told.keys()):
            if before.get(name) != self.told.get(name):
                raise PolyptychError(
                    f"{self.path}: log-probabilities of another reference: {name} was "
                    f"{before.get(name)!r}, is {self.told.get(name)!r}; give another file"
                )
