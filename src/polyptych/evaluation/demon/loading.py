"""Reading DEMON from its published folder layout: ``ROOT/TASK/core/core.json`` beside ``images/``.

    {"metadata": {"dataset", "split", "num_sample", "task_instruction": [templates],
                  "question_type": "open-ended" | "multi-choice"},
     "data": [{"sample_id": 0, "task_instruction_id": 7, "response": "red",
               "task_instance": {"context": "{image#1}{image#2}Which color?",
                                 "images_path": ["0.jpg", "1.jpg"],
                                 "choice_list": ["red", "blue"]}}]}

Choices stand in ``choice_list`` or, as in the published samples, at the end of ``context``:
``Choice List:['red', 'blue'] Your answer is:``. A response may be a number.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from polyptych.data.records import check_example, read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.answers import match_image, normal_words, plain
from polyptych.evaluation.demon.catalog import Dataset, Split, find_dataset
from polyptych.evaluation.demon.released import normalize
from polyptych.evaluation.faults import item
from polyptych.schema import Block, Example, ImageBlock, ImageRef, Message, TextBlock

Order = Literal["numbered", "released"]
"""Which image a placeholder shows: ``{image#k}`` the k-th one, or, as in the published code, the
first placeholder of the text the first image, whatever the numbers are."""

OnNote = Callable[[str], None]
"""Called with one line for what is odd but does not keep the data from being scored."""

_PLACEHOLDER = re.compile(r"\{(image|table)#(\d+)\}")
_CHOICES = re.compile(r"choice list\s*:\s*(?=\[)", re.IGNORECASE)
_BETWEEN_CHOICES = re.compile(r"""['"]\s*,\s*['"]""")
_QUESTION_TYPES = {"rouge_l": ("open-ended", ""), "choice": ("multi-choice", "")}


def dataset_file(root: str | Path, dataset: Dataset, split: Split) -> Path | None:
    """The JSON file of a task, upper and lower case of its folder alike; None if there is none."""
    for folder in (dataset.name, *_folders(root)):
        if folder.lower() == dataset.name.lower():
            file = Path(root, folder, split, f"{split}.json")
            if file.is_file():
                return file
    return None


def _folders(root: str | Path) -> list[str]:
    try:
        return sorted(os.listdir(root))
    except OSError as error:
        raise PolyptychError(f"cannot read {root}: {error.strerror or error}") from error


def read_dataset(
    root: str | Path,
    name: str,
    split: Split = "core",
    *,
    order: Order = "numbered",
    on_note: OnNote | None = None,
) -> list[Example]:
    """Read one task of the benchmark.

    Args:
        root: Folder with one folder per task.
        name: Of the task.
        split: ``core`` or ``full``.
        order: Which image a placeholder shows.
        on_note: Told what is odd but can be scored.

    Returns:
        Examples with ids ``TASK-SAMPLE``, the right answer as their only reference, the choices,
        and ``task``, ``category``, ``sample_id`` and ``split`` in their metadata.

    Raises:
        PolyptychError: One line with file and sample id, if the task is missing or a sample is bad.
    """
    dataset = find_dataset(name)
    path = dataset_file(root, dataset, split)
    if path is None:
        raise PolyptychError(f"{root}: no DEMON task {Path(dataset.name, split, split)}.json")
    if order not in ("numbered", "released"):
        raise PolyptychError(f"unknown order {order!r}; known: numbered, released")
    note = on_note or (lambda line: None)
    templates, samples = _parse_file(read_json(path), dataset, str(path), note)
    reader = _SampleReader(dataset, split, path, templates, order, note)
    examples = []
    for index, sample in enumerate(samples):
        with item():
            examples.append(reader.read(sample, index))
    return examples


def _parse_file(
    content: Any, dataset: Dataset, where: str, on_note: OnNote
) -> tuple[list[str], list[Any]]:
    if not isinstance(content, dict) or not {"metadata", "data"} <= content.keys():
        _fail(where, "not a DEMON file: an object with 'metadata' and 'data' is expected")
    metadata, samples = content["metadata"], content["data"]
    templates = metadata.get("task_instruction") if isinstance(metadata, dict) else None
    if not isinstance(templates, list) or not all(isinstance(t, str) for t in templates):
        _fail(where, "'metadata' has no list of strings 'task_instruction'")
    known = _QUESTION_TYPES["rouge_l" if dataset.rule == "rouge_l" else "choice"]
    question_type = metadata.get("question_type", "")
    if question_type not in known:
        _fail(where, f"question_type is {question_type!r}, {dataset.name} has {known[0]!r}")
    if not isinstance(samples, list) or not samples:
        _fail(where, "'data' is no list of samples or is empty")
    said = metadata.get("num_sample", len(samples))
    if said != len(samples):
        on_note(f"{where}: 'num_sample' is {said} but there are {len(samples)} samples")
    return templates, samples


class _SampleReader:
    """Turns the samples of one file into examples; knows what they have in common."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        path: Path,
        templates: list[str],
        order: Order,
        on_note: OnNote,
    ) -> None:
        self.dataset, self.split, self.path = dataset, split, path
        self.templates, self.order, self.on_note = templates, order, on_note
        self.images = path.parent / "images"
        self.known: set[str] = set()

    def read(self, sample: Any, index: int) -> Example:
        identity = sample.get("sample_id") if isinstance(sample, dict) else None
        if not isinstance(identity, int | str) or isinstance(identity, bool):
            _fail(f"{self.path} sample at place {index}", "no 'sample_id'")
        where = f"{self.path} sample {identity}"
        if str(identity) in self.known:
            _fail(where, "this sample id occurs twice")
        self.known.add(str(identity))
        instance = sample.get("task_instance")
        if not isinstance(instance, dict) or not isinstance(instance.get("context"), str):
            _fail(where, "no 'task_instance' with a string 'context'")
        choices = self._choices(instance, where)
        reference = self._reference(sample, choices, where)
        prompt = self._template(sample, where) + instance["context"]
        if choices and "choice_list" in instance and not _CHOICES.search(prompt):
            prompt += f"Choice list:{list(choices)}. Your answer is:"
        paths = self._paths(instance, where)
        blocks, places = split_prompt(prompt, len(paths), where, self.order)
        example = Example(
            id=f"{self.dataset.name}-{identity}",
            messages=(Message("user", blocks),),
            images=tuple(ImageRef(path=paths[place]) for place in places),
            references=(reference,),
            choices=choices,
            metadata={
                "task": self.dataset.name,
                "category": self.dataset.category,
                "sample_id": identity,
                "split": self.split,
            },
        )
        check_example(example, where)
        return example

    def _template(self, sample: Mapping[str, Any], where: str) -> str:
        number = sample.get("task_instruction_id")
        if not isinstance(number, int) or not 0 <= number < len(self.templates):
            _fail(where, f"task_instruction_id {number!r} for {len(self.templates)} instructions")
        return self.templates[number]

    def _choices(self, instance: Mapping[str, Any], where: str) -> tuple[str, ...]:
        if self.dataset.rule == "rouge_l":
            return ()
        given = instance.get("choice_list")
        if given is None:
            given = choices_in(instance["context"])
        if given is None:
            if self.dataset.rule == "image_choice":
                return ()  # "Image B" says which one without a list
            _fail(where, "no 'choice_list', and no \"Choice List:[...]\" in the context")
        if not isinstance(given, list | tuple):
            _fail(where, f"'choice_list' must be a list, got {given!r}")
        if not given:
            _fail(where, "the list of choices is empty")
        choices = tuple(_text(choice, "a choice", where) for choice in given)
        first: dict[str, int] = {}
        for number, choice in enumerate(choices, start=1):
            earlier = first.setdefault(plain(choice), number)
            if earlier != number:
                self.on_note(f"{where}: choices {earlier} and {number} are equal: {choice!r}")
        return choices

    def _reference(self, sample: Mapping[str, Any], choices: tuple[str, ...], where: str) -> str:
        reference = _text(sample.get("response"), "'response'", where)
        if not normal_words(reference) or not normalize(reference):
            _fail(where, f"'response' has no words: {reference!r}")
        if self.dataset.rule == "image_choice":
            letter = match_image(reference)
            if letter is None or (choices and letter not in map(match_image, choices)):
                _fail(where, f"the answer {reference!r} is none of {len(choices)} image choices")
        elif choices and plain(reference) not in map(plain, choices):
            for choice in choices:
                if normalize(choice) == normalize(reference):
                    return choice
            _fail(where, f"the answer {reference!r} is not among the {len(choices)} choices")
        return reference

    def _paths(self, instance: Mapping[str, Any], where: str) -> list[str]:
        names = instance.get("images_path")
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            _fail(where, "'images_path' must be a list of file names")
        paths = [os.path.join(self.images, name) for name in names]
        for number, path in enumerate(paths, start=1):
            if not os.path.isfile(path):
                _fail(where, f"image {number} of {len(paths)} is missing: {path}")
        return paths


def split_prompt(
    prompt: str, images: int, where: str, order: Order = "numbered"
) -> tuple[tuple[Block, ...], list[int]]:
    """Cut a prompt at its placeholders.

    Args:
        prompt: Text with ``{image#k}`` and ``{table#k}``, which share one numbering from 1.
        images: How many images there are; each has exactly one placeholder.
        where: File and sample, for the error message.
        order: Which image a placeholder shows.

    Returns:
        Texts and image places in reading order, and for each place the index of its image.

    Raises:
        PolyptychError: For a repeated, missing or surplus number.

    Example:
        >>> split_prompt("{table#2} of {image#1}?", 2, "here")[1]
        [1, 0]
    """
    found = list(_PLACEHOLDER.finditer(prompt))
    numbers = [int(match.group(2)) for match in found]
    for number in sorted({*range(1, images + 1), *numbers}):
        times, wanted = numbers.count(number), 1 <= number <= images
        if times != wanted:
            fault = "missing" if not times else "repeated" if wanted else "too many"
            _fail(
                where,
                f"placeholder {number} is {fault}: {len(numbers)} placeholder(s) "
                f"for {images} image(s)",
            )
    blocks: list[Block] = []
    end = 0
    for match in found:
        if match.start() > end:
            blocks.append(TextBlock(prompt[end : match.start()]))
        blocks.append(ImageBlock())
        end = match.end()
    if end < len(prompt):
        blocks.append(TextBlock(prompt[end:]))
    if order == "released":
        return tuple(blocks), list(range(images))
    return tuple(blocks), [number - 1 for number in numbers]


def choices_in(context: str) -> list[str] | None:
    """The choices that stand in a context; None if there are none.

    The published lists are not valid Python where a choice has an apostrophe, so such a list is cut
    where a quote, a comma and a quote follow each other.

    Example:
        >>> choices_in("Choice List:['pete ' s', 'ow !']Your answer is:")
        ["pete ' s", 'ow !']
    """
    heads = list(_CHOICES.finditer(context))
    end = context.rfind("]")
    if not heads or end < heads[-1].end():
        return None
    text = context[heads[-1].end() : end + 1]
    inner = text[1:-1].strip()
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    pieces = _BETWEEN_CHOICES.split(inner[1:-1]) if inner else []
    quoted = inner[:1] in ("'", '"')
    if isinstance(values, list) and not (quoted and len(values) != len(pieces)):
        return values  # two strings side by side are one for Python: then the pieces are right
    return pieces


def _text(value: Any, what: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    return _fail(where, f"{what} must be a text or a number, got {value!r}")


def _fail(where: str, problem: str) -> NoReturn:
    raise PolyptychError(f"{where}: {problem}")
