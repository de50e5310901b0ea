"""SAM's released form against the golden data of the published code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyptych.errors import PolyptychError
from polyptych.methods.sam.conversion import convert_checkpoint
from polyptych.methods.sam.parity import INPUTS, read_golden, run
from polyptych.methods.sam.released import released_batch
from polyptych.models.checkpoint import load_model

# Fused attention and batching over images sum in another order than the published code; nothing
# else differs, and ids, masks and ranks have to be equal.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden" / "sam"


@pytest.mark.shared_data
@pytest.mark.parametrize("case", ["a", "b"])
def test_every_golden_tensor_is_met(golden_dir: Path, tmp_path: Path, case: str) -> None:
    report = run(golden_dir, case, dump_to=tmp_path / "ours.safetensors", tolerance=TOLERANCE)
    assert report.passed, str(report)
    golden = load_file(golden_dir / f"{case}_stages.safetensors")
    names = {comparison.name for comparison in report.comparisons}
    assert golden.keys() <= names
    assert {c.name for c in report.comparisons} - {c.name for c in report.compared} == set(INPUTS)

    ours = load_file(tmp_path / "ours.safetensors")
    assert {c.name for c in report.compared} <= ours.keys()
    torch.testing.assert_close(ours["fwd.llm.logits"], golden["fwd.llm.logits"], atol=2e-5, rtol=0)


@pytest.mark.shared_data
def test_a_changed_weight_is_noticed(golden_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(golden_dir, tmp_path / "golden", copy_function=shutil.copyfile)
    (tmp_path / "golden").chmod(0o755)
    file = tmp_path / "golden" / "a_state_dict.safetensors"
    weights = load_file(file)
    weights["Qformer.bert.encoder.one_2_muliple.0.bias"][3] += 0.5
    file.unlink()
    save_file(weights, file)
    report = run(tmp_path / "golden", "a")
    assert not report.passed
    failed = {c.name for c in report.comparisons if not c.ok}
    assert {"fwd.guid.q_to_w.out", "fwd.llm.logits", "fwd.llm.loss"} <= failed
    # What does not pass through that layer still agrees.
    assert not failed & {"fwd.vision.ln", "fwd.guid.q_to_w.in", "zero_init.loss", "single4d.loss"}


@pytest.mark.shared_data
@pytest.mark.parametrize("case", ["a", "b"])
def test_everyday_generate_finds_the_golden_answers(golden_dir: Path, case: str) -> None:
    """transformers' own beam search, which reads the prompt once here, agrees on these prompts."""
    golden = read_golden(golden_dir, case)
    prompts = golden.config["text_input"]
    batch = released_batch(golden.asking, prompts, golden.images, golden.image_counts)
    for name, search in golden.config["generation"].items():
        settings = dict(search["args"])
        ids = golden.model.generate(
            **batch,
            do_sample=False,
            num_beams=settings["num_beams"],
            max_new_tokens=settings["max_length"] - 1,
            min_new_tokens=settings["min_length"] - 1,
            repetition_penalty=settings["repetition_penalty"],
            length_penalty=float(settings["length_penalty"]),
            eos_token_id=2,
            pad_token_id=0,
        )
        generated = ids[:, batch["input_ids"].shape[1] :]
        assert torch.equal(generated, golden.values[f"{name}.gen.sequences"][:, 1:]), name


@pytest.mark.shared_data
@pytest.mark.parametrize("case", ["a", "b"])
def test_a_converted_folder_gives_the_golden_rows(
    golden_dir: Path, tmp_path: Path, case: str
) -> None:
    """Tokenizers, layout and weights survive saving; case b has words outside the vocabulary."""
    golden = read_golden(golden_dir, case)
    weights = golden_dir / f"{case}_state_dict.safetensors"
    convert_checkpoint(
        tmp_path / "sam", parts=[weights], config=golden.model.config, processor=golden.asking
    )
    model, processor = load_model(tmp_path / "sam")
    prompts = golden.config["text_input"]
    batch = released_batch(processor, prompts, golden.images, golden.image_counts)
    visual = processor.tokens_per_image * golden.config["num_images"]
    assert torch.equal(batch["input_ids"][:, visual:], golden.values["greedy.llm.text_input_ids"])
    with torch.no_grad():
        logits = model(**batch).logits
    torch.testing.assert_close(logits, golden.values["greedy.llm.logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.shared_data
def test_an_unknown_case_is_refused(golden_dir: Path) -> None:
    with pytest.raises(PolyptychError, match="no golden case 'z'"):
        run(golden_dir, "z")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match="no golden case 'a' of SAM here"):
        run(tmp_path, "a")
