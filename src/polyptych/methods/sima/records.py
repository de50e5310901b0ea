"""What travels through the loop, and the line of JSON that each of it is.

    Prompt -> Responses -> Verdict -> PreferencePair (polyptych.data.preferences)

A line repeats what it was made of, so that every file can be read and judged by itself; the id of
the prompt is the id of the responses, the verdict and the pair. Image paths are relative to the
file's folder, as in every native record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyptych.data.records import (
    IMAGE_TOKEN,
    check_example,
    dump_json,
    parse_json,
    parse_record,
    read_lines,
    record_of,
)
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.schema import (
    Block,
    Example,
    ImageBlock,
    ImageRef,
    Message,
    TextBlock,
)

GREEDY = 0
"""Place of the greedy answer among a prompt's answers."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: an example without its answer, and the true answer where it is known."""

    example: Example
    ground_truth: str | None = None

    @property
    def id(self) -> str:
        """The id that everything made of this prompt keeps."""
        return self.example.id


@dataclass(frozen=True, slots=True)
class Responses:
    """A model's own answers to a prompt: the greedy one, then the sampled ones."""

    prompt: Prompt
    answers: tuple[str, ...]
    seed: int
    """Of this prompt's samples."""

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.prompt.id


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer against the greedy one."""

    candidate: int
    """Place of the answer."""
    orders: tuple[float | None, ...]
    """How much the critic prefers it, order by order (it is called 1 in the first, 2 in the
    second): log-odds from likelihoods, 1 or -1 from words; None where words held no verdict."""
    texts: tuple[str, ...] = ()
    """What the critic said, where it spoke."""
    mass: float | None = None
    """Probability of the two verdicts together, where likelihoods were compared: near 0, the model
    would rather say something else."""

    @property
    def margin(self) -> float | None:
        """Mean over the orders, in which a bias for one place cancels; None without a verdict."""
        values = [value for value in self.orders if value is not None]
        return sum(values) / len(values) if len(values) == len(self.orders) else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a critic made of a prompt's answers."""

    responses: Responses
    comparisons: tuple[Comparison, ...]
    """Empty where nothing was left to compare."""
    dropped: Mapping[str, int]
    """Reason -> how many of the answers were not compared."""

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.responses.id


# Lines, in the order of the stages


def prompt_line(prompt: Prompt, base: Path) -> dict[str, Any]:
    """A native record and ``ground_truth``."""
    return {**record_of(prompt.example, base), "ground_truth": prompt.ground_truth}


def parse_prompt(line: Mapping[str, Any], where: str, base: Path) -> Prompt:
    """The inverse of :func:`prompt_line`; other keys of the line are passed over."""
    known = ("id", "messages", "images", "references", "choices", "shots", "metadata")
    record = {key: line[key] for key in known if key in line}
    return Prompt(parse_record(record, where, base), line.get("ground_truth"))


def responses_line(responses: Responses, base: Path) -> dict[str, Any]:
    """The prompt's line, ``answers`` (the greedy one first) and ``seed``."""
    line = prompt_line(responses.prompt, base)
    return {**line, "answers": list(responses.answers), "seed": responses.seed}


def parse_responses(line: Mapping[str, Any], where: str, base: Path) -> Responses:
    """The inverse of :func:`responses_line`.

    Raises:
        PolyptychError: If the line has no answers.
    """
    answers = line.get("answers")
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
        raise PolyptychError(f"{where}: 'answers' must be a list of strings")
    if not answers:
        raise PolyptychError(f"{where}: 0 answers; the greedy one at least is needed")
    return Responses(parse_prompt(line, where, base), tuple(answers), int(line.get("seed", 0)))


def verdict_line(verdict: Verdict, base: Path) -> dict[str, Any]:
    """The responses' line, ``comparisons`` and ``dropped``."""
    comparisons = [
        {
            "candidate": comparison.candidate,
            "orders": list(comparison.orders),
            "margin": comparison.margin,
            **({"texts": list(comparison.texts)} if comparison.texts else {}),
            **({} if comparison.mass is None else {"mass": comparison.mass}),
        }
        for comparison in verdict.comparisons
    ]
    line = responses_line(verdict.responses, base)
    return {**line, "comparisons": comparisons, "dropped": dict(verdict.dropped)}


def parse_verdict_line(line: Mapping[str, Any], where: str, base: Path) -> Verdict:
    """The inverse of :func:`verdict_line`."""
    responses = parse_responses(line, where, base)
    try:
        comparisons = tuple(
            Comparison(
                entry["candidate"],
                tuple(entry["orders"]),
                tuple(entry.get("texts", ())),
                entry.get("mass"),
            )
            for entry in line["comparisons"]
        )
        return Verdict(responses, comparisons, dict(line["dropped"]))
    except (KeyError, TypeError) as error:
        raise PolyptychError(f"{where}: not a verdict: {error}") from error


def read_responses(path: str | Path) -> list[Responses]:
    """Read a file of responses.

    Raises:
        PolyptychError: At the first bad line, naming file and line.
    """
    return _read(path, parse_responses)


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Read a file of verdicts.

    Raises:
        PolyptychError: At the first bad line, naming file and line.
    """
    return _read(path, parse_verdict_line)


def _read(path: str | Path, parse: Callable[..., Any]) -> list[Any]:
    base = Path(path).parent
    return [parse(parse_object(line, where), where, base) for where, line in read_lines(path)]


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole JSONL file at once."""
    with write_aside(path) as file:
        file.writelines(dump_json(line, str(path)) + "\n" for line in lines)


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """A line that holds one JSON object."""
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise PolyptychError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


# Prompts of users


def read_prompts(path: str | Path, images: str | Path | None = None) -> list[Prompt]:
    """Read a file of prompts: the released form, native records, or both.

    The released form is ``{"image": "7.jpg", "text": "What is it?", "ground_truth": "A dog."}``;
    ``images`` with a list stands for several, whose places ``<image>`` may mark in the text. A
    prompt without ``id`` gets one from its content. The ground truth of a native record is its
    answer, or else its first reference. All lines are checked before any work begins.

    Args:
        path: The JSONL file.
        images: Folder of the images; default: that of the file.

    Raises:
        PolyptychError: For a broken line, a missing image, an empty ground truth or a repeated id,
            naming file and line; for no prompts at all.
    """
    base = Path(path).parent if images is None else Path(images)
    places: list[str] = []
    prompts: list[Prompt] = []
    for where, line in read_lines(path):
        prompt = _user_prompt(parse_object(line, where), where, base)
        for image in prompt.example.images:
            if image.path is not None and not os.path.isfile(image.path):
                raise PolyptychError(f"{where}: image {image.path} does not exist")
        places.append(where)
        prompts.append(prompt)
    if not prompts:
        raise PolyptychError(f"{path}: no prompts in it")
    prompts = with_content_ids(prompts)
    first: dict[str, str] = {}
    for prompt, where in zip(prompts, places, strict=True):
        if first.setdefault(prompt.id, where) != where:
            raise PolyptychError(f"{where}: id {prompt.id!r} occurs before, in {first[prompt.id]}")
    return prompts


def as_prompts(examples: Iterable[Example]) -> Iterator[Prompt]:
    """Examples as prompts: their answer, or else their first reference, is the ground truth."""
    for example in examples:
        truth = example.target or next(iter(example.references), None)
        yield Prompt(replace(example, messages=example.prompt), truth)


def with_content_ids(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts without an id get twelve hex digits of images' names, text and ground truth.

    So ids stay the same when a file is cut or its lines change places; equal lines are numbered.
    """
    named = []
    same: Counter[str] = Counter()
    for prompt in prompts:
        if not prompt.id:
            names = [os.path.basename(image.path or "") for image in prompt.example.images]
            texts = [message.text for message in prompt.example.messages]
            content = json.dumps([names, texts, prompt.ground_truth])
            identity = hashlib.sha256(content.encode()).hexdigest()[:12]
            same[identity] += 1
            identity += f"-{same[identity]}" if same[identity] > 1 else ""
            prompt = replace(prompt, example=replace(prompt.example, id=identity))
        named.append(prompt)
    return named


def _user_prompt(record: dict[str, Any], where: str, base: Path) -> Prompt:
    if "messages" in record and "ground_truth" not in record:
        return next(as_prompts([parse_record(record, where, base)]))
    if "messages" in record:
        prompt = parse_prompt(record, where, base)
        prompt = replace(prompt, example=replace(prompt.example, messages=prompt.example.prompt))
    else:
        prompt = released_prompt(record, where, base)
    truth = prompt.ground_truth
    if truth is not None and (not isinstance(truth, str) or not truth.strip()):
        raise PolyptychError(f"{where}: the ground truth is empty; leave it out if none is known")
    return prompt


def released_prompt(record: Mapping[str, Any], where: str, base: Path) -> Prompt:
    """A line of the released form; see :func:`read_prompts`.

    Raises:
        PolyptychError: Naming ``where`` and what is wrong.
    """
    names = record.get("images", [record["image"]] if "image" in record else [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise PolyptychError(f"{where}: 'image' must be a file name, or 'images' a list of them")
    text = record.get("text")
    if not isinstance(text, str):
        raise PolyptychError(f"{where}: 'text' must be a string, got {type(text).__name__}")
    example = Example(
        id=str(record.get("id", "")),
        messages=(Message("user", image_blocks(text, len(names))),),
        images=tuple(ImageRef(path=os.path.join(base, name)) for name in names),
        metadata=record.get("metadata", {}),
    )
    check_example(example, where)
    return Prompt(example, record.get("ground_truth"))


def image_blocks(text: str, count: int) -> tuple[Block, ...]:
    """A text with ``<image>`` at its images' places as blocks; without any, images come first."""
    pieces = text.split(IMAGE_TOKEN)
    if len(pieces) == 1:
        return (*(ImageBlock() for _ in range(count)), TextBlock(text))
    blocks: list[Block] = []
    for index, piece in enumerate(pieces):
        blocks += [ImageBlock()] * (index > 0)
        blocks += [TextBlock(piece)] * bool(piece)
    return tuple(blocks)
