"""Finds what keeps polyptych from working on this machine; behind ``polyptych doctor``.

Every check answers with a `Finding` and none stops the others: a doctor that falls over a broken
installation is of no use.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

DISK_WANTED = 2 * 1024**3
"""Free bytes below which a training run may end with a full disk: a few checkpoints of a model of
some hundred million parameters."""

_TRACED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "accelerate")
_OPTIONAL = ("peft", "trl", "datasets", "tensorboard", "faiss-cpu", "gradio")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what it is, and whether it is a problem."""

    name: str
    value: str
    is_problem: bool = False


def diagnose(model: str | None = None) -> list[Finding]:
    """Look at everything.

    Args:
        model: A model whose parts are compared; None for the bundled default.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("torchvision", _torchvision),
        ("compute", _compute),
        ("disk", _disk),
        ("bundled models", _bundled),
        ("model", lambda: _model(model)),
    ]
    findings = []
    for name, look in checks:
        try:
            findings += list(look())
        except Exception as error:  # whatever is broken here is what the user wants to read
            reason = " ".join(str(error).split()) or type(error).__name__
            findings.append(Finding(name, reason, is_problem=True))
    return findings


def render(findings: list[Finding]) -> str:
    """The findings as a table, and a last line with the verdict."""
    width = max(len(finding.name) for finding in findings)
    lines = [
        f"{'PROBLEM' if finding.is_problem else 'ok':<8} {finding.name:<{width}}  {finding.value}"
        for finding in findings
    ]
    count = sum(finding.is_problem for finding in findings)
    lines.append(f"{count} problem(s)" if count else "polyptych is usable here")
    return "\n".join(lines)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    wanted = "; 3.11 or newer is needed" if old else ""
    yield Finding("python", f"{version} on {platform.platform(terse=True)}{wanted}", old)


def _packages() -> Iterator[Finding]:
    wanted = _required_ranges()
    for package in _TRACED:
        version = _version(package)
        required = wanted.get(package, "")
        if version is None:
            yield Finding(package, f"not installed; needed{required}", is_problem=True)
        elif not _satisfies(version, required):
            yield Finding(package, f"{version}; needed {required}", is_problem=True)
        else:
            yield Finding(package, version)
    present = [f"{name} {version}" for name in _OPTIONAL if (version := _version(name))]
    yield Finding("optional", ", ".join(present) or "none")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _required_ranges() -> dict[str, str]:
    """Package -> version range in polyptych's own metadata; empty where it is not installed."""
    try:
        requirements = metadata.requires("polyptych") or []
    except metadata.PackageNotFoundError:
        return {}
    parts = [re.match(r"([A-Za-z0-9._-]+)([^;]*)(;?)", line) for line in requirements]
    return {part[1].lower(): part[2].strip() for part in parts if part and not part[3]}


def _satisfies(version: str, required: str) -> bool:
    from packaging.specifiers import SpecifierSet  # comes with transformers

    return SpecifierSet(required).contains(version.partition("+")[0], prereleases=True)


def _torchvision() -> Iterator[Finding]:
    """A torchvision built for another torch breaks transformers' image classes; none is fine."""
    version = _version("torchvision")
    if version is None:
        yield Finding("torchvision", "not installed (not needed)")
        return
    # In a process of its own: a failed import leaves half-registered operators behind.
    attempt = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    if attempt.returncode == 0:
        yield Finding("torchvision", version)
        return
    last = (attempt.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
    advice = "it breaks transformers' image classes; remove it: pip uninstall torchvision"
    yield Finding("torchvision", f"{version}: {last}; {advice}", is_problem=True)


def _compute() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("threads", f"{torch.get_num_threads()} for torch, {cores} core(s)")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Finding("gpu", f"{name}, {_size(free)} of {_size(total)} free")
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "Apple Metal (mps)")
    else:
        yield Finding("gpu", "none that this torch can use; computing on the CPU")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free
    short = free < DISK_WANTED
    wanted = f"; at least {_size(DISK_WANTED)} are wanted for training" if short else ""
    yield Finding("disk", f"{_size(free)} free in {Path.cwd()}{wanted}", is_problem=short)


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"


def _bundled() -> Iterator[Finding]:
    from polyptych.models.checkpoint import DEFAULT_MODEL, bundled_models

    names = bundled_models()
    missing = DEFAULT_MODEL not in names
    value = ", ".join(names) or "none"
    if missing:
        value += f"; the default one, {DEFAULT_MODEL}, is missing from this installation"
    yield Finding("bundled models", value, is_problem=missing)


def _model(name: str | None) -> Iterator[Finding]:
    from polyptych.models.checkpoint import load_model

    model, processor = load_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Finding("model", f"{model.config.name_or_path}: {count:,} parameters")
    yield from compare_parts(model.config, processor)


def compare_parts(config: Any, processor: Any) -> Iterator[Finding]:
    """Whether a processor makes what a model takes: ids, tokens per image, image size, vocabulary.

    Args:
        config: The config of any of our models.
        processor: The processor that was saved beside the model.
    """
    pairs = [
        ("image token id", config.image_token_id, processor.image_token_id),
        ("tokens per image", config.tokens_per_image, processor.tokens_per_image),
        ("image size", config.vision_config.image_size, processor.image_size),
    ]
    for name, of_model, of_processor in pairs:
        same = of_model == of_processor
        value = f"{of_model}" if same else f"model {of_model}, processor {of_processor}"
        yield Finding(name, value, is_problem=not same)
    words, rows = len(processor.tokenizer), config.text_config.vocab_size
    yield Finding("vocabulary", f"{words} words, {rows} embeddings", is_problem=words > rows)
