"""The training benchmark compares equals and reads its own numbers right. Nothing is timed here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from polyptych.adapters.tiny import TinySizes

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The benchmark files stand in no package and import each other by name."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("training")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


def test_methods_start_as_their_base(bench: ModuleType) -> None:
    """Equal weights otherwise: a zero-initialized method has the loss of the model without it."""
    batch = bench.batch_of(3)
    for name in bench.OVERHEADS:
        with torch.no_grad():
            losses = [
                model(**batch, use_cache=False).loss for model in bench.pair(name, 16).values()
            ]
        torch.testing.assert_close(losses[0], losses[1], msg=name)


def test_the_exponent_is_that_of_the_largest_numbers(bench: ModuleType) -> None:
    times = {2: 100.0, 16: 50.0, 32: 200.0}
    rows = [{"variant": "v", "images": n, "cpu_ms": ms} for n, ms in times.items()]
    assert bench.exponent(rows, "v") == pytest.approx(2.0)


def test_the_table_says_efficiency_exponent_and_overhead(bench: ModuleType) -> None:
    times = {"wall_s": 12.0, "cpu_s": 10.0, "waiting_for_data": 0.02, "steps": 4}
    half = {"wall_s": 8.0, "cpu_s": 5.5, "waiting_for_data": 0.03, "steps": 4}
    rows = [{"variant": "base", "images": n, "cpu_ms": 10.0 * n} for n in (2, 4)]
    report = {
        "command": "python benchmarks/training.py",
        "machine": bench.machine("cpu", [0.5, 1.25]),
        "processes": [{"processes": 1, **times}, {"processes": 2, **half}],
        "images": rows,
        "overheads": [{"method": "SAM", "images": 4, "without": 100.0, "with": 104.0}],
    }
    report["adapters"] = {
        "step": [
            {"images": 4, "cpu_ms": 200.0, "mib": 100.0},
            {"images": 4, "cpu_ms": 206.0, "mib": 101.0},
        ],
        "alone": [
            {"variant": "SAM", "images": n, "cpu_ms": 10.0 * n, "kept_mib": n**2} for n in (2, 4)
        ],
        "7b": {"flops": 0.002, "bytes": 0.01, "bytes_checkpointing": 0.02},
    }
    report["paper"] = {"parameters": 14_000_000, "flops": 2.8e11, "kept_bytes": 3e8}
    text = bench.table(report)
    assert "| efficiency | 75% | 91% | |" in text
    assert "| base | 20 | 40 | 1.00 |" in text
    assert "| SAM | 100 ms | 104 ms | +4.0% |" in text
    assert "| processor ms | 200 | 206 | +3.0% |" in text
    assert "| FLOPs at 7B, counted | | | +0.20% |" in text
    assert "| SAM | 20 | 40 | 1.00 |" in text and "| SAM | 4 | 16 | 2.00 |" in text
    assert text.count("| FSDP2, ZeRO-3 |") == 4 and "40%" in text


SMALL = TinySizes(side=28, patch=7, width=64, heads=2)


def test_adapters_start_as_lora_alone(bench: ModuleType) -> None:
    costs, losses = bench.adapter_costs, []
    for name in (costs.BASE, costs.BOTH):
        model, processor = costs.learner(costs.VARIANTS[name], SMALL)
        batch = processor.collate([costs.example(3)], training=True)
        with torch.no_grad():
            losses.append(model(**batch, use_cache=False).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", ["SAM", "VPG-C"])
def test_what_a_module_keeps_grows_with_its_images_and_no_faster(
    bench: ModuleType, name: str
) -> None:
    """The one part that grows faster, who may see whom among pooled tokens, is small."""
    costs = bench.adapter_costs
    (method,) = costs.VARIANTS[name]
    module = costs.module_of(method, 512)
    few, many = (costs.kept_bytes(costs.call_of(method, module, images, 256)) for images in (8, 16))
    assert 1.8 < many / few < 2.1


def test_flops_on_paper_are_those_that_torch_counts(bench: ModuleType) -> None:
    scale, length = bench.scale, 24
    shape = scale.Shape(hidden=64, layers=3, intermediate=96, vocabulary=50)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=2,
        vocab_size=50,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).requires_grad_(False)
        states = torch.zeros(1, length, 64, requires_grad=True)
        sees = torch.ones(1, 1, length, length, dtype=torch.bool)
        with FlopCounterMode(display=False) as counter:
            model(
                inputs_embeds=states, attention_mask=sees, use_cache=False
            ).logits.sum().backward()
    wanted = scale.forward_flops(shape, length) + scale.backward_flops(shape, length)
    assert counter.get_total_flops() == wanted
    assert sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2) == shape.decoder


def test_more_gpus_hold_less_each_and_take_in_more(bench: ModuleType) -> None:
    scale = bench.scale
    adapters = scale.Adapters(14_000_000, 2.8e11, 3e8)
    few, many = (scale.estimate("FSDP2, ZeRO-3", gpus, 1, adapters) for gpus in (8, 64))
    whole = scale.estimate("DDP", 8, 1, adapters)
    assert many.bytes_per_gpu < few.bytes_per_gpu < whole.bytes_per_gpu
    assert whole.traffic < few.traffic < many.traffic
    # Weights of 7 billion parameters in two bytes, gathered twice from seven other GPUs.
    assert few.traffic == pytest.approx(7 / 8 * 4 * 7.06e9, rel=0.02)
    assert many.tokens_per_second == pytest.approx(8 * few.tokens_per_second, rel=0.01)
    slow = scale.Hardware(between=1e9)
    assert (
        scale.estimate("FSDP2, ZeRO-3", 64, 1, adapters, hardware=slow).seconds > 10 * many.seconds
    )


def test_the_three_steps_have_one_loss(bench: ModuleType) -> None:
    """What is saved is no part of the result; only attention rounds less."""
    costs = bench.step_costs
    model, processor = costs.learner(TinySizes(), 512)
    batch = processor.collate([costs.example(2)] * 2, training=True)
    with torch.no_grad():
        whole, *fewer = [step(model.eval(), batch) for step in costs.STEPS.values()]
    for loss in fewer:
        torch.testing.assert_close(loss, whole)


def test_steps_are_measured_and_told(bench: ModuleType) -> None:
    rows = bench.step_costs.measured(2, 2, 1, TinySizes(), 512)
    assert [row["variant"] for row in rows] == list(bench.step_costs.STEPS)
    assert all(row["cpu_ms"] > 0 and row["mib"] > 0 for row in rows)
    lines = bench.SECTIONS["steps"](rows)
    assert lines[0].startswith(f"| 2 × {rows[0]['positions']} positions, vocabulary 512 |")
    assert len(lines) == 2 + len(rows)
