"""CaMML's benchmark compares equals: every variant computes the same numbers. Nothing is timed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The benchmark files stand in no package and import each other by name."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("camml")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def sizes(bench: ModuleType) -> Any:
    return bench.Sizes(
        vision={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 28,
            "patch_size": 7,
        },
        perceiver={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
        language={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 90,
            "max_position_embeddings": 128,
        },
        num_query_tokens=5,
        shot_words=7,
        question_words=(4, 3, 5),
        new_tokens=6,
    )


def test_every_variant_computes_what_the_published_order_does(
    bench: ModuleType, sizes: Any
) -> None:
    variants = bench.build_variants(sizes)
    assert {"published", "polyptych", "polyptych+cached"} <= variants.keys()
    differences = bench.check_equal(variants, sizes, [1, 3])
    assert differences["forward"] < 1e-5 and differences["generation"] == 0


def test_a_variant_that_computes_something_else_is_not_timed(bench: ModuleType, sizes: Any) -> None:
    variants = bench.build_variants(sizes)
    variants = {name: variants[name] for name in ("published", "polyptych")}
    with torch.no_grad():
        seen = variants["polyptych"].model.vision_encoder.model.embeddings
        seen.position_embedding.weight[:, 0] += 1
    with pytest.raises(SystemExit, match="forward: polyptych differs from published"):
        bench.check_equal(variants, sizes, [2])


def test_the_transcription_reads_shots_one_by_one_and_keeps_nothing(
    bench: ModuleType, sizes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = bench.build_variants(sizes)["published"]
    module, rows = importlib.import_module("published_camml"), []
    perceive = module.perceive

    def spy(perceiver: Any, hidden: Any, source: Any) -> Any:
        rows.append(len(hidden))
        return perceive(perceiver, hidden, source)

    monkeypatch.setattr(module, "perceive", spy)
    published.forward(bench.make_question(sizes, 3))
    assert rows == [1] * 8  # two perceivers a shot, two looks of the third
    rows.clear()
    published.generation(bench.make_question(sizes, 3))
    assert rows == [1] * 8 * sizes.new_tokens


def test_the_table_says_what_was_wanted(bench: ModuleType) -> None:
    rows = [
        {"work": work, "shots": shots, "variant": name, "cpu_ms": ms, "wall_ms": ms}
        for work, shots in (("forward", 1), ("forward", 3), ("forward", 10), ("generation", 3))
        for name, ms in (("published", 90.0), ("polyptych", 45.0), ("polyptych+cached", 30.0))
    ]
    facts = dict.fromkeys(("date", "cpu", "cpu_capability", "cores", "torch", "transformers"), "x")
    report = {
        "command": "c",
        "machine": {**facts, "load_average_min_max": [0, 1]},
        "settings": {"repeats": 1},
        "rows": rows,
    }
    text = bench.table(report)
    assert "| forward | 3 | 90 | 45 (2.00×) | 30 (3.00×) |" in text
    assert "| forward, 3 shots, datastore encoded | 3× | 3.00× | – |" in text
    assert "| 10 shots over 1, datastore encoded | at most 1.15 | 1.00 | – |" in text
