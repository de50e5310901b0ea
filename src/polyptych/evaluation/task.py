"""A task: examples, how answers to them are decoded, and the scorers that judge the answers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from polyptych.errors import PolyptychError
from polyptych.evaluation import faults
from polyptych.evaluation.scorers import Measurement, Scorer
from polyptych.schema import Example, ImageBlock, Message, Prediction


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How answers are decoded. Equal settings have equal :attr:`hash`."""

    num_beams: int = 1
    """Beams of beam search; 1 for greedy decoding or sampling."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: float = 1.0
    """Softness of sampling; below 1 sharper. Used with ``do_sample`` only."""
    top_p: float = 1.0
    """Share of probability that sampling keeps. Used with ``do_sample`` only."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the answer less likely to come again."""
    length_penalty: float = 1.0
    """Exponent of the length in beam scores; above 1 favors long answers."""
    batch_size: int = 16
    """Examples that are answered together."""
    seed: int = 0
    """Start of the random numbers of sampling, renewed for every batch."""

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with every field."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``generate``; only those that have an effect."""
        arguments: dict[str, Any] = {
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "repetition_penalty": self.repetition_penalty,
        }
        if self.do_sample:
            arguments.update(temperature=self.temperature, top_p=self.top_p)
        if self.num_beams > 1:
            arguments["length_penalty"] = self.length_penalty
        return arguments


@dataclass(frozen=True, slots=True)
class Judging:
    """How a benchmark has its answers judged."""

    ask: Callable[[Example, Prediction], str]
    """An answer to what the judge is asked about it."""
    is_readable: Callable[[str], bool]
    """Whether a reply says what it should."""
    measure: Callable[[Sequence[Example], Sequence[str]], list[Measurement]]
    """Examples and the judge's replies about their answers to measurements."""
    settings: GenerationSettings
    """How the judge decodes."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: what is asked and how answers are judged.

    ``load`` is called when the examples are needed, so that listing tasks costs nothing.
    """

    name: str
    load: Callable[[], Iterable[Example]]
    """Makes or reads the examples, in their published order; the first bad one raises."""
    scorers: tuple[Scorer, ...]
    """Each gives one or more metrics over all predictions."""
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    """The decoding that the benchmark's published numbers use."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How it is found again, as :class:`polyptych.evaluation.tasks.finding.TaskSource` writes."""
    judging: Judging | None = None
    """For answers that a judge must score; see :func:`polyptych.evaluation.judge.with_judge`."""


class Loaded(NamedTuple):
    """The examples of a task that can be used."""

    examples: list[Example]
    faults: list[str]
    """What is wrong with the others, with file and line or id."""


def load_examples(task: Task) -> Loaded:
    """Read a task's examples; bad ones are named and left out.

    Raises:
        PolyptychError: For a missing or bad file, or if no example can be used.
    """
    with faults.collected() as found:
        try:
            examples = list(task.load())
        except PolyptychError as error:
            if not found:
                raise
            raise PolyptychError(f"{error}; {len(found)} bad items, first: {found[0]}") from error
    if found and not examples:
        raise PolyptychError(f"{task.name}: all {len(found)} items are bad, first: {found[0]}")
    return Loaded(examples, found)


def read_once(task: Task) -> Task:
    """The task with its examples, and what is wrong with others, already read."""
    loaded = load_examples(task)

    def load() -> list[Example]:
        faults.note(loaded.faults)
        return loaded.examples

    return dataclasses.replace(task, load=load)


def prompt_text(messages: Sequence[Message], image_token: str = "<image>") -> str:
    """The prompt as one readable text, with ``image_token`` where images stand.

    ``user: <image><image>What is shared?`` becomes ``<image><image>What is shared?``; several turns
    are put on lines of their own, with their roles in front.
    """
    lines = [
        "".join(image_token if isinstance(b, ImageBlock) else b.text for b in message.content)
        for message in messages
    ]
    if len(lines) == 1:
        return lines[0]
    return "\n".join(f"{m.role}: {line}" for m, line in zip(messages, lines, strict=True))
