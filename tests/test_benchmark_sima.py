"""The tuning benchmark compares equals: published order of work, TRL's own trainer, ours."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("trl")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("sima")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def variants(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("bench")
    sizes = bench.SIZES["toy"]
    own, theirs = bench.build_models(sizes)
    inputs = bench.make_inputs(sizes, own.config.image_token_id)
    ours = bench.Ours(own, inputs, folder)
    return {
        "published": bench.Published(ours.learner, inputs),
        "trl": bench.Trl(theirs, inputs, ours.learner, folder),
        "polyptych": ours,
    }


def test_all_variants_compute_the_same_loss_and_gradients(bench: ModuleType, variants) -> None:
    worst = bench.check_agreement(variants)
    assert max(worst.values()) < 1e-5
    losses = [float(each.step()) for each in variants.values()]
    assert losses[0] != pytest.approx(0.6931, abs=1e-3)  # adapters do something


def test_a_variant_that_differs_stops_the_benchmark(bench: ModuleType, variants) -> None:
    published = variants["published"].trainer
    published.beta = 0.2
    with pytest.raises(SystemExit, match="published and polyptych differ"):
        bench.check_agreement(variants)
    published.beta = 0.1


def test_the_work_is_what_the_benchmark_says(variants) -> None:
    """Images of four pairs: eight times as published, once here; words of the head likewise."""
    ours = variants["polyptych"].learner.get_base_model()
    seen: list[int] = []
    hook = ours.vision_encoder.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    variants["polyptych"].step()
    assert seen == [4]
    seen.clear()
    variants["published"].step()
    hook.remove()
    assert seen == [4] * 8


def test_peaks_are_what_is_held_at_once(bench: ModuleType) -> None:
    def step() -> None:
        first = torch.ones(1000, 256)
        second = first + 1
        del first
        third = second * 2
        del second, third

    one = 1000 * 256 * 4
    assert 2 * one <= bench.peak_bytes(step) < 2.1 * one
