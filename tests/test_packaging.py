"""What is installed: metadata, bundled files, versions, and the set-up that a checkout offers."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import polyptych

PACKAGE = Path(polyptych.__file__).parent
ROOT = PACKAGE.parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the package is installed without its checkout"
)

BUNDLE_LIMIT = 30 * 10**6
"""Bytes of all bundled models together."""


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_names(lines: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines}  # type: ignore[index]


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "exact, no local suffix"
    return dict(pin.lower().split("==") for pin in pins)


def test_every_requirement_has_a_tested_version(project, constraints) -> None:
    from packaging.requirements import Requirement

    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *(x for e in extras.values() for x in e)]
    for requirement in map(Requirement, lines):
        if requirement.name == "polyptych":
            continue
        assert requirement.name.lower() in constraints, requirement.name
        assert requirement.specifier.contains(constraints[requirement.name.lower()]), requirement


def test_torchvision_and_cuda_packages_are_not_pinned(constraints) -> None:
    assert not [n for n in constraints if n.startswith("nvidia") or n in ("torchvision", "triton")]


def test_users_get_the_ordinary_torch(project) -> None:
    """Any recent torch: a user's GPU build must satisfy the metadata."""
    (torch,) = [x for x in project["project"]["dependencies"] if re.match(r"torch\b", x)]
    assert "==" not in torch
    assert "+cpu" not in torch


def test_version_has_one_home(project) -> None:
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/polyptych/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", polyptych.__version__)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {polyptych.__version__}\n" in citation


def test_the_command_points_at_a_function(project) -> None:
    from polyptych import cli

    assert project["project"]["scripts"] == {"polyptych": "polyptych.cli:main"}
    assert callable(cli.main)


def test_licence_files_are_there_and_whole(project) -> None:
    for name in project["project"]["license-files"]:
        assert (ROOT / name).is_file()
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for paper in ("2408.12867", "2308.04152", "2401.03149", "2405.15973"):
        assert paper in notice


def test_bundled_models_are_small_half_precision_and_whole() -> None:
    from safetensors import safe_open

    from polyptych.models.checkpoint import ASSETS, DEFAULT_MODEL, bundled_models

    assert DEFAULT_MODEL in bundled_models()
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) < BUNDLE_LIMIT
    for weights in ASSETS.rglob("*.safetensors"):
        with safe_open(weights, "pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64", "I32", "BOOL"}, (weights, kinds)


def test_all_package_data_is_tracked_or_ignored_on_purpose() -> None:
    """A file that git ignores is left out of the wheel without a word."""
    process = subprocess.run(
        ["git", "status", "--porcelain", "--ignored", "src"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        pytest.skip("not a git checkout")
    ignored = [line[3:] for line in process.stdout.splitlines() if line.startswith("!!")]
    assert not [path for path in ignored if "__pycache__" not in path and ".partial" not in path]


@pytest.mark.parametrize("target", ["setup", "demo", "test", "check"])
def test_make_knows_the_target(target: str) -> None:
    process = subprocess.run(
        ["make", "--dry-run", target, "VENV=no_such_environment"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "-m venv" in process.stdout, "sets up what it uses"
    assert "--constraint constraints.txt --editable '.[dev]'" in process.stdout


def test_setup_refuses_an_old_python_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    process = subprocess.run(
        ["make", "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert "Python 3.11 or newer is needed" in process.stderr


def test_ci_calls_what_the_readme_names() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    text = script.read_text(encoding="utf-8")
    assert "make test" in text
    assert "make check" in text
