"""ImageBind's towers, preprocessing and tokenizer against the published code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polyptych.errors import PolyptychError
from polyptych.retrieval.clip_tokenizer import ClipTokenizer, read_merges
from polyptych.retrieval.imagebind import (
    ImageBind,
    ImageBindConfig,
    build_imagebind,
    convert_published,
)
from polyptych.retrieval.imagebind_parity import NOT_COMPARED, _our_config, run

# Fused attention sums in another order: up to 4e-7 on unit vectors, up to 8e-6 where these are
# multiplied by the logit scale of 18 or 100.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden" / "imagebind"


@pytest.mark.shared_data
def test_every_golden_tensor_is_met(golden_dir: Path, tmp_path: Path) -> None:
    report = run(golden_dir, "a", dump_to=tmp_path / "ours.safetensors", tolerance=TOLERANCE)
    assert report.passed, str(report)
    golden = load_file(golden_dir / "a" / "outputs.safetensors")
    assert {c.name for c in report.comparisons} == golden.keys()
    assert {c.name for c in report.comparisons if not c.applies} == NOT_COMPARED.keys()
    ours = load_file(tmp_path / "ours.safetensors")
    for name in ("image0.pixel_values", "image1.pixel_values", "text.pool_index"):
        assert torch.equal(ours[name], golden[name]), name


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("modality_heads.text.proj.1.weight"), "1 of 74 tensors missing"),
        (
            lambda w: w.update({"modality_trunks.vision.blocks.9.x": torch.ones(1)}),
            "1 of 74 tensors unknown",
        ),
        (lambda w: w.update({"lm_head.weight": torch.ones(1)}), "unknown key lm_head.weight"),
        (lambda w: w["modality_preprocessors.text.mask"].zero_(), "not the causal mask"),
        (lambda w: w.update({"modality_heads.vision.0.bias": torch.ones(3)}), "another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(golden_dir: Path, change, message: str) -> None:
    weights = load_file(golden_dir / "a" / "state_dict.safetensors")
    config = _our_config(json.loads((golden_dir / "a" / "config.json").read_text()))
    change(weights)
    with pytest.raises(PolyptychError, match=message):
        build_imagebind(weights, config, source="file.pth")


def test_full_size_keys_and_elements_of_the_published_file() -> None:
    with torch.device("meta"):
        model = ImageBind(ImageBindConfig())
    assert sum(p.numel() for p in model.image.parameters()) == 632_829_440
    assert sum(p.numel() for p in model.text.parameters()) == 354_032_641
    assert len(model.state_dict()) == 686


def test_other_modalities_are_left_out() -> None:
    weights = {
        "modality_trunks.audio.blocks.0.attn.bias_k": torch.ones(1, 1, 4),
        "modality_heads.vision.2.weight": torch.ones(2, 2),
    }
    assert convert_published(weights, source="file.pth").keys() == {"image.projection.weight"}


@pytest.mark.shared_data
def test_tokenizer_on_the_published_vocabulary(golden_dir: Path) -> None:
    vocabulary = os.environ.get("POLYPTYCH_CLIP_VOCABULARY")
    if not vocabulary:
        pytest.skip("POLYPTYCH_CLIP_VOCABULARY names no bpe_simple_vocab_16e6.txt.gz")
    tokenizer = ClipTokenizer(read_merges(Path(vocabulary)))
    golden = json.loads((golden_dir / "a" / "tokenizer_samples.json").read_text())
    for sample in golden["samples"]:
        row = tokenizer.row(sample["text"], golden["context_length"], keep_end=False)
        assert row == sample["ids"] + [0] * (77 - len(sample["ids"])), sample["text"]
        if "ids_end_restored" in sample:
            kept = tokenizer.row(sample["text"], golden["context_length"], keep_end=True)
            assert kept == sample["ids_end_restored"], sample["text"]
