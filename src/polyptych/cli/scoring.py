"""``polyptych score``, ``compare`` and ``tasks``: judging answers that are there; no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polyptych.cli.common import command_group, example
from polyptych.errors import PolyptychError

commands = typer.Typer()
tasks_app = command_group(
    "The tasks that evaluate and score know: metrics, files, licences, where to get them.",
    "polyptych tasks make-sample pope data",
)

SHOWN_PROBLEMS = 20
INCOMPLETE = 1
"""Exit code of a score over fewer items than the task has."""


@commands.command(
    epilog=example(
        "polyptych score predictions.jsonl --metrics cider,bleu,rouge_l --json scores.json"
    )
)
def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            help='Lines of {"id": ..., "prediction": ..., "references": [...]}; with a TASK, '
            "answers under its ids."
        ),
    ],
    task: Annotated[
        str | None, typer.Argument(help="Task whose scorers judge; see `polyptych tasks`.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds the benchmarks' folders.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Without a TASK: metrics, separated by commas; default: cider,bleu,rouge_l."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Who judges answers that no rule can score: named as for evaluate, or the "
            "judge.jsonl of an earlier run, which asks nobody."
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="What the judge's server calls its model.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="File for the values of the whole set and of each item.")
    ] = None,
) -> None:
    """Score a file of predictions; needs no model and no Java.

    With a TASK, what is wrong in the file is named and the rest is scored; the exit code is then 1.
    A judge's replies are stored beside the file, and read again where they are.
    """
    if task is not None:
        if metrics is not None:
            raise PolyptychError("a task has its own metrics; leave out --metrics or the task")
        _score_task(predictions, _judged(task, data, predictions.parent, judge, judge_model), json)
        return
    if judge is not None:
        raise PolyptychError("--judge needs a TASK that has its answers judged")
    from polyptych.evaluation.scoring_file import score_file

    names = [name.strip() for name in (metrics or "cider,bleu,rouge_l").split(",") if name.strip()]
    for result in score_file(predictions, names, out=json):
        typer.echo(f"{result.name:<16} {result.value:.6f}  n={result.count}")


def _judged(
    name: str, data: Path | None, folder: Path, judge: str | None, judge_model: str | None
) -> Any:
    """The task with scorers; where a judge has to grade, asked now or before."""
    from polyptych.evaluation.judge import with_judge, with_recorded_replies
    from polyptych.evaluation.tasks.finding import find_task

    task = find_task(name, data=data)
    if judge is None:
        task = with_recorded_replies(task, folder)
    else:
        from polyptych.serving.answerers import load_answerer

        task = with_judge(task, load_answerer(judge, api_model=judge_model), folder)
    if not task.scorers:
        how = "its server scores the predictions" if task.judging is None else "name a --judge"
        raise PolyptychError(f"{name}: no public answers here; {how}")
    return task


def _score_task(predictions: Path, task: Any, json: Path | None) -> None:
    from polyptych.evaluation.answers_file import read_answers
    from polyptych.evaluation.scorers import estimate, image_clusters, measure
    from polyptych.evaluation.scoring_file import write_scores
    from polyptych.evaluation.task import load_examples

    answers = read_answers(predictions, *load_examples(task))
    clusters = image_clusters(answers.examples)
    scores = [
        estimate(measured, clusters=clusters)
        for measured in measure(task.scorers, answers.examples, answers.predictions)
    ]
    for found in scores:
        low, high = found.interval
        line = f"{found.name:<40} {found.value:8.4f}  [{low:.4f}, {high:.4f}]  n={found.count}"
        typer.echo(line)
    if json is not None:
        write_scores(json, str(predictions), scores)
    show_problems(answers.problems)
    if not answers.complete:
        line = f"scored {len(answers.examples)} of {answers.total} examples"
        typer.echo(f"{line}; {len(answers.problems)} problem(s)", err=True)
        raise typer.Exit(INCOMPLETE)


@commands.command(epilog=example("polyptych compare runs/base runs/ours --out comparison.html"))
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Page of the first two: tables and the items that changed most."
        ),
    ] = None,
) -> None:
    """Put runs side by side: values, intervals, and paired tests against the first.

    Both are judged on the questions that both answered. A difference whose interval holds zero is
    no difference that these data can show.
    """
    if len(runs) < 2:
        raise PolyptychError(f"two or more runs can be compared, got {len(runs)}")
    from polyptych.evaluation.comparing import compare_results
    from polyptych.evaluation.results import read_run

    read = [read_run(folder) for folder in runs]
    shared = [name for name in read[0] if all(name in other for other in read[1:])]
    if not shared:
        raise PolyptychError(f"the runs share no task: {'; '.join(', '.join(r) for r in read)}")
    for name in dict.fromkeys(task for results in read for task in results):
        if name not in shared:
            typer.echo(f"{name}: not in all runs, left out", err=True)
    for name in shared:
        against = [compare_results(read[0][name], other[name]) for other in read[1:]]
        _show_compared(name, runs, against)
    if out is not None:
        from polyptych.evaluation.comparison_report import write_comparison

        typer.echo(f"to look at: {write_comparison(runs[0], runs[1], out)}")


def _show_compared(name: str, runs: Sequence[Path], against: Sequence[Any]) -> None:
    from polyptych.evaluation.comparing import is_clear

    for folder, compared in zip(runs[1:], against, strict=True):
        typer.echo(f"{name}: {runs[0]} and {folder}, {len(compared.examples)} items")
        typer.echo(
            f"  {'':<40} {'first':>8} {'95 %':<16} {'second':>8} {'95 %':<16} second - first"
        )
        for row in compared.rows:
            value, (low, high), p_value = row.difference
            verdict = "" if is_clear(row) else "  inside the interval: no difference shown"
            typer.echo(
                f"  {row.first.name:<40} {_value(row.first)} {_value(row.second)} "
                f"{value:+8.4f} [{low:+.4f}, {high:+.4f}]  p={p_value:.4f}{verdict}"
            )
        show_problems(compared.problems)


def _value(estimate: Any) -> str:
    low, high = estimate.interval
    return f"{estimate.value:8.4f} [{low:.4f}, {high:.4f}]"


def show_problems(problems: Sequence[str]) -> None:
    """The first ones, and how many more there are, to stderr."""
    for line in problems[:SHOWN_PROBLEMS]:
        typer.echo(line, err=True)
    if len(problems) > SHOWN_PROBLEMS:
        typer.echo(f"... and {len(problems) - SHOWN_PROBLEMS} more", err=True)


@tasks_app.callback(invoke_without_command=True, no_args_is_help=False)
def tasks(context: typer.Context) -> None:
    """List the tasks that evaluate and score know: metric, who scores, what it is."""
    if context.invoked_subcommand is not None:
        return
    from polyptych.evaluation.tasks.listing import table

    typer.echo(table())


@tasks_app.command("show", epilog=example("polyptych tasks show pope"))
def show(task: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Show one task in full: flavors, files expected, licence, where to get them."""
    from polyptych.evaluation.tasks.listing import describe

    typer.echo(describe(task))


@tasks_app.command(
    "submission",
    epilog=example("polyptych tasks submission vqav2 predictions.jsonl vqav2.json --data data"),
)
def submission(
    task: Annotated[str, typer.Argument(help="A task whose server scores.")],
    predictions: Annotated[Path, typer.Argument(help="Answers, as for score.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="File for the server.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the benchmarks' folders.")],
) -> None:
    """Write the file that a benchmark's server accepts, and check it: all ids, none twice."""
    from polyptych.evaluation.answers_file import read_answers
    from polyptych.evaluation.submission import check_submission, submission_of, write_submission
    from polyptych.evaluation.task import load_examples
    from polyptych.evaluation.tasks.finding import find_task

    submission_of(task)
    answers = read_answers(predictions, *load_examples(find_task(task, data=data)))
    show_problems(answers.problems)
    write_submission(task, data, answers.predictions, out)
    typer.echo(f"{check_submission(task, data, out)} answers in {out}")


@tasks_app.command("make-sample", epilog=example("polyptych tasks make-sample pope data"))
def make_sample(
    task: Annotated[str, typer.Argument(help="A task that reads files, or all.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What evaluate takes as --data.")],
) -> None:
    """Draw a small set in a benchmark's published layout, to try it offline."""
    from polyptych.evaluation.tasks.listing import make_samples

    for made in make_samples(task, folder):
        typer.echo(made)
