"""``polyptych generate``, ``evaluate`` and ``score``: from examples to answers to numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyptych.cli.common import (
    BatchOption,
    BeamsOption,
    DeviceOption,
    LengthOption,
    ModelOption,
    chosen_decoding,
    example,
    find_device,
    hide_bars,
)
from polyptych.errors import PolyptychError

commands = typer.Typer()


@commands.command(epilog=example("polyptych generate test/records.jsonl --out predictions.jsonl"))
def generate(
    data: Annotated[Path, typer.Argument(help="Examples: a file or folder of any known format.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Predictions, a .jsonl file.")],
    model: ModelOption = None,
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer every example of a data set.

    A killed run goes on where it stopped.
    """
    from polyptych.data.readers import read_examples
    from polyptych.evaluation import runner
    from polyptych.evaluation.local_model import LocalModel
    from polyptych.evaluation.task import GenerationSettings
    from polyptych.models.checkpoint import load_model

    settings = chosen_decoding(
        GenerationSettings(), num_beams=beams, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    examples = list(read_examples(data))
    hide_bars()
    loaded, processor = load_model(model, device=find_device(device))
    answerer = LocalModel(loaded, processor)
    predictions = runner.generate(answerer, examples, out, settings=settings)
    typer.echo(f"{len(predictions)} predictions in {out}")


@commands.command(epilog=example("polyptych evaluate storybook/group_captioning --out runs/group"))
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] TASK",
            help="A model (default: the bundled one) and a task: storybook/NAME, demon, or a file "
            "or folder of examples with references.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for answers and scores; default: runs/TASK."),
    ] = None,
    model: ModelOption = None,
    count: Annotated[int, typer.Option(min=1, help="Examples to draw (storybook only).")] = 200,
    root: Annotated[
        Path | None, typer.Option(help="Folder with one folder per task (demon only).")
    ] = None,
    split: Annotated[str, typer.Option(help="core or full (demon only).")] = "core",
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer a task's examples and score the answers.

    Every score comes with its 95 % interval.
    """
    if len(words) > 2 or (len(words) == 2 and model is not None):
        raise PolyptychError(f"expected a task, or a model and a task; got {' '.join(words)!r}")
    model, task = (words[0], words[1]) if len(words) == 2 else (model, words[0])
    out = out or Path("runs", Path(task).name)
    decoding = {"num_beams": beams, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if task == "demon" and (root is not None or not Path(task).exists()):
        _evaluate_demon(model, root, split, out, decoding, device)
        return
    from polyptych.evaluation import runner
    from polyptych.evaluation.local_model import LocalModel
    from polyptych.models.checkpoint import load_model

    chosen = _task(task, count)
    settings = chosen_decoding(chosen.settings, **decoding)
    hide_bars()
    loaded, processor = load_model(model, device=find_device(device))
    scores = runner.evaluate(LocalModel(loaded, processor), chosen, out, settings=settings)
    for score in scores:
        low, high = score.interval
        typer.echo(f"{score.name:<28} {score.value:8.4f}  [{low:.4f}, {high:.4f}]  n={score.count}")
    typer.echo(f"written to {out}")


def _evaluate_demon(
    model: str | None,
    root: Path | None,
    split: Any,
    out: Path,
    decoding: dict[str, int | None],
    device: str | None,
) -> None:
    """All tasks of the benchmark; the data are read and checked before the model is loaded."""
    from polyptych.evaluation.demon.commands import show
    from polyptych.evaluation.local_model import LocalModel
    from polyptych.evaluation.tasks import demon
    from polyptych.models.checkpoint import load_model

    if root is None:
        raise PolyptychError("demon needs --root DIR, the folder with one folder per task")
    benchmark = demon.read_benchmark(root, split)
    settings = chosen_decoding(demon.SETTINGS, **decoding)
    hide_bars()
    loaded, processor = load_model(model, device=find_device(device))
    answerer = LocalModel(loaded, processor)
    show(demon.evaluate_demon(answerer, benchmark, out, settings=settings))
    typer.echo(f"written to {out}")


def _task(name: str, count: int) -> Any:
    from polyptych.evaluation.tasks import storybook

    family, _, rest = name.partition("/")
    if family == "storybook" and rest and not Path(name).exists():
        return storybook.storybook_task(rest, count=count)
    from polyptych.data.readers import read_examples
    from polyptych.evaluation.task import Task

    return Task(name, lambda: read_examples(name), (storybook.CAPTIONS,))


@commands.command(
    epilog=example(
        "polyptych score predictions.jsonl --metrics cider,bleu,rouge_l --json scores.json"
    )
)
def score(
    predictions: Annotated[
        Path,
        typer.Argument(help='Lines of {"id": ..., "prediction": ..., "references": [...]}.'),
    ],
    metrics: Annotated[
        str, typer.Option(help="Metrics, separated by commas.")
    ] = "cider,bleu,rouge_l",
    json: Annotated[
        Path | None, typer.Option(help="File for the values of the whole set and of each item.")
    ] = None,
) -> None:
    """Score a file of predictions; needs no model and no Java."""
    from polyptych.evaluation.scoring_file import score_file

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    for result in score_file(predictions, names, out=json):
        typer.echo(f"{result.name:<16} {result.value:.6f}  n={result.count}")
