"""Prompts read one by one, without padding: the answers of prompts that are read together."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from polyptych.data.collation import Collator
from polyptych.models import ragged, vision_language
from polyptych.models.ragged import costs_less_alone
from polyptych.testing import tiny_cheetah, tiny_examples, tiny_model, tiny_processor


def answers(model, **settings):
    batch = Collator(tiny_processor(), training=False)(tiny_examples(4))
    assert 0 in batch["image_counts"]  # one example without pictures
    assert len(batch["attention_mask"].sum(dim=1).unique()) > 2
    return model.generate(
        **batch,
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **settings,
    )


@pytest.mark.parametrize(
    ("make", "decoder"),
    [(tiny_model, "llama"), (tiny_model, "gpt2"), (tiny_cheetah, "opt")],
    ids=["sam-llama", "sam-gpt2", "cheetah-opt"],  # cheetah reads images again on the way
)
@pytest.mark.parametrize("beams", [1, 3])
def test_equals_reading_together(decoder, make, beams, monkeypatch):
    model, calls = make(decoder=decoder), []
    together = answers(model, num_beams=beams)
    monkeypatch.setattr(ragged, "CALL", 0)
    read = vision_language.read_one_by_one
    monkeypatch.setattr(
        vision_language, "read_one_by_one", lambda *a: calls.append(len(a[3])) or read(*a)
    )
    alone = answers(model, num_beams=beams)
    assert calls == [4]
    assert torch.equal(alone.sequences, together.sequences)
    for one, other in zip(alone.logits, together.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_who_is_read_alone(monkeypatch):
    decoder, mask = tiny_model().language_model, torch.ones(2, 5, dtype=torch.int64)
    mask[1, :3] = 0
    assert not costs_less_alone(decoder, mask, None)  # tiny: calls cost more than padding
    monkeypatch.setattr(ragged, "CALL", 0)
    assert costs_less_alone(decoder, mask, DynamicCache())
    assert not costs_less_alone(decoder, mask.flip(1), None)  # padded behind
    assert not costs_less_alone(decoder, mask[:1], None)  # one row
    assert not costs_less_alone(decoder, torch.ones_like(mask), None)  # no padding
    assert not costs_less_alone(decoder, None, None)
    filled = DynamicCache()
    filled.update(torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2), 0)
    assert not costs_less_alone(decoder, mask, filled)
