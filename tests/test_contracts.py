"""What holds over all source files: import rules, light imports, safe loading, no network."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import polyptych
from polyptych import cli

PACKAGE = Path(polyptych.__file__).parent
ROOT = PACKAGE.parents[1]
SOURCES = sorted(PACKAGE.rglob("*.py"))
BUDGET = 450
"""Lines above which a file should be asked whether it still holds one idea."""

in_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the package is installed without its checkout"
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


# Imports


@in_checkout
def test_imports_go_one_way() -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "2 kept, 0 broken" in process.stdout


def test_the_spine_never_names_a_method() -> None:
    """Not even in a string: what a method needs of the spine is a seam without its name."""
    methods = [path.name for path in (PACKAGE / "methods").iterdir() if path.is_dir()]
    above = {"methods", "adapters", "recipes", "reproduce", "serving", "testing", "cli", "doctor"}
    found = []
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in above:
            continue
        if path.parent == PACKAGE and path.stem in ("__init__", "_registration"):
            continue
        text = path.read_text(encoding="utf-8")
        found += [(name_of(path), m) for m in methods if f"methods.{m}" in _code(text)]
    assert not found


def _code(text: str) -> str:
    """The file without docstrings and comments, which may point readers anywhere."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_imports(path: Path) -> None:
    importlib.import_module(name_of(path))


OPTIONAL = ("peft", "trl", "datasets", "tensorboard", "rouge", "faiss", "gradio", "torchvision")


SUBCLASSES_AN_EXTRA = {"polyptych.training.preference_trainer"}
"""Imported inside the one function that tunes: it is TRL's trainer with a few methods exchanged."""


def test_every_module_imports_with_the_required_packages_only() -> None:
    """One process in which the optional packages and the development tools cannot be imported."""
    hidden = [*OPTIONAL, "pytest", "hypothesis", "beartype", "scipy"]
    modules = [name_of(path) for path in SOURCES if name_of(path) not in SUBCLASSES_AN_EXTRA]
    code = (
        f"import sys, importlib\nfor name in {hidden}: sys.modules[name] = None\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "module",
    [
        "polyptych.schema",
        "polyptych.errors",
        "polyptych.files",
        "polyptych.data.records",
        "polyptych.data.inspection",
        "polyptych.data.checking",
        "polyptych.storybook.generation",
        "polyptych.evaluation.scoring_file",
    ],
)
def test_data_pictures_and_scores_need_no_torch(module: str) -> None:
    """Drawing, checking and scoring run in many short processes; torch would cost seconds each."""
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {module}\n"
            "print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))",
        ],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "[]"


# Safety


def test_no_code_from_a_model_folder_is_run() -> None:
    for path in SOURCES:
        for function, call in calls(path):
            assert keyword(call, "trust_remote_code") in (None, "False"), (name_of(path), function)


def test_pickles_are_loaded_as_weights_only() -> None:
    for path in SOURCES:
        for function, call in calls(path):
            if function == "torch.load":
                assert keyword(call, "weights_only") == "True", name_of(path)
            if name_of(path) != "polyptych.data.cluster":  # between our own processes, never a file
                assert function not in ("pickle.load", "pickle.loads"), name_of(path)


def test_nothing_names_a_package_registry_or_this_machine() -> None:
    hosts = [
        ".".join(parts)
        for parts in (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"))
    ]
    for path in [*SOURCES, *(ROOT / name for name in ("Makefile", "constraints.txt", ".ci/run"))]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not [host for host in hosts if host in text], path
            assert "/".join(("", "work", "")) not in text, path


def test_torchvision_is_never_imported() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert not [n for n in names if n.split(".")[0] == "torchvision"], name_of(path)


# Size


def test_files_hold_one_idea() -> None:
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > BUDGET:
            warnings.warn(f"{name_of(path)} has {lines} lines, more than {BUDGET}", stacklevel=1)
        assert lines <= 2 * BUDGET, f"{name_of(path)} has {lines} lines"


# Documentation


@in_checkout
def test_papers_name_code_that_exists() -> None:
    """``file.py::name`` and ``file.py::Class.method``; folders and plain files too."""
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))(?:::([\w.]+))?`", text)
    assert len(named) > 20
    for file, name in named:
        path = PACKAGE / file
        assert path.exists(), file
        if name:
            value: object = importlib.import_module(name_of(path))
            for part in name.split("."):
                value = getattr(value, part)


@in_checkout
def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


@in_checkout
def test_commands_in_documents_exist() -> None:
    """Every ``polyptych ...`` line of a code block names a command, with options it has."""
    group = typer.main.get_command(cli.app)
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for line in re.findall(r"^ *polyptych (.+)$", document.read_text("utf-8"), re.MULTILINE):
            words = shlex.split(line.rstrip("\\"), comments=True)
            command: Any = group
            while words and hasattr(command, "commands"):
                assert words[0] in command.commands, f"{document.name}: {line}"
                command = command.commands[words.pop(0)]
            known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
            used = {word.partition("=")[0] for word in words if word.startswith("-")}
            assert used <= known | {"--help"}, f"{document.name}: {line}"
