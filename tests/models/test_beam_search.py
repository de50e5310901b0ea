"""The lean beam search: transformers' sequences under every rule that it knows."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import StopStringCriteria
from transformers.generation.stopping_criteria import StoppingCriteriaList

from polyptych.data.collation import Collator
from polyptych.models import answering
from polyptych.models.beam_search import is_plain
from polyptych.testing import tiny_examples, tiny_model, tiny_processor


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("decoder", ["llama", "gpt2"])
def test_equals_transformers(decoder, early_stopping, monkeypatch):
    model, processor = tiny_model(decoder=decoder), tiny_processor()
    batch = Collator(processor, training=False)(tiny_examples(3))
    words = model.language_model.config.vocab_size
    seldom, often = list(range(3, words, 11)), list(range(3, words, 3))
    lengths = set()
    for beams, penalty, eos in itertools.product((2, 5), (0.0, 1.0, -1.0), (seldom, often)):
        settings = {
            "num_beams": beams,
            "length_penalty": penalty,
            "early_stopping": early_stopping,
            "num_return_sequences": 2,
            "max_new_tokens": 10,
            "do_sample": False,
            "repetition_penalty": 1.3,
            "eos_token_id": eos,
        }
        ours = model.generate(**batch, **settings)
        with monkeypatch.context() as patched:
            patched.setattr(answering, "is_plain", lambda *_: False)
            theirs = model.generate(**batch, **settings)
        assert torch.equal(ours, theirs), settings
        lengths.add(ours.shape[1])
    assert len(lengths) > 1  # some searches ended early


def test_without_a_cache():
    model = tiny_model(decoder="llama")
    batch = Collator(tiny_processor(), training=False)(tiny_examples(2))
    settings = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    cached = model.generate(**batch, **settings)
    assert torch.equal(cached, model.generate(**batch, use_cache=False, **settings))


def test_other_wishes_are_left_to_transformers():
    model, processor = tiny_model(decoder="llama"), tiny_processor()
    config = model.generation_config
    config.low_memory = None
    assert is_plain(config, StoppingCriteriaList())
    assert not is_plain(config, StoppingCriteriaList(), synced_gpus=True)
    stop = StopStringCriteria(processor.tokenizer, ["."])
    assert not is_plain(config, StoppingCriteriaList([stop]))
    config.return_dict_in_generate = True
    assert not is_plain(config, StoppingCriteriaList())
