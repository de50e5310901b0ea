"""The cache of a beam search: equal to transformers' own, which copies the prompt at every step."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from polyptych.language import beam_cache
from polyptych.language.beam_cache import SharedPromptLayer, share_prompt
from polyptych.models import answering
from polyptych.testing import tiny_examples, tiny_model, tiny_processor


def test_equals_the_ordinary_cache_through_moves_and_growth(monkeypatch):
    monkeypatch.setattr(beam_cache, "ROOM", 4)  # moves to a larger place several times
    generator = torch.Generator().manual_seed(0)
    examples, beams, prompt = 2, 3, 5
    keys = torch.randn(examples, 2, prompt, 4, generator=generator)
    values = torch.randn(examples, 2, prompt, 6, generator=generator)
    plain, shared = DynamicCache(), DynamicCache()
    for cache in (plain, shared):
        cache.update(keys, values, 0)
    plain.batch_repeat_interleave(beams)
    share_prompt(shared, beams)
    assert isinstance(shared.layers[0], SharedPromptLayer)
    for step in range(20):
        new_keys = torch.randn(examples * beams, 2, 1, 4, generator=generator)
        new_values = torch.randn(examples * beams, 2, 1, 6, generator=generator)
        expected = plain.update(new_keys, new_values, 0)
        actual = shared.update(new_keys, new_values, 0)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
        assert shared.get_seq_length() == prompt + step + 1
        moves = torch.randint(0, beams, (examples, beams), generator=generator)
        moves = (moves + beams * torch.arange(examples)[:, None]).flatten()
        plain.reorder_cache(moves)
        shared.reorder_cache(moves)
        assert torch.equal(shared.layers[0].keys, plain.layers[0].keys)
        assert torch.equal(shared.layers[0].values, plain.layers[0].values)


@pytest.mark.parametrize("decoder", ["llama", "qwen2", "gpt2", "opt"])
@pytest.mark.parametrize("beams", [1, 4])
def test_generation_is_that_of_the_ordinary_cache(decoder, beams, monkeypatch):
    from polyptych.data.collation import Collator

    model, processor = tiny_model(decoder=decoder), tiny_processor()
    batch = Collator(processor, training=False)(tiny_examples(3))
    monkeypatch.setattr(answering, "is_small_decoder", lambda *_: False)
    settings = {"num_beams": beams, "max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    shared = model.generate(**batch, **settings)
    monkeypatch.setattr(
        answering, "share_prompt", lambda cache, copies: cache.batch_repeat_interleave(copies)
    )
    assert torch.equal(shared, model.generate(**batch, **settings))
    assert len(shared[:, -10:].unique()) > 2
