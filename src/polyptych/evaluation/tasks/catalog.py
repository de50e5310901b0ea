"""What benchmarks of single images exist: metric, flavors, files, licence, and who scores.

task = load_task("pope", "DATA")     # reads DATA/pope
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polyptych.errors import PolyptychError
from polyptych.evaluation.scoring import vqa_accuracy, yes_no
from polyptych.evaluation.task import Task
from polyptych.evaluation.tasks import mmbench, mme, pope, scienceqa, seed, vqa

Scoring = Literal["local", "server"]
"""Whether the truth is public, or the benchmark's server keeps it."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One row of the table."""

    name: str
    """Also of its folder, unless :attr:`folder` says otherwise."""
    title: str
    metric: str
    """The number that papers report."""
    flavors: tuple[str, ...]
    files: tuple[str, ...]
    """What is looked for in its folder; images as a folder with a slash at its end."""
    license: str
    """Of questions and answers; images have their own."""
    source: str
    """Where its files are."""
    scoring: Scoring
    """Of the split that the files hold; a file of answers, where one has it, is always used."""
    make: Callable[[Path], Task]
    """From its folder to the task."""
    folder: str = ""
    """Below the folder of all data; empty for its name."""
    sample: Callable[[Path], None] | None = None
    """Draws a small set in the published layout into its folder; None where there is none yet."""

    def task(self, data: str | Path) -> Task:
        """The task over its files in ``data``.

        Raises:
            PolyptychError: If its folder is missing.
        """
        root = Path(data, self.folder or self.name)
        if not root.is_dir():
            raise PolyptychError(f"{self.name}: no folder {root}; it should hold {self.files[0]}")
        return self.make(root)


_LLAVA = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"
_UNSTATED = "see the source"


def _vqa(name: str, title: str, terms: str, source: str, scoring: Scoring) -> Benchmark:
    layout = vqa.SETS[name]
    return Benchmark(
        name,
        title,
        "vqa_accuracy",
        vqa_accuracy.FLAVORS,
        (layout.questions, f"{layout.images}/", *layout.answers),
        terms,
        source,
        scoring,
        lambda root: vqa.vqa_task(name, root),
    )


def _scienceqa(form: scienceqa.Form, title: str) -> Benchmark:
    return Benchmark(
        form,
        title,
        "accuracy",
        (scienceqa.RELEASED[form], "fixed"),
        (scienceqa.FILES[form], "problems.json", "images/test/"),
        "CC BY-NC-SA 4.0",
        "https://scienceqa.github.io",
        "local",
        lambda root: scienceqa.scienceqa_task(form, root),
        folder="scienceqa",
    )


def _mmbench(name: mmbench.Name, title: str) -> Benchmark:
    return Benchmark(
        name,
        title,
        "accuracy",
        ("fixed",),
        (mmbench.FILES[name],),
        _UNSTATED,
        "https://github.com/open-compass/MMBench",
        "server",
        lambda root: mmbench.mmbench_task(name, root),
        folder="mmbench",
    )


BENCHMARKS: dict[str, Benchmark] = {
    found.name: found
    for found in (
        _vqa("vqav2", "VQAv2 test-dev", "CC BY 4.0", "https://visualqa.org", "server"),
        _vqa("okvqa", "OK-VQA validation", _UNSTATED, "https://okvqa.allenai.org", "local"),
        _vqa("vizwiz", "VizWiz VQA test", "CC BY 4.0", "https://vizwiz.org", "server"),
        _vqa("textvqa", "TextVQA validation", "CC BY 4.0", "https://textvqa.org", "local"),
        _scienceqa("scienceqa_img", "ScienceQA, questions with an image"),
        _scienceqa("scienceqa", "ScienceQA, for fine-tuned models"),
        Benchmark(
            "pope",
            "POPE on COCO",
            "mean_f1",
            yes_no.FLAVORS,
            (*(f"coco/coco_pope_{name}.json" for name in pope.CATEGORIES), "val2014/"),
            "MIT",
            "https://github.com/AoiDragon/POPE",
            "local",
            pope.pope_task,
        ),
        Benchmark(
            "mme",
            "MME",
            "perception",
            ("official",),
            ("llava_mme.jsonl", f"{mme.IMAGES}/"),
            "academic research only, on request",
            _LLAVA,
            "local",
            mme.mme_task,
        ),
        Benchmark(
            "seed",
            "SEED-Bench",
            "accuracy",
            seed.FLAVORS,
            ("llava-seed-bench.jsonl", "SEED-Bench.json", "SEED-Bench-image/"),
            "CC BY-NC 4.0",
            "https://github.com/AILab-CVC/SEED-Bench",
            "local",
            seed.seed_task,
        ),
        _mmbench("mmbench", "MMBench dev"),
        _mmbench("mmbench_cn", "MMBench-CN dev"),
    )
}
"""Every benchmark by its name."""


def load_task(name: str, data: str | Path) -> Task:
    """The task of a benchmark's name.

    Args:
        name: Key of :data:`BENCHMARKS`.
        data: Folder that holds the benchmarks' folders.

    Raises:
        PolyptychError: For an unknown name, or if its folder is missing.
    """
    if name not in BENCHMARKS:
        raise PolyptychError(f"no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name].task(data)
