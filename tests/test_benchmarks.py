"""The benchmarks compare equals: every variant computes the same numbers. Nothing is timed here."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polyptych.models import onednn
from polyptych.models.onednn import OneDnnLinear, use_onednn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMAGES = (1, 3)


def load(name: str) -> ModuleType:
    """A benchmark file as a module; it stands in no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    load("published_sam")
    module = load("sam")
    yield module
    for name in ("sam", "published_sam"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def sizes(bench):
    """The small preset, smaller; the last of four Q-Former layers has no cross-attention."""
    return bench.Sizes(
        vision={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 28,
            "patch_size": 7,
        },
        qformer={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "vocab_size": 90,
        },
        language={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 90,
            "max_position_embeddings": 256,
        },
        num_query_tokens=8,
        prompt_tokens=9,
        target_tokens=4,
        new_tokens=12,
        num_beams=5,
    )


@pytest.fixture(scope="module")
def variants(bench, sizes):
    return bench.build_variants(sizes)


def gradients(variant) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in variant.model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("images", IMAGES)
def test_every_variant_has_the_published_visual_tokens(bench, sizes, variants, images):
    inputs = bench.make_inputs(sizes, images, "cpu", torch.float32)
    expected = variants["published"].vision_path(inputs)
    assert expected.shape == (images * sizes.num_query_tokens, 48)
    assert expected.std() > 0.01
    for name, variant in variants.items():
        torch.testing.assert_close(
            variant.vision_path(inputs), expected, atol=1e-5, rtol=0, msg=name
        )


@pytest.mark.parametrize("images", IMAGES)
def test_every_variant_has_the_published_loss_and_gradients(bench, sizes, variants, images):
    inputs = bench.make_inputs(sizes, images, "cpu", torch.float32)
    published = variants["published"]
    loss = published.training_step(inputs)
    expected = gradients(published)
    assert len(expected) == 6  # what the published setting trains
    assert expected["connector.guidance.w_to_query.weight"].abs().max() > 1e-4
    for name, variant in variants.items():
        torch.testing.assert_close(variant.training_step(inputs), loss, atol=1e-5, rtol=0, msg=name)
        for parameter, gradient in gradients(variant).items():
            torch.testing.assert_close(
                gradient, expected[parameter], atol=1e-6, rtol=1e-4, msg=f"{name}: {parameter}"
            )
        frozen = [p for p in variant.model.parameters() if not p.requires_grad]
        assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("images", IMAGES)
def test_every_variant_generates_the_published_ids(bench, sizes, variants, images):
    inputs = bench.make_inputs(sizes, images, "cpu", torch.float32)
    expected = variants["published"].generation(inputs)
    assert expected.shape == (1, sizes.new_tokens)
    assert len(expected.unique()) > 1
    for name, variant in variants.items():
        assert torch.equal(variant.generation(inputs), expected), name


def test_the_transcription_encodes_images_one_by_one(bench, sizes, variants, monkeypatch):
    import published_sam

    seen = []
    encode = published_sam._encode_image
    monkeypatch.setattr(
        published_sam,
        "_encode_image",
        lambda v, pixels: (seen.append(len(pixels)), encode(v, pixels))[1],
    )
    variants["published"].vision_path(bench.make_inputs(sizes, 3, "cpu", torch.float32))
    assert seen == [1, 1, 1]


def test_table_names_every_variant_and_is_written_between_the_markers(bench, tmp_path):
    rows = [
        {"work": work, "images": 2, "threads": 1, "variant": name, "cpu_ms": ms, "wall_ms": ms}
        for work in bench.WORK
        for name, ms in (("published", 30.0), ("polyptych", 20.0))
    ]
    report = {
        "command": "python benchmarks/sam.py",
        "machine": bench.machine("cpu", [0.5, 1.25]),
        "settings": {"dtype": "torch.float32", "repeats": 3},
        "rows": rows,
    }
    text = bench.table(report)
    assert "| 2 | 30 | 20 (1.50×) |" in text
    assert "load average 0.5 to 1.2" in text
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    bench.write_table(page, text)
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("after\n")
    assert text in written and "old" not in written


needs_onednn = pytest.mark.skipif(not onednn.is_available(), reason="PyTorch without oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(64,), (3, 21), (2, 3, 4), (1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_linear_equals_linear_forward_and_backward(shape, bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40, bias=bias)
    other = copy.deepcopy(plain)
    assert use_onednn(other) == 1
    assert isinstance(other, OneDnnLinear)
    x = torch.randn(*shape, 24)
    outputs, grads = [], []
    for layer in (plain, other):
        source = x.clone().requires_grad_()
        output = layer(source)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        outputs.append(output)
        grads.append([source.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=0)
    for ours, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_onednn_leaves_other_types_and_the_state_dict_alone():
    layer = torch.nn.Linear(16, 16)
    names = list(layer.state_dict())
    use_onednn(layer)
    assert list(layer.state_dict()) == names
    assert use_onednn(layer) == 0  # nothing left to change
    x = torch.randn(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
