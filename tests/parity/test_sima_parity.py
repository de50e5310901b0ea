"""SIMA against the golden data of its published code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from polyptych.errors import PolyptychError
from polyptych.methods.sima.parity import read_golden, run

CASES = ("a", "b")

# Sums of log-probabilities; the golden data says 1e-5 to 1e-4 where they are long.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden" / "sima"


@pytest.mark.shared_data
@pytest.mark.parametrize("case", CASES)
def test_every_golden_value_is_met(golden_dir: Path, tmp_path: Path, case: str) -> None:
    report = run(golden_dir, case, dump_to=tmp_path / "ours.safetensors", tolerance=TOLERANCE)
    assert report.passed, str(report)
    left_out = {c.name for c in report.comparisons if not c.applies}
    logits = {f"dpo.{m}_{s}_logits" for m in ("policy", "ref") for s in ("chosen", "rejected")}
    assert left_out == logits  # what it starts from
    compared = {c.name for c in report.compared}
    assert load_file(tmp_path / "ours.safetensors").keys() == compared
    tensors = load_file(golden_dir / f"dpo_{case}.safetensors")
    assert {f"dpo.{name}" for name in tensors} <= compared | left_out
    assert len([name for name in compared if name.startswith("dpo.")]) == 75
    assert len([name for name in compared if name.startswith(("critic.", "chair."))]) == 17


def copied(golden_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "golden" / "sima"
    folder.mkdir(parents=True)
    for file in golden_dir.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.shared_data
def test_a_changed_logit_is_noticed(golden_dir: Path, tmp_path: Path) -> None:
    folder = copied(golden_dir, tmp_path)
    file = folder / "dpo_b.safetensors"
    tensors = load_file(file)
    tensors["policy_rejected_logits"][0, 10] *= 2
    save_file(tensors, file)
    failed = {c.name for c in run(folder, "b").comparisons if not c.ok}
    assert {"dpo.policy_rejected_logps_plain", "dpo.plain/sigmoid.losses"} <= failed
    assert {"dpo.grad_policy_rejected_logits_plain", "dpo.released/hinge.margin"} <= failed
    assert not failed & {"dpo.policy_chosen_logps", "dpo.ref_rejected_logps_released"}


@pytest.mark.shared_data
def test_a_changed_verdict_and_count_are_noticed(golden_dir: Path, tmp_path: Path) -> None:
    folder = copied(golden_dir, tmp_path)
    shutil.copyfile(
        golden_dir.parents[1] / "data" / "chair" / "synonyms.txt", folder / "synonyms.txt"
    )
    lines = json.loads((folder / "critic_a.json").read_text())
    lines[0]["verdict"] = "greedy"
    (folder / "critic_a.json").write_text(json.dumps(lines))
    output = json.loads((folder / "chair_a_output.json").read_text())
    output["sentences"][0]["object_idxs"][0] += 1
    (folder / "chair_a_output.json").write_text(json.dumps(output))
    failed = {c.name for c in run(folder, "a").comparisons if not c.ok}
    assert failed == {"critic.verdict", "chair.object_idxs"}


@pytest.mark.shared_data
def test_without_the_synonym_list_chair_is_not_compared(golden_dir: Path, tmp_path: Path) -> None:
    report = run(copied(golden_dir, tmp_path), "a")
    assert report.passed
    reasons = {c.note for c in report.comparisons if c.name.startswith("chair.")}
    assert reasons == {"no synonyms.txt in the folder or in ../../data/chair"}


@pytest.mark.shared_data
def test_an_unknown_case_is_refused(golden_dir: Path) -> None:
    with pytest.raises(PolyptychError, match="no golden case 'z' of SIMA here"):
        read_golden(golden_dir, "z")
