"""Checking a whole data set before a run: every bad record is listed, none stops the check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyptych.data.images import load_image
from polyptych.data.readers import detect_format, read_examples
from polyptych.data.readers.native import native_files
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageRef


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check_data` found.

    Attributes:
        path: What was checked.
        source_format: The format it was read as.
        records: Records looked at, good and bad.
        images: Different image files looked at.
        problems: One line for each problem, in reading order.
    """

    path: str
    source_format: str
    records: int
    images: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def summary(self) -> str:
        """One line: counts and verdict."""
        verdict = "ok" if self.ok else f"{len(self.problems)} problem(s)"
        return (
            f"{self.path}: {self.source_format}, {self.records} record(s), "
            f"{self.images} image file(s): {verdict}"
        )


def check_data(
    path: str | Path,
    source_format: str | None = None,
    *,
    decode: bool = True,
    **options: Any,
) -> CheckReport:
    """Read a whole data set and list everything that is wrong with it.

    Args:
        path: A file or folder; of a folder with native records every JSONL file is checked.
        source_format: A name of `READERS`; by default found by looking.
        decode: Decode every image file once; otherwise images are not looked at.
        options: Passed to the reader.

    Raises:
        PolyptychError: When there is nothing to check, or for an unknown format.
    """
    name = source_format or detect_format(path)
    files = [Path(path)]
    if name == "native" and files[0].is_dir() and "split" not in options:
        files = native_files(files[0])
    check = _Check(name, decode)
    for file in files:
        check.file(file, options)
    return CheckReport(str(path), name, check.records, len(check.verdicts), tuple(check.problems))


class _Check:
    """The state of one check: what was counted, found and already decoded."""

    def __init__(self, source_format: str, decode: bool) -> None:
        self.source_format = source_format
        self.decode = decode
        self.records = 0
        self.problems: list[str] = []
        self.verdicts: dict[ImageRef, str | None] = {}

    def file(self, path: Path, options: dict[str, Any]) -> None:
        """Check one file or folder that a reader takes."""
        first_use: dict[str, int] = {}
        start = self.records
        unit = "line" if self.source_format == "native" else "example"
        examples = read_examples(path, self.source_format, on_error=self._bad_record, **options)
        for example in self._until_unreadable(examples):
            self.records += 1
            number = self.records - start
            where = f"{path} {unit} {number} (id {example.id!r})"
            first = first_use.setdefault(example.id, number)
            if first != number:
                self.problems.append(f"{where}: the same id as {unit} {first}")
            if self.decode:
                self._images(example, where)

    def _bad_record(self, error: PolyptychError) -> None:
        self.records += 1
        self.problems.append(str(error))

    def _until_unreadable(self, examples: Iterator[Example]) -> Iterator[Example]:
        try:
            yield from examples
        except PolyptychError as error:
            self.problems.append(str(error))

    def _images(self, example: Example, where: str) -> None:
        for image in example.images:
            problem = self._verdict(image)
            if problem is not None:
                self.problems.append(f"{where}: {problem}")
        for number, shot in enumerate(example.shots, start=1):
            self._images(shot, f"{where} shot {number}")

    def _verdict(self, image: ImageRef) -> str | None:
        if image not in self.verdicts:
            try:
                load_image(image)
                self.verdicts[image] = None
            except PolyptychError as error:
                self.verdicts[image] = str(error)
        return self.verdicts[image]
