"""CaMML's claim in the small: retrieved examples help, at a cost that does not grow with them.

A small LLaVA that names what it sees and reads for an answer is asked for facts about persons and
things that it has never met; the facts stand in a datastore only. All variants start from this
base, are trained on equally many questions about other persons and things, and are then asked:

``none``          the question alone
``random``        CaMML with entries of the datastore that chance has drawn
``concatenated``  the retrieved entries in the prompt, pictures and words
``camml``         the retrieved entries as 2Q context tokens (arXiv 2401.03149)

with 1, 3, 5 and 10 shots; with the one entry that holds the answer (``oracle``); and against a
datastore whose facts were all edited after training (``edited``). Accuracy, the tokens that the
language model reads, and the time of an answer are recorded. Stages: draw facts and questions ->
index the facts, retrieve -> train the base -> choose each variant's learning rate on validation
questions over one grid -> all seeds -> other numbers of context tokens. Every run has a folder,
resumes where it was killed, and is appended to the results file when it ends.

Command: ``polyptych reproduce camml --out DIR [--quick]``, and then, with ``--real DATA_DIR``,
real questions and photos (:mod:`polyptych.reproduce.camml.real`).
"""

from __future__ import annotations

from pathlib import Path

from polyptych.reproduce.camml.base import close_up_encoder
from polyptych.reproduce.camml.real import main as main_real
from polyptych.reproduce.camml.stages import run_study
from polyptych.reproduce.camml.study import CammlSettings, CammlWorkshop
from polyptych.reproduce.small_models import ENCODER


def main(
    out: Path,
    *,
    quick: bool = False,
    results: Path | None = None,
    encoder: Path = ENCODER,
    workers: int = 2,
    settings: CammlSettings | None = None,
    real: Path | None = None,
) -> Path:
    """Run whatever is not done yet; returns the results file.

    Args:
        out: Working folder: data, features, base, runs.
        quick: One seed, no learning rate grid, no sweep.
        results: Results file; default ``out/camml.json``.
        encoder: Folder of the frozen vision encoder.
        workers: Runs at the same time, one thread each.
        settings: Sizes; default: the published study's.
        real: Folder of real data sets: the comparison over these instead.
    """
    if real is not None:
        return main_real(Path(out) / "real", Path(real), quick=quick, workers=workers)
    settings = settings or CammlSettings()
    if quick:
        settings = settings.quick()
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    shop = CammlWorkshop(root, settings, close_up_encoder(Path(encoder), root / "encoder"))
    return run_study(shop, Path(results or root / "camml.json"), workers)
