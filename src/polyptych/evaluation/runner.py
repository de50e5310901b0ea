"""Running an answerer over a task: answers to a file as they come, then scores with their context.

A run can be killed at any moment. While it runs, answers stand in ``NAME.running``, one line each,
in the order in which they were made (batches of similar length, longest first, so that a shortage
of memory shows at once). Starting the same run again keeps every whole line and answers the rest.
At the end the lines are put in the examples' order and written under their final name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polyptych.data.images import image_hash
from polyptych.data.records import parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.answering import Answerer, digest, obeyed, run_key
from polyptych.evaluation.baselines import baselines
from polyptych.evaluation.scorers import (
    Estimate,
    accepted_answers,
    estimate,
    image_clusters,
    measure,
)
from polyptych.evaluation.statistics import CONFIDENCE, RESAMPLES
from polyptych.evaluation.task import GenerationSettings, Loaded, Task, load_examples, prompt_text
from polyptych.files import line_writer, write_aside
from polyptych.schema import Example, ImageRef, Prediction

PREDICTIONS_FILE = "predictions.jsonl"
SCORES_FILE = "scores.json"
ITEMS_FILE = "items.jsonl"


def evaluate(
    answerer: Answerer,
    task: Task,
    out: str | Path,
    *,
    settings: GenerationSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Estimate]:
    """Answer a task's examples and score the answers.

    Writes ``predictions.jsonl``, ``items.jsonl`` (each item's own values) and, last,
    ``scores.json`` into the folder ``out``. Bad items of the task's files are left out and named
    under ``faults`` there.

    Args:
        answerer: Who answers, such as ``LocalModel(model, processor)``.
        task: What is asked and how it is judged.
        out: Folder of this run; an interrupted run in it is taken up again.
        settings: Decoding; default: the task's own.
        seed: Seed of the bootstrap.
        progress: Show a bar with an estimate of the time left, on a terminal.

    Returns:
        One estimate per metric: a score with its interval.

    Raises:
        PolyptychError: If ``out`` holds a run with other settings, another model or other data.
    """
    out, settings = Path(out), settings or task.settings
    examples, faults = with_pictures(load_examples(task))
    predictions = generate(
        answerer, examples, out / PREDICTIONS_FILE, settings=settings, progress=progress
    )
    clusters = image_clusters(examples)
    scores = [
        estimate(measured, clusters=clusters, seed=seed)
        for measured in measure(task.scorers, examples, predictions)
    ]
    record = {
        "task": task.name,
        "origin": dict(task.origin),
        "scores": [score_record(score) for score in scores],
        "faults": faults,
        "baselines": baselines(task, examples),
        "bootstrap": {
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "seed": seed,
            "clusters": len(set(clusters.values())),
        },
        **run_context(answerer, examples, settings),
    }
    _write_items(out / ITEMS_FILE, examples, scores)
    with write_aside(out / SCORES_FILE) as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
    return scores


def with_pictures(loaded: Loaded) -> Loaded:
    """The examples whose pictures are there; each of the others is one more fault.

    Raises:
        PolyptychError: If no example has its pictures.
    """
    examples, faults = [], list(loaded.faults)
    for example in loaded.examples:
        lacking = [i.path for i in example.images if i.path and not os.path.isfile(i.path)]
        if lacking:
            faults.append(f"example {example.id!r}: image {lacking[0]} does not exist")
        else:
            examples.append(example)
    if loaded.examples and not examples:
        raise PolyptychError(f"no example has its pictures, first: {faults[len(loaded.faults)]}")
    return Loaded(examples, faults)


def _write_items(path: Path, examples: Sequence[Example], scores: Sequence[Estimate]) -> None:
    """One line per example: ``{"id": "g1", "scores": {"cider[coco]": 0.7}}``."""
    with write_aside(path) as file:
        for example in examples:
            values = {
                score.name: round(score.per_item[example.id], 6)
                for score in scores
                if score.per_item is not None and example.id in score.per_item
            }
            file.write(json.dumps({"id": example.id, "scores": values}, ensure_ascii=False) + "\n")


def generate(
    answerer: Answerer,
    examples: Sequence[Example],
    out: str | Path,
    *,
    settings: GenerationSettings,
    progress: bool = True,
) -> list[Prediction]:
    """Answer every example and write one JSON line each.

    Args:
        answerer: Who answers, such as ``LocalModel(model, processor)``.
        examples: What is asked; ids are unique.
        out: File of predictions; see the module's docstring for interrupted runs.
        settings: Decoding.
        progress: Show a bar with an estimate of the time left, on a terminal.

    Returns:
        Predictions in the order of the examples.

    Raises:
        PolyptychError: For repeated ids, or if ``out`` holds answers made with other settings, by
            another model or to other questions.
    """
    out, settings = Path(out), obeyed(answerer, settings)
    by_id = {example.id: example for example in examples}
    if len(by_id) < len(examples):
        raise PolyptychError(f"{len(examples)} examples have only {len(by_id)} different ids")
    running = out.with_name(out.name + ".running")
    source = out if out.exists() else running
    key = run_key(answerer, settings)
    done = _read_done(source, by_id, key) if source.exists() else {}
    if source == out and len(done) < len(examples):
        raise PolyptychError(
            f"{out} is a finished run of {len(done)} examples, not {len(examples)}; "
            "choose another folder"
        )
    todo = [example for example in examples if example.id not in done]
    if todo:
        batches = batches_by_length(todo, answerer.tokens_per_image, settings.batch_size)
        bar = progress_bar(out.stem, shown=progress, done=len(done), total=len(examples))
        with line_writer(running) as write, bar as step:
            for batch in batches:
                answered = _answer_timed(answerer, batch, settings, key)
                write("".join(map(_line, answered, batch)))
                done.update({prediction.id: prediction for prediction in answered})
                step(len(batch))
    predictions = [done[example.id] for example in examples]
    if source != out:
        with write_aside(out) as file:
            file.writelines(map(_line, predictions, examples))
        running.unlink(missing_ok=True)
    return predictions


def _answer_timed(
    answerer: Answerer, batch: Sequence[Example], settings: GenerationSettings, key: str
) -> list[Prediction]:
    """Predictions of one batch; ``seconds`` is the batch's time divided by its size."""
    start = time.perf_counter()
    texts = answerer.answer(batch, settings)
    seconds = (time.perf_counter() - start) / len(batch)
    return [
        Prediction(
            id=example.id,
            text=text,
            references=accepted_answers(example),
            prompt=prompt_text(example.prompt),
            seconds=seconds,
            settings={"hash": key},
        )
        for example, text in zip(batch, texts, strict=True)
    ]


def batches_by_length(
    examples: Sequence[Example], tokens_per_image: int, size: int
) -> Iterator[Sequence[Example]]:
    """Examples of similar length together, longest first (about four letters are one token)."""

    def length(example: Example) -> int:
        words = sum(len(message.text) for message in example.prompt) // 4
        return words + tokens_per_image * len(example.images)

    ordered = sorted(examples, key=length, reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


# Lines of the predictions file.

_LINE_KEYS = frozenset(
    {"id", "prediction", "references", "prompt", "images", "seconds", "settings"}
)


def _line(prediction: Prediction, example: Example) -> str:
    record = {
        "id": prediction.id,
        "prediction": prediction.text,
        "references": list(prediction.references),
        "prompt": prediction.prompt,
        "images": [image_name(image) for image in example.images],
        "seconds": round(prediction.seconds or 0.0, 4),
        "settings": prediction.settings["hash"],
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def image_name(image: ImageRef) -> str:
    """The path of an image, or ``sha256:`` and its hash where there is none."""
    return image.path if image.path is not None else f"sha256:{image_hash(image)}"


def _read_done(path: Path, by_id: dict[str, Example], key: str) -> dict[str, Prediction]:
    """Whole lines of an earlier start; the torn last line of a killed one does not count."""
    done: dict[str, Prediction] = {}
    for where, line in read_lines(path):
        if not line.endswith(b"\n"):
            break
        record = parse_json(line, where)
        missing = _LINE_KEYS - record.keys() if isinstance(record, dict) else _LINE_KEYS
        if missing:
            raise PolyptychError(f"{where}: not a prediction; missing {', '.join(sorted(missing))}")
        example = by_id.get(record["id"])
        if example is None:
            raise PolyptychError(f"{where}: id {record['id']!r} is none of {len(by_id)} examples")
        if record["settings"] != key:
            raise PolyptychError(
                f"{where}: made with other settings or another model ({record['settings']}, "
                f"now {key}); choose another folder"
            )
        if record["prompt"] != prompt_text(example.prompt):
            raise PolyptychError(f"{where}: id {record['id']!r} was asked another question")
        done[example.id] = Prediction(
            id=example.id,
            text=record["prediction"],
            references=accepted_answers(example),
            prompt=record["prompt"],
            seconds=record["seconds"],
            settings={"hash": key},
        )
    return done


@contextmanager
def progress_bar(
    name: str, *, shown: bool, done: int, total: int
) -> Iterator[Callable[[int], None]]:
    """A bar with an estimate of the time left, on a terminal; yields what moves it on."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(name, completed=done, total=total)
        yield lambda count: bar.advance(task, count)


# What a number depends on.


def score_record(score: Estimate) -> dict[str, Any]:
    """A score as JSON, without the values of its items; null where there is no number."""
    value, low, high = (
        None if math.isnan(number) else number for number in (score.value, *score.interval)
    )
    return {"name": score.name, "value": value, "count": score.count, "interval": [low, high]}


def run_context(
    answerer: Answerer, examples: Sequence[Example], settings: GenerationSettings
) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat a number."""
    settings = obeyed(answerer, settings)
    return {
        "count": len(examples),
        "data_hash": data_hash(examples),
        "answerer": answerer.name,
        **answerer.context(),
        "prompt": prompt_text(examples[0].prompt) if examples else "",
        "settings": dataclasses.asdict(settings),
        "settings_hash": run_key(answerer, settings),
        "settings_ignored": sorted(answerer.ignores),
        "versions": versions(),
    }


def data_hash(examples: Sequence[Example]) -> str:
    """Twelve hex digits of ids, prompts, references and pictures, in order."""
    return digest(
        *(
            json.dumps(
                [
                    example.id,
                    prompt_text(example.prompt),
                    accepted_answers(example),
                    [image_hash(image) for image in example.images],
                ]
            )
            for example in examples
        )
    )


def versions() -> dict[str, str]:
    """Versions of what computes answers, decodes images and scores; those that are installed."""
    found = {"python": platform.python_version()}
    for name in ("polyptych", "torch", "transformers", "pillow", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
