"""``polyptych generate`` and ``evaluate``: from examples to answers to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polyptych.cli.common import (
    BatchOption,
    BeamsOption,
    DeviceOption,
    LengthOption,
    chosen_decoding,
    example,
    find_device,
    hide_bars,
)
from polyptych.cli.scoring import INCOMPLETE, show_problems
from polyptych.errors import PolyptychError

commands = typer.Typer()

AnswererOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder, hub name or bundled name; a server's address (http://HOST/v1); or a Python "
        "function (MODULE:FUNCTION). Default: the bundled model.",
    ),
]
ApiModelOption = Annotated[str | None, typer.Option(help="What the server calls the model.")]


@commands.command(epilog=example("polyptych generate test/records.jsonl --out predictions.jsonl"))
def generate(
    data: Annotated[Path, typer.Argument(help="Examples: a file or folder of any known format.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Predictions, a .jsonl file.")],
    model: AnswererOption = None,
    api_model: ApiModelOption = None,
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
    from polyptych.evaluation.task import GenerationSettings

    settings = chosen_decoding(
        GenerationSettings(), num_beams=beams, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    examples = list(read_examples(data))
    answerer = _load(model, api_model, device)
    predictions = runner.generate(answerer, examples, out, settings=settings)
    typer.echo(f"{len(predictions)} predictions in {out}")


@commands.command(epilog=example("polyptych evaluate storybook/group_captioning --out runs/group"))
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] TASK...",
            help="A model (default: the bundled one; see --model) and tasks: names that `polyptych "
            "tasks` lists, or files or folders of examples with references.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", "--root", help="Folder that holds the benchmarks' folders."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for answers and scores; default: runs/TASK."),
    ] = None,
    model: AnswererOption = None,
    api_model: ApiModelOption = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Who judges answers that no rule can score; named like a model."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="What the judge's server calls its model.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Examples to draw (storybook only).")] = 200,
    split: Annotated[str, typer.Option(help="core or full (demon only).")] = "core",
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer the examples of tasks and score the answers.

    Every score comes with its 95 % interval; OUT/report.html shows scores, baselines, published
    rows, and best and worst answers. A killed run goes on where it stopped. What is wrong in a
    task's files is named and the rest is scored; the exit code is then 1.
    """
    model, names = _model_and_tasks(words, model)
    if out is None and len(names) > 1:
        raise PolyptychError(f"{len(names)} tasks need --out DIR, a folder for their results")
    out = out or Path("runs", Path(names[0]).name)
    decoding = {"num_beams": beams, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    from polyptych.evaluation.tasks.finding import DEMON

    prepared = [
        _prepare_demon(data, split) if name == DEMON else _prepare(name, data, count, split)
        for name in names
    ]
    answerer = _load(model, api_model, device)
    judging = _load(judge, judge_model, device) if judge is not None else None
    left_out = 0
    for name, task in zip(names, prepared, strict=True):
        folder = out if len(names) == 1 else out / _folder_name(name)
        if name == DEMON:
            _run_demon(answerer, task, folder, decoding)
        else:
            left_out += _run(answerer, task, folder, decoding, judging)
    from polyptych.evaluation.run_report import write_report

    typer.echo(f"written to {out}; to look at: {write_report(out)}")
    if left_out:
        typer.echo(f"{left_out} bad item(s) of the tasks' files were left out", err=True)
        raise typer.Exit(INCOMPLETE)


def _model_and_tasks(words: Sequence[str], model: str | None) -> tuple[str | None, list[str]]:
    """The first of several words is the model, unless it names a task or --model is given."""
    from polyptych.evaluation.tasks.finding import is_task_name

    names = list(words)
    if model is None and len(names) > 1 and not is_task_name(names[0]):
        model = names.pop(0)
    folders = [_folder_name(name) for name in names]
    repeated = sorted({folder for folder in folders if folders.count(folder) > 1})
    if repeated:
        raise PolyptychError(f"two tasks would be written to one folder: {', '.join(repeated)}")
    return model, names


def _folder_name(name: str) -> str:
    return Path(name).name if Path(name).exists() else name.replace("/", "-")


def _prepare(name: str, data: Path | None, count: int, split: str) -> Any:
    """The task with its examples read: a bad file shows before the model is loaded."""
    from polyptych.evaluation.task import read_once
    from polyptych.evaluation.tasks.finding import find_task

    return read_once(find_task(name, data=data, count=count, split=split))


def _prepare_demon(data: Path | None, split: Any) -> Any:
    from polyptych.evaluation.tasks import demon
    from polyptych.evaluation.tasks.finding import demon_root

    if data is None:
        raise PolyptychError("demon needs --data DIR, the folder with one folder per task")
    return demon.read_benchmark(demon_root(data), split)


def _run(
    answerer: Any, task: Any, out: Path, decoding: dict[str, int | None], judge: Any | None
) -> int:
    """Run one task and show its scores; how many of its items are bad."""
    from polyptych.evaluation import runner
    from polyptych.evaluation.judge import with_judge
    from polyptych.evaluation.task import load_examples

    if task.judging is not None and judge is not None:
        task = with_judge(task, judge, out)
    settings = chosen_decoding(task.settings, **decoding)
    scores = runner.evaluate(answerer, task, out, settings=settings)
    typer.echo(task.name)
    for score in scores:
        low, high = score.interval
        line = f"{score.name:<40} {score.value:8.4f}  [{low:.4f}, {high:.4f}]  n={score.count}"
        typer.echo(f"  {line}")
    if task.judging is not None and judge is None:
        typer.echo("  answered; add --judge NAME to have the answers judged")
    _write_submission(task, out)
    faults = runner.with_pictures(load_examples(task)).faults
    show_problems(faults)
    return len(faults)


def _write_submission(task: Any, out: Path) -> None:
    """The file for the benchmark's server, where it has one and wants it."""
    from polyptych.evaluation.answers_file import read_answers
    from polyptych.evaluation.runner import PREDICTIONS_FILE
    from polyptych.evaluation.submission import SUBMISSIONS, write_submission
    from polyptych.evaluation.task import load_examples
    from polyptych.evaluation.tasks.catalog import BENCHMARKS

    known = BENCHMARKS.get(task.name)
    if known is None or known.scoring != "server" or task.name not in SUBMISSIONS:
        return
    file = out / f"submission{SUBMISSIONS[task.name].suffixes[0]}"
    predictions = read_answers(out / PREDICTIONS_FILE, load_examples(task).examples).predictions
    try:
        write_submission(task.name, task.origin["data"], predictions, file)
    except PolyptychError as error:  # the answers are kept; what is missing can be added
        typer.echo(f"  no file for its server: {error}", err=True)
    else:
        typer.echo(f"  for its server: {file}")


def _run_demon(answerer: Any, benchmark: Any, out: Path, decoding: dict[str, int | None]) -> None:
    from polyptych.evaluation.demon.commands import show
    from polyptych.evaluation.tasks import demon

    settings = chosen_decoding(demon.SETTINGS, **decoding)
    show(demon.evaluate_demon(answerer, benchmark, out, settings=settings))


def _load(model: str | None, api_model: str | None, device: str | None) -> Any:
    from polyptych.serving.answerers import is_in_memory, load_answerer

    if not is_in_memory(model):  # a server or a function needs no torch
        return load_answerer(model, api_model=api_model)
    hide_bars()
    return load_answerer(model, device=find_device(device), api_model=api_model)
