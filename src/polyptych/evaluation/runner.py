"""Running a model over a task: answers to a file as they come, then scores with their context.

A run can be killed at any moment. While it runs, answers stand in ``NAME.running``, one line each,
in the order in which they were made (batches of similar length, longest first, so that a shortage
of memory shows at once). Starting the same run again keeps every whole line and answers the rest.
At the end the lines are put in the examples' order and written under their final name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polyptych.data.collation import Collator
from polyptych.data.images import image_hash
from polyptych.data.records import parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Estimate, accepted_answers, estimate, measure
from polyptych.evaluation.statistics import CONFIDENCE, RESAMPLES
from polyptych.evaluation.task import GenerationSettings, Task, prompt_text
from polyptych.files import write_aside
from polyptych.schema import Example, Prediction

PREDICTIONS_FILE = "predictions.jsonl"
SCORES_FILE = "scores.json"


def evaluate(
    model: Any,
    processor: Any,
    task: Task,
    out: str | Path,
    *,
    settings: GenerationSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Estimate]:
    """Answer a task's examples and score the answers.

    Writes ``predictions.jsonl`` and ``scores.json`` into the folder ``out``.

    Args:
        model: A model with ``generate``.
        processor: The processor saved beside it.
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
    examples = list(task.load())
    predictions = generate(
        model, processor, examples, out / PREDICTIONS_FILE, settings=settings, progress=progress
    )
    scores = [
        estimate(measured, seed=seed) for measured in measure(task.scorers, examples, predictions)
    ]
    record = {
        "task": task.name,
        "scores": [score_record(score) for score in scores],
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": seed},
        **run_context(model, processor, examples, settings),
    }
    with write_aside(out / SCORES_FILE) as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
    return scores


def generate(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    out: str | Path,
    *,
    settings: GenerationSettings,
    progress: bool = True,
) -> list[Prediction]:
    """Answer every example and write one JSON line each.

    Args:
        model: A model with ``generate``.
        processor: The processor saved beside it.
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
    out = Path(out)
    by_id = {example.id: example for example in examples}
    if len(by_id) < len(examples):
        raise PolyptychError(f"{len(examples)} examples have only {len(by_id)} different ids")
    running = out.with_name(out.name + ".running")
    source = out if out.exists() else running
    key = run_key(model, processor, settings)
    done = _read_done(source, by_id, key) if source.exists() else {}
    if source == out and len(done) < len(examples):
        raise PolyptychError(
            f"{out} is a finished run of {len(done)} examples, not {len(examples)}; "
            "choose another folder"
        )
    todo = [example for example in examples if example.id not in done]
    if todo:
        batches = _batches(todo, processor.tokens_per_image, settings.batch_size)
        bar = _progress(out.stem, progress, len(done), len(examples))
        with _line_writer(running) as write, bar as step:
            for batch in batches:
                answered = _answer_timed(model, processor, batch, settings, key)
                write("".join(map(_line, answered)))
                done.update({prediction.id: prediction for prediction in answered})
                step(len(batch))
    predictions = [done[example.id] for example in examples]
    if source != out:
        with write_aside(out) as file:
            file.writelines(_line(prediction) for prediction in predictions)
        running.unlink(missing_ok=True)
    return predictions


@torch.inference_mode()
def answer(
    model: Any, processor: Any, examples: Sequence[Example], settings: GenerationSettings
) -> list[str]:
    """Answer one batch: ``images and words -> text``, nothing written.

    Sampling starts from ``settings.seed`` in every call and leaves the caller's random state as it
    was.
    """
    inputs = model_inputs(model, processor, examples)
    sequences = generate_ids(model, processor, inputs, settings)
    return processor.decode_answers(sequences, inputs["input_ids"].shape[1])


def generate_ids(
    model: Any, processor: Any, inputs: Mapping[str, Any], settings: GenerationSettings
) -> torch.Tensor:
    """Prompts and answers (rows, T + L) of prepared inputs; sampling as in :func:`answer`."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=settings.do_sample):
        if settings.do_sample:
            torch.manual_seed(settings.seed)
        return model.generate(**inputs, **settings.arguments(), pad_token_id=processor.pad_token_id)


def model_inputs(
    model: Any, processor: Any, examples: Sequence[Example]
) -> dict[str, torch.Tensor]:
    """Prompts and pictures of a batch, where the model is and in the type it computes in."""
    batch: Any = Collator(processor, training=False)(examples)
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }


def _answer_timed(
    model: Any,
    processor: Any,
    batch: Sequence[Example],
    settings: GenerationSettings,
    key: str,
) -> list[Prediction]:
    """Predictions of one batch; ``seconds`` is the batch's time divided by its size."""
    start = time.perf_counter()
    texts = answer(model, processor, batch, settings)
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


def _batches(
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

_LINE_KEYS = frozenset({"id", "prediction", "references", "prompt", "seconds", "settings"})


def _line(prediction: Prediction) -> str:
    record = {
        "id": prediction.id,
        "prediction": prediction.text,
        "references": list(prediction.references),
        "prompt": prediction.prompt,
        "seconds": round(prediction.seconds or 0.0, 4),
        "settings": prediction.settings["hash"],
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


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
def _line_writer(path: Path) -> Iterator[Callable[[str], None]]:
    """Append whole lines; a torn last line of a killed run is cut off first."""
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


@contextmanager
def _progress(name: str, shown: bool, done: int, total: int) -> Iterator[Callable[[int], None]]:
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
    """A score as JSON, without the values of its items."""
    low, high = score.interval
    return {"name": score.name, "value": score.value, "count": score.count, "interval": [low, high]}


def run_context(
    model: Any, processor: Any, examples: Sequence[Example], settings: GenerationSettings
) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat a number."""
    return {
        "count": len(examples),
        "data_hash": data_hash(examples),
        "model": {"name": model.config.name_or_path, "hash": model_hash(model)},
        "prompt_template": processor.template,
        "settings": dataclasses.asdict(settings),
        "settings_hash": run_key(model, processor, settings),
        "versions": versions(),
    }


def run_key(model: Any, processor: Any, settings: GenerationSettings) -> str:
    """Twelve hex digits of decoding settings, row layout and weights: what makes an answer."""
    layout = json.dumps(dataclasses.asdict(processor.settings), sort_keys=True)
    return _digest(settings.hash, layout, model_hash(model))


def model_hash(model: Any) -> str:
    """Twelve hex digits of names, shapes and a few numbers of every weight: cheap at any size."""
    parts = []
    for name, weight in model.state_dict().items():
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 8)].double().cpu().tolist()
        parts.append(f"{name} {tuple(weight.shape)} {some}")
    return _digest(*parts)


def data_hash(examples: Sequence[Example]) -> str:
    """Twelve hex digits of ids, prompts, references and pictures, in order."""
    return _digest(
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
    """Versions of what computes answers and decodes images."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:12]
