"""The command line: parses words, calls one function each, turns user errors into one line.

Nothing heavy is imported at the top, so that every ``--help`` answers at once; each command imports
what it needs when it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.commands import add_commands as add_demon_commands
from polyptych.methods.cheetah.commands import DISCRIMINATE_EXAMPLE, discriminative
from polyptych.retrieval.commands import add_commands as add_index_commands

USER_ERROR = 2
"""Exit code of everything a user can cause, as of a wrong option."""

_USERS_OS_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

_REPRODUCTIONS = ("sam",)


class _Commands(TyperGroup):
    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # for an absent flag without default, typer imports pydantic
        return option

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("interrupted")
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            _fail(line)


def explain(error: Exception) -> str | None:
    """The one line for an error that a user caused; None for a bug, which keeps its traceback."""
    if isinstance(error, PolyptychError):
        return " ".join(str(error).splitlines())
    if isinstance(error, _USERS_OS_ERRORS):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, OSError) and error.errno is None and str(error).strip():
        return str(error).strip().splitlines()[0]  # transformers: no such model on the hub
    for refusal in ("No space left on device", "Read-only file system"):
        if refusal in str(error):  # libraries report these in types of their own
            return refusal
    return None


def _fail(line: str) -> NoReturn:
    typer.echo(f"polyptych: {line}", err=True)
    raise typer.Exit(USER_ERROR)


def example(command: str) -> str:
    """The last lines of a help text: one command that works as it stands, never wrapped."""
    return f"\b\nExample:\n  {command}"


def _app(text: str, command: str) -> typer.Typer:
    return typer.Typer(
        cls=_Commands,
        help=text,
        epilog=example(command),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help keeps the examples in one piece and is faster
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


app = _app(
    "Language models that read several pictures together: train, run and score them.",
    'polyptych ask --image a.jpg --image b.jpg "What do these have in common?"',
)
data_app = _app("Make, show and check data sets.", "polyptych data check my_data/")
app.add_typer(data_app, name="data")
demon_app = _app(
    "The DEMON benchmark: a drawn sample, lmms-eval tasks, reports. To run it: evaluate.",
    "polyptych demon make-sample data/demon",
)
add_demon_commands(demon_app, example)
app.add_typer(demon_app, name="demon")
cheetah_app = _app(
    "What only Cheetah needs: its discriminative training data.", DISCRIMINATE_EXAMPLE
)
cheetah_app.command("discriminate", epilog=example(DISCRIMINATE_EXAMPLE))(discriminative)
cheetah_app.callback()(lambda: None)  # with one command alone typer would drop its name
app.add_typer(cheetah_app, name="cheetah")
index_app = _app(
    "Retrieval: index examples by picture or text, and find those nearest to a question.",
    "polyptych index build data/facts --out data/facts.index",
)
add_index_commands(index_app, example)
app.add_typer(index_app, name="index")


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Folder, hub name or bundled name; default: the bundled model."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")
]
BeamsOption = Annotated[int | None, typer.Option(min=1, help="Beams of the search; 1 is greedy.")]
LengthOption = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Examples answered together.")]


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PolyptychError(f"device {name!r} cannot be used: {reason}") from error
    return name


def _quiet() -> None:
    """Hide transformers' bars for reading and writing weights; those of downloads stay."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    enable_progress_bars()


def _decoding(default: Any, **chosen: Any) -> Any:
    """The default settings with what was chosen on the command line put in."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return dataclasses.replace(default, **given)


@app.command(
    epilog=example('polyptych ask --image a.jpg --image b.jpg "What do these have in common?"')
)
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] QUESTION",
            help="A model (default: the bundled one) and what to ask; <image> marks the place of "
            "a picture, without it all pictures come first.",
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="A picture; repeat the option for more, in order."),
    ] = None,
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    device: DeviceOption = None,
) -> None:
    """Ask a model about some pictures."""
    if len(words) > 2:
        raise PolyptychError(
            f"expected a question, or a model and a question; got {len(words)} words: "
            "put the question in quotes"
        )
    from polyptych.serving import chat

    _quiet()
    settings = _decoding(chat.SETTINGS, num_beams=beams, max_new_tokens=max_new_tokens)
    model = words[0] if len(words) == 2 else None
    answer = chat.ask(model, image or [], words[-1], settings=settings, device=_device(device))
    typer.echo(answer)


@app.command(epilog=example("polyptych chat --image a.jpg --image b.jpg"))
def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder, hub name or bundled name; default: the bundled model."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="A picture for the first question; may be repeated."),
    ] = None,
    beams: BeamsOption = None,
    max_new_tokens: LengthOption = None,
    device: DeviceOption = None,
) -> None:
    """Talk with a model about pictures, in several turns.

    What it has read is not read again. Type /image FILE to show more pictures, /quit to leave.
    """
    from polyptych.serving import chat_loop

    _quiet()
    settings = _decoding(chat_loop.SETTINGS, num_beams=beams, max_new_tokens=max_new_tokens)
    chat_loop.chat(model, image or [], settings=settings, device=_device(device))


@app.command(
    epilog=example("polyptych train storybook_finetune optimizer.learning_rate=1e-3 --out runs/sam")
)
def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe in polyptych.recipes, or a .py or .json file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="Values to change, read as JSON or text."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; default: runs/NAME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on with what the folder holds, or start again.")
    ] = True,
) -> None:
    """Train a model by a recipe.

    A killed run goes on where it stopped.
    """
    from polyptych.recipes import load_recipe
    from polyptych.training.supervised import train as run

    _quiet()
    chosen = load_recipe(recipe).with_overrides(overrides or [])
    result = run(chosen, out=out or Path("runs", chosen.name), resume=resume, progress=True)
    typer.echo(f"{result.steps} steps, loss {result.loss:.4f}; model in {result.final}")
    if result.best is not None:
        typer.echo(f"best on validation: step {result.best_step} in {result.best}")


@app.command(epilog=example("polyptych generate test/records.jsonl --out predictions.jsonl"))
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
    from polyptych.evaluation.task import GenerationSettings
    from polyptych.models.checkpoint import load_model

    settings = _decoding(
        GenerationSettings(), num_beams=beams, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    examples = list(read_examples(data))
    _quiet()
    loaded, processor = load_model(model, device=_device(device))
    predictions = runner.generate(loaded, processor, examples, out, settings=settings)
    typer.echo(f"{len(predictions)} predictions in {out}")


@app.command(epilog=example("polyptych evaluate storybook/group_captioning --out runs/group"))
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
    from polyptych.models.checkpoint import load_model

    chosen = _task(task, count)
    settings = _decoding(chosen.settings, **decoding)
    _quiet()
    loaded, processor = load_model(model, device=_device(device))
    scores = runner.evaluate(loaded, processor, chosen, out, settings=settings)
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
    from polyptych.evaluation.tasks import demon
    from polyptych.models.checkpoint import load_model

    if root is None:
        raise PolyptychError("demon needs --root DIR, the folder with one folder per task")
    benchmark = demon.read_benchmark(root, split)
    settings = _decoding(demon.SETTINGS, **decoding)
    _quiet()
    loaded, processor = load_model(model, device=_device(device))
    show(demon.evaluate_demon(loaded, processor, benchmark, out, settings=settings))
    typer.echo(f"written to {out}")


def _task(name: str, count: int) -> Any:
    from polyptych.evaluation.tasks import storybook

    family, _, rest = name.partition("/")
    if family == "storybook" and rest and not Path(name).exists():
        return storybook.storybook_task(rest, count=count)
    from polyptych.data.readers import read_examples
    from polyptych.evaluation.task import Task

    return Task(name, lambda: read_examples(name), (storybook.CAPTIONS,))


@app.command(
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


@app.command(epilog=example("polyptych parity sam golden/sam --case a"))
def parity(
    method: Annotated[str, typer.Argument(help="The method: sam, cheetah or camml.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with its golden data.")],
    case: Annotated[str, typer.Option(help="The golden case in it.")] = "a",
    dump: Annotated[
        Path | None, typer.Option(help="Write our values as safetensors under the golden names.")
    ] = None,
) -> None:
    """Compare a method with outputs of its published code.

    Every tensor is compared; exit code 0 only if none differs.
    """
    home = Path(__file__).parent / "methods"
    known = sorted(file.parent.name for file in home.glob("*/parity.py"))
    if method not in known:
        raise PolyptychError(f"no golden comparison for {method!r}; known: {', '.join(known)}")
    module = importlib.import_module(f"polyptych.methods.{method}.parity")
    report = module.run(folder, case, dump)
    typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)


@app.command(epilog=example("polyptych reproduce sam --quick"))
def reproduce(
    method: Annotated[str, typer.Argument(help="The method: sam.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for runs and results; default: runs/METHOD."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed only: a first look.")] = False,
    real: Annotated[
        Path | None,
        typer.Option(help="Folder of real picture sets; repeats the comparison over these."),
    ] = None,
) -> None:
    """Repeat a method's comparison in the small.

    Finished runs are kept, so that it can be stopped and started again.
    """
    if method not in _REPRODUCTIONS:
        raise PolyptychError(f"no reproduction of {method!r}; known: {', '.join(_REPRODUCTIONS)}")
    _quiet()
    main = importlib.import_module(f"polyptych.reproduce.{method}").main
    results = main(out or Path("runs", method), quick=quick, real=real)
    typer.echo(f"results in {results}")


@app.command(epilog=example("polyptych demo --out demo --seed 7"))
def demo(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the report.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Examples of each task.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed draws other examples.")] = None,
) -> None:
    """Answer questions over drawn pictures and write a report."""
    from polyptych.serving.demo import main as run

    options: dict[str, Any] = {"out": out, "count": count, "seed": seed}
    run(**{name: value for name, value in options.items() if value is not None})


@app.command(epilog=example("polyptych doctor --model my_model/"))
def doctor(model: ModelOption = None) -> None:
    """Look for what keeps polyptych from working here.

    Exit code 0 if it is usable.
    """
    from polyptych.doctor import diagnose, render

    _quiet()
    findings = diagnose(model)
    typer.echo(render(findings))
    if any(finding.is_problem for finding in findings):
        raise typer.Exit(USER_ERROR)


@data_app.command(
    epilog=example(
        "polyptych data make storybook --task storytelling --count 500 --out data/stories"
    )
)
def make(
    source: Annotated[str, typer.Argument(help="What to make: storybook.")],
    task: Annotated[str, typer.Option(help="Kind of example, such as group_captioning.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for records and pictures.")],
    count: Annotated[int, typer.Option(min=1, help="Number of examples.")] = 100,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed draws another set.")] = 0,
) -> None:
    """Draw a data set."""
    if source != "storybook":
        raise PolyptychError(f"cannot make {source!r}; known: storybook")
    from polyptych.storybook.generation import write_dataset

    path = write_dataset(task, out, count=count, split=split, seed=seed)
    typer.echo(f"{count} records in {path}")


@data_app.command(
    epilog=example("polyptych data show data/stories/records.jsonl --line 3 --out sheet.png")
)
def show(
    records: Annotated[Path, typer.Argument(help="A file or folder of any known format.")],
    identity: Annotated[str | None, typer.Option("--id", help="Which record, by id.")] = None,
    line: Annotated[int, typer.Option(min=1, help="Which record, by position.")] = 1,
    model: ModelOption = None,
    tokens: Annotated[bool, typer.Option(help="Also what a model reads and learns.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG file for a sheet of the pictures.")
    ] = None,
) -> None:
    """Show one record: pictures, messages, tokens and labels."""
    from polyptych.data.inspection import describe, find_example, write_contact_sheet

    example = find_example(records, example_id=identity, line=line)
    processor = None
    if tokens:
        from polyptych.models.checkpoint import load_processor

        processor = load_processor(model)
    typer.echo(describe(example, processor))
    if out is not None:
        write_contact_sheet(example, out)
        typer.echo(f"pictures in {out}")


@data_app.command(epilog=example("polyptych data check data/stories"))
def check(
    path: Annotated[Path, typer.Argument(help="A file or folder of any known format.")],
    decode: Annotated[bool, typer.Option(help="Decode every picture once.")] = True,
) -> None:
    """Read a whole data set and list everything that is wrong with it."""
    from polyptych.data.checking import check_data

    report = check_data(path, decode=decode)
    for problem in report.problems:
        typer.echo(problem, err=True)
    typer.echo(report.summary)
    if not report.ok:
        raise typer.Exit(USER_ERROR)


def main() -> None:
    """Entry point of the ``polyptych`` command."""
    app(prog_name="polyptych")


if __name__ == "__main__":
    main()
