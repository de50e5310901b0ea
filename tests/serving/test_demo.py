"""The demo from end to end with tiny models, and the attention it draws."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from polyptych.data.records import read_lines
from polyptych.evaluation.local_model import model_inputs
from polyptych.evaluation.task import GenerationSettings
from polyptych.serving.attention import looks
from polyptych.serving.demo import DemoSettings, run
from polyptych.testing import tiny_examples, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name, guidance in (("alone", "off"), ("together", "paper")):
        tiny_model(guidance).save_pretrained(folder / name)  # type: ignore[arg-type]
        tiny_processor().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("alone", "together")}


def test_demo_prints_scores_and_writes_a_self_contained_page(
    models: dict[str, str], tmp_path: Path
) -> None:
    settings = DemoSettings(
        **models,
        count=4,
        shown=2,
        printed=1,
        decoding=GenerationSettings(max_new_tokens=3, batch_size=4),
    )
    printed = io.StringIO()
    report = run(settings, tmp_path, Console(file=printed, width=100))
    for word in ("CIDEr", "ROUGE-L", "BLEU-4", "Exact-factor accuracy", "Name accuracy"):
        assert word in printed.getvalue()

    html = report.read_text(encoding="utf-8")
    assert html.count("<article") == 4
    assert not re.search(r"<script|https?://|(?:src|href)=\"(?!data:image/png)", html)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [
        "group_captioning-alone.jsonl",
        "group_captioning-together.jsonl",
        "report.html",
        "storytelling-alone.jsonl",
        "storytelling-together.jsonl",
    ]
    assert len(list(read_lines(tmp_path / files[0]))) == 4

    again = run(settings, tmp_path, Console(file=io.StringIO()))
    assert again.read_text(encoding="utf-8") == html


def test_looks_are_shares_of_attention_per_example() -> None:
    examples = tiny_examples(4)  # 2, 3, 1 and 0 pictures
    seen = looks(tiny_model(), tiny_processor(), examples, batch_size=4)
    assert [len(s.own) for s in seen] == [2, 3, 1, 0]
    assert [len(s.from_others) for s in seen] == [2, 3, 0, 0]
    assert all(grid.shape == (4, 4) for s in seen for grid in s.own)
    for s in seen[:2]:
        assert sum(grid.sum() for grid in s.from_others) == pytest.approx(1, abs=0.1)
    alone = looks(tiny_model("off"), tiny_processor(), examples[:1])
    assert alone[0].from_others == ()


def test_looks_of_a_batch_equal_one_by_one() -> None:
    model, processor, examples = tiny_model(), tiny_processor(), tiny_examples(3)
    together = looks(model, processor, examples, batch_size=3)
    for example, expected in zip(examples, together, strict=True):
        single = looks(model, processor, [example])[0]
        np.testing.assert_allclose(single.own, expected.own, atol=1e-6)
        np.testing.assert_allclose(single.from_others, expected.from_others, atol=1e-6)


def test_what_others_look_for_is_the_mean_over_the_other_pictures() -> None:
    model, processor, examples = tiny_model(), tiny_processor(), tiny_examples(2)[1:]
    record = model(
        **model_inputs(model, processor, examples), return_intermediates=True
    ).intermediates
    layers = [name for name in record if name.startswith("context.attention.layer.")]
    attention = record[layers[-1]]  # (3 guided, 3 slots, 17 patches)
    expected = attention.sum(0)[:, 1:].reshape(3, 4, 4) / 3
    np.testing.assert_allclose(
        looks(model, processor, examples)[0].from_others, expected, atol=1e-6
    )
