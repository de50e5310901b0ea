"""A trained run becomes a bundled model: half precision, its processor, and where it came from.

Command: ``python -m polyptych.reproduce.bundle RUN_FOLDER NAME``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from polyptych.files import write_aside
from polyptych.models.checkpoint import ASSETS, load_model


def bundle(run: Path, name: str) -> Path:
    """Store ``run/final`` as ``assets/NAME`` in float16, with ``origin.json`` beside the weights.

    Args:
        run: Folder of a run or a base of :mod:`polyptych.reproduce.sam.main`.
        name: Name under which ``load_model`` finds it.

    Returns:
        The model's folder.
    """
    model, processor = load_model(run / "final")
    folder = ASSETS / name
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    told = run / "record.json" if (run / "record.json").exists() else run / "result.json"
    record = json.loads(told.read_text(encoding="utf-8"))
    kept = ("name", "variant", "seed", "learning_rate", "steps", "condition", "parameters")
    known = {key: record[key] for key in kept if key in record}
    origin = {"made by": "polyptych reproduce sam", **known}
    with write_aside(folder / "origin.json") as file:
        json.dump(origin, file, indent=1)
    return folder


if __name__ == "__main__":
    print(bundle(Path(sys.argv[1]), sys.argv[2]))
