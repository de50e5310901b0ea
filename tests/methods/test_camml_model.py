"""CaMML's invariants: batches, caches, beams, orders, and shots that are not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText

from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.methods.camml.model import (
    PolyptychCammlConfig,
    PolyptychCammlForConditionalGeneration,
)
from polyptych.methods.camml.shots import join_shots
from polyptych.schema import shots_of
from polyptych.testing import (
    tiny_camml,
    tiny_camml_processor,
    tiny_llava,
    tiny_shot_examples,
)

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
MIXED = (1, 3, 0, 2)


def collate(examples, *, training: bool, **settings) -> Any:
    return Collator(tiny_camml_processor(**settings), training=training)(examples)


def context_of(model, examples) -> torch.Tensor:
    batch = collate(examples, training=False)
    return model(**batch, return_intermediates=True).intermediates["context_tokens"]


def without_shots(examples):
    return [replace(example, shots=()) for example in examples]


def permuted(example):
    return replace(example, shots=tuple(reversed(example.shots)))


# --- how many context tokens ---------------------------------------------------------------------


def test_the_number_of_context_tokens_does_not_depend_on_the_number_of_shots() -> None:
    model = tiny_camml()
    lengths = []
    for shots in (1, 2, 5):
        examples = tiny_shot_examples(1, (shots,))
        batch = collate(examples, training=False)
        lengths.append(batch["input_ids"].shape[1])
        assert int((batch["input_ids"] == model.config.context_token_id).sum()) == 6
        assert context_of(model, examples).shape == (1, 6, 48)
    assert len(set(lengths)) == 1


def test_without_shots_it_is_the_base_bit_for_bit() -> None:
    model, base = tiny_camml(), tiny_llava(text_config=tiny_camml().config.text_config.to_dict())
    own = {n: t for n, t in model.state_dict().items() if not n.startswith("camml.")}
    base.load_state_dict(own)
    batch = collate(without_shots(tiny_shot_examples(4)), training=True)
    assert shots_of(batch) is None
    assert torch.equal(model(**batch).logits, base(**batch).logits)
    prompts = collate(without_shots(tiny_shot_examples(4)), training=False)
    assert torch.equal(model.generate(**prompts, **GREEDY), base.generate(**prompts, **GREEDY))


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ("llama", "qwen2", "gpt2", "opt"))
def test_a_mixed_batch_equals_one_by_one(decoder: str) -> None:
    """0, 1, 2 and 3 shots, with and without an image in the question."""
    model = tiny_camml(decoder)
    examples = tiny_shot_examples(4, MIXED)
    logits = model(**collate(examples, training=True)).logits
    for row, example in enumerate(examples):
        single = model(**collate([example], training=True)).logits[0]
        assert_close(logits[row, : len(single)], single, atol=5e-6, rtol=0)


def test_released_reads_the_pads_of_its_neighbors() -> None:
    examples = tiny_shot_examples(2, (2, 2))
    for behavior, leaks in (("released", True), ("fixed", False)):
        model = tiny_camml(behavior=behavior)
        together = context_of(model, examples)
        alone = torch.cat([context_of(model, [example]) for example in examples])
        assert ((together - alone).abs().max() > 1e-3) == leaks


def test_released_equals_fixed_where_nothing_is_padded() -> None:
    example = tiny_shot_examples(1, (3,))
    assert_close(
        context_of(tiny_camml(behavior="released"), example),
        context_of(tiny_camml(), example),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("decoder", ("llama", "opt"))
def test_batched_answers_equal_one_by_one(decoder: str) -> None:
    model = tiny_camml(decoder)
    examples = tiny_shot_examples(4, MIXED)
    batch = collate(examples, training=False)
    answers = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for row, example in enumerate(examples):
        alone = collate([example], training=False)
        single = model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :]
        assert single.tolist() == answers[row, : len(single)].tolist()


def test_beams_read_shots_once_and_equal_beams_without_cache() -> None:
    model = tiny_camml()
    batch = collate(tiny_shot_examples(3, (2, 0, 3)), training=False)
    seen = []
    handle = model.camml.vision_perceiver.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0]))
    )
    settings = {**GREEDY, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    short = model.generate(**batch, **settings)
    assert seen == [5]
    handle.remove()
    full = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(short.sequences, full.sequences)
    assert_close(short.sequences_scores, full.sequences_scores, atol=1e-5, rtol=0)


def test_each_perceiver_is_called_once_whatever_the_number_of_shots() -> None:
    model = tiny_camml()
    calls = []
    for perceiver in ("vision", "language", "context"):
        model.camml.get_submodule(f"{perceiver}_perceiver").register_forward_pre_hook(
            lambda _, inputs, name=perceiver: calls.append((name, len(inputs[0])))
        )
    model(**collate(tiny_shot_examples(4, MIXED), training=True))
    # six shots; three examples that have any, each read for vision and for text
    assert calls == [("vision", 6), ("language", 6), ("context", 6)]


# --- caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ({}, {"shot_positions": 4, "text_positions": 64}))
def test_shots_encoded_before_equal_shots_encoded_now(config) -> None:
    """Entry by entry as a datastore keeps them, joined in another batch."""
    model = tiny_camml(**config)
    examples = tiny_shot_examples(4, MIXED)
    batch = collate(examples, training=True)
    logits = model(**batch).logits
    entries = []
    for example in examples:
        for shot in example.shots:
            one = shots_of(collate([replace(example, shots=(shot,))], training=True))
            one.pop("shot_counts")
            entries += model.encode_shots(**one).split()
    counts = batch["shot_counts"]
    rest = {name: value for name, value in batch.items() if not name.startswith("shot_")}
    again = model(**rest, shot_counts=counts, **join_shots(entries).as_inputs()).logits
    assert_close(again, logits, atol=5e-6, rtol=0)


def test_split_and_join_are_inverse() -> None:
    model = tiny_camml()
    shots = shots_of(collate(tiny_shot_examples(4, MIXED), training=True))
    tokens = model.encode_shots(**shots)
    again = join_shots(tokens.split())
    for name in ("vision", "vision_lengths", "language", "language_lengths"):
        assert torch.equal(getattr(again, name), getattr(tokens, name))
    assert len(tokens) == 6 and [len(entry) for entry in tokens.split()] == [1] * 6


def test_image_features_of_shots_equal_their_pixels() -> None:
    model = tiny_camml()
    batch = collate(tiny_shot_examples(4, MIXED), training=True)
    loss = model(**batch).loss
    batch["shot_image_features"] = model.vision_encoder(batch.pop("shot_pixel_values"))
    assert_close(model(**batch).loss, loss)


# --- orders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "told"),
    [({"behavior": "released"}, False), ({}, False), ({"shot_positions": 4}, True)],
)
def test_the_order_of_shots_is_seen_only_where_it_is_told(config, told: bool) -> None:
    model = tiny_camml(**config)
    (example,) = tiny_shot_examples(1, (3,))
    difference = (context_of(model, [permuted(example)]) - context_of(model, [example])).abs().max()
    assert difference > 1e-3 if told else difference < 5e-6


@pytest.mark.parametrize(("config", "told"), [({}, False), ({"text_positions": 64}, True)])
def test_the_order_of_words_is_seen_only_where_it_is_told(config, told: bool) -> None:
    model = tiny_camml(**config)
    shots = shots_of(collate(tiny_shot_examples(1, (1,)), training=False))
    before = model.camml.context_tokens(model.encode_shots(**shots), shots["shot_counts"])
    shots["shot_input_ids"] = shots["shot_input_ids"].flip(1)
    after = model.camml.context_tokens(model.encode_shots(**shots), shots["shot_counts"])
    difference = (after - before).abs().max()
    assert difference > 1e-3 if told else difference < 5e-6


# --- what shots may be ---------------------------------------------------------------------------


def test_shots_without_or_with_several_images_mix_and_learn() -> None:
    model = tiny_camml()
    examples = tiny_shot_examples(3, (2, 1, 3))
    first, second = examples[0].shots
    text_only = replace(
        first,
        images=(),
        messages=(
            replace(first.messages[0], content=first.messages[0].content[1:]),
            first.messages[1],
        ),
    )
    several = replace(second, images=(*second.images, *first.images))
    examples[0] = replace(examples[0], shots=(text_only, several))
    batch = collate(examples, training=True)
    assert batch["shot_image_counts"].tolist() == [0, 2, 1, 1, 1, 1]
    output = model.train()(**batch)
    output.loss.backward()
    for name, parameter in model.camml.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    model.eval()
    logits = model(**batch).logits
    for row, example in enumerate(examples):
        single = model(**collate([example], training=True)).logits[0]
        assert_close(logits[row, : len(single)], single, atol=5e-6, rtol=0)
    only_text = replace(examples[0], shots=(text_only,))
    assert bool(context_of(model, [only_text]).isfinite().all())


def test_every_parameter_learns_and_none_is_dead() -> None:
    model = tiny_camml(shot_positions=3, text_positions=64).train()
    model(**collate(tiny_shot_examples(4, MIXED), training=True)).loss.backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # CLIP is read at its last but one layer; a key's bias shifts all scores of a row alike.
    unused = {n for n in unused if not n.startswith("vision_encoder.")}
    assert not {n for n in unused if not n.endswith("attention.key.bias")}


def test_a_batch_without_shots_gives_the_perceivers_a_zero_gradient() -> None:
    model = tiny_camml().train()
    model(**collate(without_shots(tiny_shot_examples(2)), training=True)).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.camml.parameters())


def test_save_and_load_through_the_auto_class(tmp_path) -> None:
    model = tiny_camml(shot_positions=3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is PolyptychCammlForConditionalGeneration
    batch = collate(tiny_shot_examples(3), training=True)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_an_untrained_model_starts_from_small_random_queries() -> None:
    config = tiny_camml().config
    model = PolyptychCammlForConditionalGeneration(config)
    for queries in (
        model.camml.context_perceiver.vision_queries,
        model.camml.context_perceiver.text_queries,
    ):
        assert 0.005 < float(queries.detach().std()) < 0.04


# --- bad input -----------------------------------------------------------------------------------


def test_wrong_number_of_context_placeholders() -> None:
    batch = collate(tiny_shot_examples(2), training=True, context_tokens=5)
    with pytest.raises(
        PolyptychError, match=r"row 0 .* 5 context placeholders for 6 context tokens of 1 shots"
    ):
        tiny_camml()(**batch)


def test_placeholders_without_shots() -> None:
    batch = collate(tiny_shot_examples(1), training=True)
    rest = {name: value for name, value in batch.items() if not name.startswith("shot_")}
    with pytest.raises(PolyptychError, match="6 context placeholders, but 0 shots"):
        tiny_camml()(**rest)


def test_shots_without_placeholders() -> None:
    batch = collate(tiny_shot_examples(1), training=True)
    bare = collate(without_shots(tiny_shot_examples(1)), training=True)
    with pytest.raises(PolyptychError, match=r"row 0 .* 0 context placeholders for 6 .* 1 shots"):
        tiny_camml()(**bare, **shots_of(batch))


def test_shots_that_are_not_there() -> None:
    batch = collate(tiny_shot_examples(1), training=True)
    batch["shot_counts"] += 1
    with pytest.raises(PolyptychError, match="shot_counts speak of 2 shots, 1 were given"):
        tiny_camml()(**batch)


def test_images_of_shots_that_are_not_there() -> None:
    batch = collate(tiny_shot_examples(1), training=True)
    batch["shot_image_counts"] += 1
    with pytest.raises(PolyptychError, match="speak of 2 images, 1 were given"):
        tiny_camml()(**batch)


def test_released_needs_an_image_in_each_shot() -> None:
    batch = collate(tiny_shot_examples(1), training=True)
    batch["shot_image_counts"] *= 0
    del batch["shot_pixel_values"]
    with pytest.raises(PolyptychError, match="1 of 1 shots have no image; the released"):
        tiny_camml(behavior="released")(**batch)


def test_more_shots_or_words_than_positions() -> None:
    batch = collate(tiny_shot_examples(1, (3,)), training=True)
    with pytest.raises(PolyptychError, match="3 shots for 2 positions"):
        tiny_camml(shot_positions=2)(**batch)
    with pytest.raises(PolyptychError, match=r"\d+ words of a shot for 4 positions"):
        tiny_camml(text_positions=4)(**batch)


def test_released_knows_no_positions() -> None:
    with pytest.raises(PolyptychError, match="0 of words and 4 of shots were asked for"):
        PolyptychCammlConfig(behavior="released", shot_positions=4)


def test_a_base_reads_no_shots() -> None:
    batch = collate(tiny_shot_examples(2), training=True)
    with pytest.raises(PolyptychError, match="a polyptych_llava reads no shots; 4 came"):
        tiny_llava()(**batch)
