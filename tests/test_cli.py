"""The command line: fast help, one line for every user error, and each command end to end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import polyptych
from polyptych import cli
from polyptych.data.records import read_records, write_records
from polyptych.errors import PolyptychError
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

COMMANDS = [
    ["ask"],
    ["chat"],
    ["train"],
    ["generate"],
    ["evaluate"],
    ["score"],
    ["compare"],
    ["tasks"],
    ["tasks", "show"],
    ["tasks", "make-sample"],
    ["tasks", "submission"],
    ["parity"],
    ["reproduce"],
    ["merge"],
    ["demo"],
    ["doctor"],
    ["convert"],
    ["convert", "sam"],
    ["convert", "cheetah"],
    ["convert", "camml"],
    ["convert", "llava"],
    ["data"],
    ["data", "make"],
    ["data", "show"],
    ["data", "check"],
    ["data", "shard"],
    ["data", "features"],
    ["demon"],
    ["demon", "make-sample"],
    ["demon", "lmms-eval"],
    ["demon", "report"],
    ["improve"],
    ["sima"],
    ["sima", "respond"],
    ["sima", "criticise"],
    ["sima", "pair"],
    ["sima", "tune"],
    ["cheetah"],
    ["cheetah", "discriminate"],
    ["index"],
    ["index", "build"],
    ["index", "search"],
    ["index", "add"],
    ["index", "neighbors"],
    ["index", "attach"],
    ["index", "info"],
]

SOURCE = str(Path(polyptych.__file__).parents[1])


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="polyptych")


def run_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "polyptych.cli", *words],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_user_error(result: Result, *parts: str) -> None:
    """Exit code 2 and exactly one line on stderr, with these parts; no traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("polyptych: ")
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "records.jsonl"
    write_records(path, tiny_examples(3))
    return path


# Help


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_help_shows_an_example_of_that_command(words: list[str]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    _, found, example = result.output.partition("Example:\n")
    assert found
    assert example.strip().startswith(" ".join(["polyptych", *words]))
    assert example.strip().count("\n") == 0, "an example is one line that can be copied"


@pytest.mark.parametrize("words", [["--help"], ["ask", "--help"], ["data", "show", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """Time depends on the machine, what is imported does not: that is what keeps help fast."""
    heavy = {"torch", "transformers", "numpy", "PIL", "pydantic", "rich"}
    code = (
        "import sys\n"
        "from polyptych import cli\n"
        "try:\n    cli.app(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print('HEAVY', sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr.strip().splitlines()[-1] == "HEAVY []"


def test_every_command_is_listed_here() -> None:
    """So that a new command gets its help tested."""

    def names(group: click.Command, above: list[str]) -> list[list[str]]:
        below = getattr(group, "commands", {}).items()
        return [p for n, c in below for p in ([*above, n], *names(c, [*above, n]))]

    assert sorted(names(typer.main.get_command(cli.app), [])) == sorted(COMMANDS)


def test_examples_of_train_name_a_recipe_that_exists() -> None:
    from polyptych.recipes import recipe_names

    words = run("train", "--help").output.partition("Example:\n")[2].split()
    assert words[2] in recipe_names()


# User errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PolyptychError("a.jsonl line 7: 2 places for 3 images"), "a.jsonl line 7: 2 places for 3"),
        (PolyptychError("two\nlines"), "two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.png"), "x.png: No such"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError("a/b is not a local folder\nand more"), "a/b is not a local folder"),
    ],
)
def test_what_a_user_causes_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("polyptych.data.checking.check_data", fail)
    assert_user_error(run("data", "check", "anything"), line)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("polyptych.data.checking.check_data", fail)
    result = run("data", "check", "anything")
    assert isinstance(result.exception, KeyError)


def test_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polyptych.data.checking.check_data", interrupt)
    assert_user_error(run("data", "check", "anything"), "interrupted")


def test_a_signal_ends_a_running_command_without_half_a_file(tmp_path: Path) -> None:
    out = tmp_path / "set"
    words = ["data", "make", "storybook", "--task", "description", "--count", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "polyptych.cli", *words, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.partial")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 2
    assert stderr == "polyptych: interrupted\n"
    assert not list(out.glob("*.partial"))
    assert not (out / "records.jsonl").exists()


def test_a_wrong_option_ends_with_the_same_code() -> None:
    assert run("ask", "--no-such-option").exit_code == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["ask", "one", "two", "three"], "got 3 words"),
        (["ask", "What?", "--image", "no/such.jpg"], "no/such.jpg"),
        (["ask", " "], "empty"),
        (["ask", "What?", "--device", "toaster"], "toaster"),
        (["ask", "./no_model", "What?"], "no_model"),
        (["train", "no_recipe"], "no_recipe"),
        (["parity", "magic", "."], "'magic'"),
        (["reproduce", "magic"], "'magic'"),
        (["score", "no_file.jsonl"], "no_file.jsonl"),
        (["generate", "no_file.jsonl", "--out", "p.jsonl"], "no_file.jsonl"),
        (["evaluate", "storybook/juggling", "--out", "out"], "juggling"),
        (["data", "make", "films", "--task", "x", "--out", "out"], "'films'"),
        (["data", "make", "storybook", "--task", "x", "--out", "out"], "'x'"),
        (["data", "check", "no_folder"], "no_folder"),
        (["data", "show", "no_file.jsonl"], "no_file.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words_are_one_line(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_user_error(run(*words), part)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not written, "nothing is written before the words are understood"


# Commands


def test_data_make_check_and_show(tmp_path: Path) -> None:
    made = run(
        *("data", "make", "storybook", "--task", "group_captioning"),
        *("--count", 2, "--split", "test", "--seed", 3, "--out", tmp_path / "set"),
    )
    assert made.exit_code == 0, made.output
    examples = list(read_records(tmp_path / "set" / "records.jsonl"))
    assert [e.id for e in examples] == [f"group_captioning-test-3-00000{i}" for i in (0, 1)]

    checked = run("data", "check", tmp_path / "set")
    assert checked.exit_code == 0
    assert "2 record(s)" in checked.output

    sheet = tmp_path / "sheet.png"
    shown = run(
        *("data", "show", tmp_path / "set", "--id", examples[1].id, "--no-tokens", "--out", sheet)
    )
    assert shown.exit_code == 0, shown.output
    assert examples[1].target in shown.output
    assert shown.output.count(" 96 x 96 ") == len(examples[1].images)
    with Image.open(sheet) as image:
        assert image.width > image.height


def test_data_check_lists_all_bad_records(tmp_path: Path, records: Path) -> None:
    lines = records.read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([lines[2], "{", "[]", lines[2]]) + "\n")
    result = run("data", "check", bad, "--no-decode")
    assert result.exit_code == 2
    problems = result.stderr.splitlines()
    assert [problem.removeprefix(f"{bad} ")[:6] for problem in problems] == [
        "line 2",
        "line 3",
        "line 4",
    ]


def test_data_show_prints_tokens_and_labels(model: Path, records: Path) -> None:
    result = run("data", "show", records, "--line", 2, "--model", model)
    assert result.exit_code == 0, result.output
    example = list(read_records(records))[1]
    processor = tiny_processor()
    encoded = processor.encode(example, with_target=True)
    assert f"{len(encoded.input_ids)} tokens: {len(example.images)} image(s)" in result.output
    learned = [str(label) for label in encoded.labels if label != -100]
    assert " ".join(learned) in result.output
    assert result.output.count("<image> x 3") == len(example.images)


def test_ask_answers_with_one_line_per_answer(model: Path, records: Path) -> None:
    picture = next((records.parent / "images").iterdir())
    words = ["ask", model, "What is it?", "-i", picture, "--max-new-tokens", 4, "--device", "cpu"]
    first, second = run(*words), run(*words)
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    assert first.stdout.endswith("\n")


def test_generate_then_score(model: Path, records: Path, tmp_path: Path) -> None:
    predictions, scores = tmp_path / "predictions.jsonl", tmp_path / "scores.json"
    made = run(
        *("generate", records, "--model", model, "--out", predictions),
        *("--max-new-tokens", 4, "--batch-size", 2, "--device", "cpu"),
    )
    assert made.exit_code == 0, made.output
    answered = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [a["id"] for a in answered] == [e.id for e in tiny_examples(3)]

    scored = run("score", predictions, "--metrics", "cider,bleu", "--json", scores)
    assert scored.exit_code == 0, scored.output
    assert "cider[coco]" in scored.output
    assert json.loads(scores.read_text())


def test_evaluate_a_file_with_references(model: Path, records: Path, tmp_path: Path) -> None:
    result = run(
        *("evaluate", records, "--model", model, "--out", tmp_path),
        *("--max-new-tokens", 4, "--beams", 1, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "cider[coco]" in result.output
    assert json.loads((tmp_path / "scores.json").read_text())["count"] == 3


def test_doctor_finds_a_processor_of_another_model(model: Path, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_processor(tokens_per_image=5).save_pretrained(tmp_path)
    result = run("doctor", "--model", tmp_path)
    assert result.exit_code == 2
    assert "takes 3 visual tokens per image, its processor makes 5" in result.stdout
    assert "its processor makes" not in run("doctor", "--model", model).stdout


def test_runs_as_a_process() -> None:
    process = run_process("data", "check", "no_folder")
    assert process.returncode == 2
    assert process.stderr.strip() == "polyptych: no_folder does not exist"
