"""The benchmarks compare equals: every variant computes the same numbers. Nothing is timed here."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polyptych.models import onednn
from polyptych.models.checkpoint import load_model
from polyptych.models.onednn import OneDnnLinear, is_faster, use_onednn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMAGES = (1, 3)


@contextmanager
def benchmark_files() -> Iterator[None]:
    """The benchmark files stand in no package and import each other by name."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with benchmark_files():
        yield importlib.import_module("sam")


@pytest.fixture(scope="module")
def cheetah() -> Iterator[ModuleType]:
    with benchmark_files():
        yield importlib.import_module("cheetah")


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
    encode = published_sam.encode_image
    monkeypatch.setattr(
        published_sam,
        "encode_image",
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
    page.write_text(
        "before\n<!-- other:begin -->\nkept\n<!-- other:end -->\n"
        "<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\nafter\n"
    )
    bench.write_table(page, "benchmark", text)
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("after\n")
    assert text in written and "old" not in written and "kept" in written
    with pytest.raises(SystemExit, match="nothing:begin"):
        bench.write_table(page, "nothing", text)


@pytest.fixture(scope="module")
def cheetah_sizes(cheetah):
    """The small preset, smaller, with grouped key and value heads."""
    return cheetah.Sizes(
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
        },
        language={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 90,
            "max_position_embeddings": 256,
        },
        injection_layer=1,
        num_query_tokens=5,
        outer_piece=6,
        inner_piece=3,
        answer_tokens=4,
        new_tokens=9,
    )


@pytest.fixture(scope="module")
def cheetah_variants(cheetah, cheetah_sizes):
    return cheetah.build_variants(cheetah_sizes)


def test_every_cheetah_variant_computes_what_the_published_order_does(
    cheetah, cheetah_sizes, cheetah_variants
):
    differences = cheetah.check_equal(cheetah_variants, cheetah_sizes, [1, 3])
    assert set(differences) == {*cheetah.ONE_BY_ONE, "gradients", "batch"}
    assert differences["end to end"] == differences["batch"] == 0
    assert max(differences.values()) < 1e-5
    published = cheetah_variants["published"]
    inputs = cheetah.make_inputs(cheetah_sizes, 3)
    published.training_step(inputs)
    assert cheetah.gradients(published).abs().max() > 1e-3
    assert all(p.grad is not None for p in published.model.vpgc.parameters())
    assert len(published.end_to_end(inputs).unique()) > 1


def test_a_variant_that_computes_something_else_is_not_timed(
    cheetah, cheetah_sizes, cheetah_variants
):
    variants = {name: cheetah_variants[name] for name in ("published", "polyptych")}
    with (
        variants["polyptych"].model.vpgc_disabled(),
        pytest.raises(SystemExit, match="prefill: polyptych differs from published by"),
    ):
        cheetah.check_equal(variants, cheetah_sizes, [2])


def test_published_vpgc_looks_at_images_one_by_one_and_acts_in_the_prompt_only(
    cheetah, cheetah_sizes, cheetah_variants, monkeypatch
):
    published = cheetah_variants["published"].cheetah
    look, looked = published._look, []
    monkeypatch.setattr(
        published,
        "_look",
        lambda queries, features: (looked.append(len(features)), look(queries, features))[1],
    )
    cheetah_variants["published"].end_to_end(cheetah.make_inputs(cheetah_sizes, 3))
    assert looked == [1] * 6  # three images, two looks


def test_published_answers_end_with_the_first_row(cheetah, cheetah_sizes, cheetah_variants):
    published = cheetah_variants["published"]
    prompt = published.prompt(cheetah.make_inputs(cheetah_sizes, 2))
    ids = published.cheetah.generate(prompt, 9, None)
    eos = int(ids[0, 3])
    first = ids[0].tolist().index(eos)
    assert torch.equal(published.cheetah.generate(prompt, 9, eos), ids[:, : first + 1])


def test_cheetah_table_shows_both_clocks_and_what_was_wanted(cheetah):
    rows = [
        {"work": work, "images": images, "threads": 1, "variant": name, "cpu_ms": ms, "wall_ms": ms}
        for work, images in [*((work, 8) for work in cheetah.ONE_BY_ONE), ("batch", 28)]
        for name, ms in {
            "published": 30.0,
            "polyptych": 20.0,
            "polyptych+onednn": 10.0,
            "polyptych+cached": 5.0,
            "polyptych+onednn+cached": 5.0,
            "polyptych+batch": 12.0,
            "polyptych+onednn+batch": 12.0,
        }.items()
    ]
    report = {
        "command": "python benchmarks/cheetah.py",
        "machine": cheetah.machine("cpu", [0.5, 1.25]),
        "settings": {"repeats": 3},
        "rows": rows,
    }
    text = cheetah.table(report)
    assert text.count("| 8 | 30 | 20 (1.50×) | 10 (3.00×) | 5 (6.00×)") == 2 * len(
        cheetah.ONE_BY_ONE
    )
    assert "| training step, cached | 3× | 6.00× | 6.00× | 6.00× | 6.00× |" in text
    assert "| batch of 8 mixed prompts | 2× | 2.50× | 2.50× |" in text


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


@needs_onednn
def test_onednn_is_chosen_where_it_gains_and_the_caller_may_choose(tmp_path):
    amd, intel = tmp_path / "amd", tmp_path / "intel"
    amd.write_text("vendor_id : AuthenticAMD\nflags : avx2 avx512f\n")
    intel.write_text("vendor_id : GenuineIntel\nflags : avx2 avx512f\n")
    assert is_faster(str(amd))
    assert not is_faster(str(intel))
    assert not is_faster(str(tmp_path / "absent"))
    for wanted in (True, False):
        model, _ = load_model(onednn=wanted)
        assert any(isinstance(layer, OneDnnLinear) for layer in model.modules()) is wanted
