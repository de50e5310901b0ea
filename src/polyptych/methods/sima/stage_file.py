"""The file of one stage: a line per prompt, and beside it what makes the run.

A stage can be killed at any moment. Lines stand in ``NAME.jsonl.running`` in the order in which
they were made; the same call again keeps every whole line and makes the rest; at the end they are
put in the prompts' order under their final name. ``NAME.run.json``, written first, says with which
model, settings and seed the lines are made, so that nobody goes on with others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from polyptych.data.records import ImageStore, dump_json, read_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.runner import progress_bar, versions
from polyptych.files import line_writer, write_aside
from polyptych.methods.sima.records import Prompt, parse_object


@runtime_checkable
class HasId(Protocol):
    """What a stage makes: it keeps the id of its prompt."""

    @property
    def id(self) -> str:
        """The prompt's id."""


Made = TypeVar("Made", bound=HasId)

Dump = Callable[[Any, Path], dict[str, Any]]
Parse = Callable[[Mapping[str, Any], str, Path], Any]


class StageFile(Generic[Made]):
    """The lines that a stage has made so far.

    Args:
        path: The final file.
        inputs: Id -> what the line of this id must repeat of its input.
        run: What makes the lines: model, settings, seed; a run with another one is refused.
        dump: What was made to its line.
        parse: The inverse.

    Raises:
        PolyptychError: If the file was begun by another run, or holds lines of other prompts.
    """

    def __init__(
        self,
        path: str | Path,
        inputs: Mapping[str, Mapping[str, Any]],
        run: Mapping[str, Any],
        dump: Dump,
        parse: Parse,
    ) -> None:
        self.path = Path(path)
        self.running = self.path.with_name(self.path.name + ".running")
        self.inputs, self.run, self._dump, self._parse = inputs, run, dump, parse
        self._check_run(self.path.with_suffix(".run.json"))
        finished = self.path.exists()
        source = self.path if finished else self.running
        self.done: dict[str, Made] = dict(self._read(source)) if source.exists() else {}
        if finished and len(self.done) < len(inputs):
            raise PolyptychError(
                f"{self.path} is finished with {len(self.done)} lines, now there are "
                f"{len(inputs)} prompts; choose another folder"
            )

    def _check_run(self, path: Path) -> None:
        """Refuse another run, saying what differs; a new one is written down."""
        now = json.loads(json.dumps(self.run))
        if path.exists():
            difference = first_difference(read_json(path).get("run"), now)
            if difference:
                raise PolyptychError(
                    f"{self.path} was begun with other {difference}; choose another folder"
                )
            return
        for lines in (self.path, self.running):
            if lines.exists():
                raise PolyptychError(f"{lines} stands there without {path.name}; move it away")
        with write_aside(path) as file:
            json.dump({"run": now, "versions": versions()}, file, indent=1, ensure_ascii=False)

    def _read(self, source: Path) -> Iterator[tuple[str, Made]]:
        """Whole lines; the torn last line of a killed run does not count."""
        for where, line in read_lines(source):
            if not line.endswith(b"\n"):
                return
            record = parse_object(line, where)
            identity = record.get("id")
            if not isinstance(identity, str) or identity not in self.inputs:
                raise PolyptychError(
                    f"{where}: id {identity!r} is none of {len(self.inputs)} prompts"
                )
            for name, value in self.inputs[identity].items():
                if record.get(name) != value:
                    raise PolyptychError(
                        f"{where}: id {identity!r} was made of another {name!r}; "
                        "choose another folder"
                    )
            yield identity, self._parse(record, where, source.parent)

    def todo(self, items: Iterable[Any]) -> list[Any]:
        """Those whose line is not there yet."""
        return [item for item in items if item.id not in self.done]

    @contextmanager
    def writing(self, *, progress: bool) -> Iterator[Callable[[Sequence[Made]], None]]:
        """Yields what adds finished lines; a bar shows how many are left and how long."""
        bar = progress_bar(
            self.path.stem, shown=progress, done=len(self.done), total=len(self.inputs)
        )
        with line_writer(self.running) as write, bar as step:

            def add(made: Sequence[Made]) -> None:
                write("".join(self._line(item) for item in made))
                self.done.update({item.id: item for item in made})
                step(len(made))

            yield add

    def _line(self, item: Made) -> str:
        return dump_json(self._dump(item, self.path.parent), f"id {item.id!r}") + "\n"

    def finish(self) -> list[Made]:
        """All lines in the order of the prompts, under the final name."""
        made = [self.done[identity] for identity in self.inputs]
        if not self.path.exists():
            with write_aside(self.path) as file:
                file.writelines(self._line(item) for item in made)
            self.running.unlink(missing_ok=True)
        return made


def with_stored_images(prompts: Iterable[Prompt], folder: Path) -> list[Prompt]:
    """Prompts whose images given as bytes have become files in the folder."""
    with ImageStore(folder) as store:
        return [replace(prompt, example=store.with_paths(prompt.example)) for prompt in prompts]


def first_difference(found: Any, now: Any, name: str = "") -> str:
    """``"settings.seed (0, now 1)"``; empty where the two are equal."""
    if isinstance(found, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *found]):
            inner = f"{name}.{key}" if name else str(key)
            difference = first_difference(found.get(key), now.get(key), inner)
            if difference:
                return difference
        return ""
    return "" if found == now else f"{name} ({found!r}, now {now!r})"
