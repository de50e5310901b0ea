"""docs/extending.md, tried: the line of a tenth family, and a method of one's own, on it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from family_bases import MIXED, answers, draw, logits_of, theirs
from transformers import AutoModelForImageTextToText, LlavaNextConfig
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

import polyptych
from polyptych.adapters.families import FAMILIES, Family
from polyptych.adapters.image_only import build_processor
from polyptych.adapters.tiny import TINY, chat_template, tiny_family_tokenizer

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"


def code(heading: str, number: int = 0) -> str:
    """A block of Python below a heading of the document."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(f"### {heading}")[2]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]


def tiny_llava_next() -> tuple[Any, Any]:
    """A tiny config with its tokens, as the document asks for."""
    tokenizer = tiny_family_tokenizer("llava")
    side, grids = TINY.side, [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        text_config={"model_type": "llama", **TINY.text, "vocab_size": len(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **TINY.vision},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grids,
    )
    torch.manual_seed(0)
    processor = build_processor(
        FAMILIES["llava_next"],
        LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=grids,
        ),
        tokenizer,
        patch_size=TINY.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("llava"),
    )
    return AutoModelForImageTextToText.from_config(config).eval(), processor


@pytest.fixture
def written() -> dict[str, Any]:
    """What the document's page on a method defines."""
    names: dict[str, Any] = {"polyptych": polyptych}
    source = code("A method, on one page").rpartition("\nmodel, processor =")[0]
    exec(source, names)
    return names


def test_the_line_of_the_document_makes_a_tenth_family(
    monkeypatch: pytest.MonkeyPatch, written: dict[str, Any]
) -> None:
    line = eval("{" + code("A family, in ten lines") + "}", {"Family": Family})
    for kind, family in line.items():
        assert kind not in FAMILIES
        monkeypatch.setitem(FAMILIES, kind, family)
    base, processor = tiny_llava_next()
    methods = [polyptych.VpgC(), written["Mean"](), polyptych.Sam()]
    model, rows = polyptych.adapt(copy.deepcopy(base), methods, processor=processor)
    assert [*model.methods] == ["mean", "sam", "vpgc"]
    batch = rows.collate(MIXED, training=True)
    before = logits_of(model, batch)
    assert torch.equal(before, logits_of(base, theirs(batch)))
    draw(model, 0.3)
    together = answers(logits_of(model, batch), batch)
    assert not torch.equal(before, logits_of(model, batch))
    for one, want in zip(MIXED, together, strict=True):
        alone = rows.collate([one], training=True)
        (got,) = answers(logits_of(model, alone), alone)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    prompts = rows.collate(MIXED[:1], training=False)
    assert model.generate(**prompts, max_new_tokens=2, do_sample=False).shape[0] == 1
