"""What a run says of itself: ``metrics.jsonl``, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polyptych.errors import PolyptychError
from polyptych.files import write_aside

SHUFFLED_LOSS = "loss_with_shuffled_images"
"""Name of the loss over validation examples that see each other's images."""

NO_DIFFERENCE = 0.002
"""Relative rise of the loss below which images are said to make no difference."""


class Tracker(TrainerCallback):
    """Logs steps and validations; a resumed run goes on with the file of the killed one.

    One line per logged step, rates measured without validation and saving; ``waiting_for_data`` is
    the share of that time in which the next batches were not there yet::

        {"step": 20, "loss": 1.92, "learning_rate": 0.001, "grad_norm": 0.71,
         "examples_per_second": 210.3, "images_per_second": 841.1, "waiting_for_data": 0.03,
         "seconds": 12.4}

    Args:
        path: ``metrics.jsonl``.
        steps: All steps of the run.
        flush_at: A step number divisible by one of these is always logged, so that no average
            spans a checkpoint and a resumed run logs the same numbers.
        tensorboard: Folder for TensorBoard events, None for none; needs the package.
        progress: Show a bar on stderr.
    """

    def __init__(
        self,
        path: Path,
        *,
        steps: int,
        flush_at: tuple[int, ...],
        tensorboard: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.path, self.steps, self.flush_at = path, steps, flush_at
        self.tensorboard, self.show_progress = tensorboard, progress
        self.last: dict[str, Any] = {}
        self._file: IO[str] | None = None
        self._events: Any = None
        self._bar: Any = None
        self._earlier = 0.0
        self._examples = 0
        self._images: int | Tensor = 0
        self._paused = self._waited = 0.0

    def count(self, image_counts: Tensor) -> None:
        """Note a micro batch that is about to be computed."""
        self._examples += len(image_counts)
        self._images = self._images + image_counts.sum()

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each is there is noted."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - start
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out of the rates."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop lines after the step that the run goes on from, and open the logs."""
        self._start = self._mark = time.perf_counter()
        kept = [line for line in _read_lines(self.path) if line["step"] <= state.global_step]
        for line in kept:  # a run that was killed after its last step logs none any more
            self.last.update(line)
        if not state.is_world_process_zero:
            return
        with write_aside(self.path) as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._earlier = kept[-1]["seconds"] if kept else 0.0
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (open for the run)
        if self.tensorboard is not None:
            self._events = _event_writer(self.tensorboard, state.global_step)
        if self.show_progress:
            self._bar = _Bar(self.steps, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Close the average before every checkpoint and validation, and at the end."""
        step = state.global_step
        if step == self.steps or any(step % every == 0 for every in self.flush_at):
            control.should_log = True
        if self._bar is not None:
            self._bar.move(step)
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a line for a logged step.

        Raises:
            PolyptychError: If the loss is no longer a number.
        """
        if logs is None or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise PolyptychError(
                f"the loss is {logs['loss']} at step {state.global_step}; "
                "lower the learning rate or look at the data"
            )
        now = time.perf_counter()
        seconds = max(now - self._mark - self._paused, 1e-9)
        processes = max(args.world_size, 1)
        line = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        line["examples_per_second"] = round(processes * self._examples / seconds, 2)
        line["images_per_second"] = round(processes * int(self._images) / seconds, 2)
        line["waiting_for_data"] = round(min(self._waited / seconds, 1.0), 4)
        self._mark, self._paused, self._waited, self._examples, self._images = now, 0.0, 0.0, 0, 0
        self._write(state.global_step, line)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line for a validation; names get the prefix ``validation_``."""
        self._write(step, {f"validation_{name}": value for name, value in metrics.items()})
        if self._bar is not None:
            self._bar.print(_validation_line(step, metrics))

    def close(self) -> None:
        """Close the logs; safe to call twice."""
        for log in (self._file, self._events, self._bar):
            if log is not None:
                log.close()
        self._file = self._events = self._bar = None

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        seconds = round(self._earlier + time.perf_counter() - self._start, 3)
        line = {"step": step, **values, "seconds": seconds}
        self.last.update(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                group = "validation" if name.startswith("validation_") else "train"
                tag = f"{group}/{name.removeprefix('validation_')}"
                self._events.add_scalar(tag, value, step)
        if self._bar is not None:
            self._bar.say(values)


def _validation_line(step: int, metrics: Mapping[str, float]) -> str:
    """The loss beside the one with others' images, so that a model that ignores them shows it."""
    loss, shuffled = metrics["loss"], metrics.get(SHUFFLED_LOSS)
    line = f"step {step}: validation loss {loss:.4f}"
    if shuffled is not None:
        line += f", with images shuffled among examples {shuffled:.4f}"
        if shuffled - loss < NO_DIFFERENCE * loss:
            line += ": the images make no difference so far"
    rest = {name: v for name, v in metrics.items() if name not in ("loss", SHUFFLED_LOSS)}
    return line + "".join(f", {name} {value:.4f}" for name, value in rest.items())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Logged lines; a last one that was cut by a kill is dropped."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _event_writer(folder: Path, step: int) -> Any:
    """A TensorBoard writer that hides what a killed run wrote after ``step``; None without it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


class _Bar:
    """A progress bar on stderr with the last numbers behind it."""

    def __init__(self, steps: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=steps, completed=done, numbers="")
        self._numbers: dict[str, str] = {}
        self._progress.start()

    def move(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def say(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if name == "loss" or name == "images_per_second" or name.startswith("validation_"):
                self._numbers[name] = f"{name.replace('_', ' ')} {value:.4g}"
        self._progress.update(self._task, numbers=" · ".join(self._numbers.values()))

    def print(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()
