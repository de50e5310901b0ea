"""``polyptych evaluate``, ``score``, ``compare`` and ``tasks`` as users type them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from polyptych import cli
from polyptych.evaluation.tasks.catalog import BENCHMARKS
from polyptych.evaluation.tasks.listing import listed

ANSWERS = """
def no(prompt, images):
    return "no"

def mixed(prompt, images):
    return ("yes", "no", "A", "a red ball")[len(prompt) % 4]

def judge(prompt, images):
    return "Grade: 0.5"
"""


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="polyptych")


def done(*words: str | Path) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has a module with answers."""
    (tmp_path / "toy_answers.py").write_text(ANSWERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("pope", "vqav2", "mm_vet"):
        done("tasks", "make-sample", name, folder)
    return folder


def scores(folder: Path) -> dict[str, float]:
    record = json.loads((folder / "scores.json").read_text())
    return {score["name"]: score["value"] for score in record["scores"]}


def test_any_mix_of_tasks_gives_a_folder_each_and_one_page(data: Path, tmp_path: Path) -> None:
    tasks = ["pope", "vqav2", "mm_vet", "storybook/existence"]
    out = tmp_path / "run"
    output = done(
        *("evaluate", "toy_answers:no", *tasks, "--data", data, "--out", out, "--count", 6),
        *("--judge", "toy_answers:judge"),
    )
    names = ["mm_vet", "pope", "storybook-existence", "vqav2"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == names
    assert scores(out / "pope")["yes_ratio[reference]"] == 0
    assert scores(out / "mm_vet")["score[fixed]"] == 0.5
    assert (out / "mm_vet" / "judge.jsonl").exists()
    assert scores(out / "vqav2") == {}
    sent = json.loads((out / "vqav2" / "submission.json").read_text())
    assert {"question_id", "answer"} == sent[0].keys()
    assert f"for its server: {out / 'vqav2' / 'submission.json'}" in output
    assert "yes_ratio[reference]" in output
    page = (out / "report.html").read_text()
    for title in ("POPE on COCO", "VQAv2 test-dev", "MM-Vet"):
        assert title in page
    lines = [json.loads(line) for line in (out / "pope" / "predictions.jsonl").open()]
    assert lines[0].keys() >= {"id", "prediction", "prompt", "images", "seconds", "settings"}
    assert lines[0]["images"][0].startswith(str(data))

    before = (out / "pope" / "predictions.jsonl").stat().st_mtime_ns
    done(
        *("evaluate", "toy_answers:no", *tasks, "--data", data, "--out", out, "--count", 6),
        *("--judge", "toy_answers:judge"),
    )
    assert (out / "pope" / "predictions.jsonl").stat().st_mtime_ns == before, "nothing asked again"


def test_one_task_is_written_into_the_folder_itself(data: Path, tmp_path: Path) -> None:
    done("evaluate", "pope", "-m", "toy_answers:no", "--data", data, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "scores.json").exists()
    done("evaluate", "-m", "toy_answers:no", "storybook/existence", "--count", 4)
    assert (tmp_path / "runs" / "existence" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["pope"], "pope needs --data DIR"),
        (["demon"], "demon needs --data DIR"),
        (["toy_answers:no", "pope", "mme"], "2 tasks need --out DIR"),
        (["toy_answers:no", "pope", "pope", "--out", "x"], "one folder: pope"),
        (["pope", "--data", "nowhere"], "no folder nowhere/pope"),
        (["pape", "--data", "nowhere"], "no task, file or folder 'pape'"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_loaded(words: list[str], problem: str) -> None:
    result = run("evaluate", *words)
    assert result.exit_code == 2
    assert problem in result.output
    assert len(result.output.splitlines()) == 1


def test_a_file_of_answers_is_scored_as_far_as_it_goes(data: Path, tmp_path: Path) -> None:
    done("evaluate", "toy_answers:mixed", "pope", "--data", data, "--out", "run")
    path = tmp_path / "run" / "predictions.jsonl"
    whole = run("score", path, "pope", "--data", data, "--json", "s.json")
    assert whole.exit_code == 0, whole.output
    values = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert values == pytest.approx(scores(tmp_path / "run"))

    lines = path.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    unknown = lines[2].replace('"id": "', '"id": "x')
    broken.write_text("\n".join([*lines[2:], unknown, '{"id": "']))
    part = run("score", broken, "pope", "--data", data)
    assert part.exit_code == 1
    total = len(lines)
    assert f"scored {total - 2} of {total} examples" in part.output
    assert f"broken.jsonl line {total - 1} (id 'x" in part.output
    assert "a half-written last line" in part.output
    assert f"n={total - 2}" in part.output


def test_answers_that_need_a_judge_are_scored_with_one(data: Path, tmp_path: Path) -> None:
    done("evaluate", "toy_answers:no", "mm_vet", "--data", data, "--out", "run")
    words = ["score", tmp_path / "run" / "predictions.jsonl", "mm_vet", "--data", data]
    assert "name a --judge" in run(*words).output
    assert "score[fixed]" in done(*words, "--judge", "toy_answers:judge")
    assert (tmp_path / "run" / "judge.jsonl").exists()


def test_runs_are_compared_and_small_differences_are_warned_of(data: Path, tmp_path: Path) -> None:
    for name in ("no", "mixed"):
        done("evaluate", f"toy_answers:{name}", "pope", "--data", data, "--out", name)
    output = done("compare", "no", "mixed", "--out", "both.html")
    line = next(line for line in output.splitlines() if "accuracy[reference]" in line)
    assert "p=" in line
    output = done("compare", "no", "no")
    assert output.count("inside the interval: no difference shown") == 12
    page = (tmp_path / "both.html").read_text()
    assert "toy_answers:mixed" in page
    assert run("compare", "no").exit_code == 2


def test_no_submission_is_written_of_too_few_answers(data: Path) -> None:
    predictions = Path("p.jsonl")
    predictions.write_text('{"question_id": 1, "text": "a"}\n')
    result = run("tasks", "submission", "vqav2", predictions, "out.json", "--data", data)
    assert result.exit_code == 2
    assert not Path("out.json").exists()


def test_the_list_of_tasks_tells_all_there_is(data: Path) -> None:
    table = done("tasks")
    for name, benchmark in BENCHMARKS.items():
        (line,) = [line for line in table.splitlines() if line.split()[0] == name]
        assert benchmark.metric in line
        assert benchmark.scoring in line
    for task in listed():
        shown = done("tasks", "show", task.name)
        assert task.license in shown
        assert task.source in shown
        for file in task.files:
            assert file in shown
    assert "coco_pope_random.json" in done("tasks", "show", "pope")
    assert run("tasks", "show", "pape").exit_code == 2
    assert run("tasks", "make-sample", "pape", data).exit_code == 2


def test_functions_and_scores_need_no_torch(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom polyptych import cli\n"
        "try:\n    cli.app(sys.argv[1:], prog_name='polyptych')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    words = ["evaluate", "toy_answers:no", "pope", "--data", str(data), "--out", "run"]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=tmp_path)
