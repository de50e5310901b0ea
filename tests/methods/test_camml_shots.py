"""Shots as rows, batches and cache entries."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from polyptych.data.collation import Collator
from polyptych.data.conversation import CONTEXT_TEMPLATES, Segment, render
from polyptych.data.inspection import describe
from polyptych.errors import PolyptychError
from polyptych.methods.camml.shots import (
    ShotCache,
    leaked_mask,
    pad_ragged,
    ranks,
    sums_over_examples,
)
from polyptych.models.checkpoint import load_model
from polyptych.schema import ImageBlock, Message, TextBlock, shots_of
from polyptych.testing import (
    tiny_camml,
    tiny_camml_processor,
    tiny_image,
    tiny_llava_processor,
    tiny_shot_examples,
)

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def user(*blocks: str | None) -> Message:
    return Message("user", tuple(ImageBlock() if b is None else TextBlock(b) for b in blocks))


# --- tensors by hand -----------------------------------------------------------------------------


def test_ragged_rows_are_padded() -> None:
    flat = torch.tensor([[1.0], [2.0], [3.0]])
    padded, mask = pad_ragged(flat, torch.tensor([2, 0, 1]))
    assert padded[..., 0].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    even, nothing = pad_ragged(flat, torch.tensor([1, 1, 1]))
    assert even.tolist() == [[[1]], [[2]], [[3]]] and nothing is None
    empty, mask = pad_ragged(flat[:0], torch.tensor([0, 0]))
    assert empty.shape == (2, 1, 1) and not mask.any()


def test_shots_know_their_place_and_their_example() -> None:
    counts = torch.tensor([2, 0, 3])
    assert ranks(counts).tolist() == [0, 1, 0, 1, 2]
    assert sums_over_examples(torch.tensor([5, 4, 3, 2, 1]), counts).tolist() == [9, 0, 6]


def test_released_pads_the_kth_shots_of_all_examples_to_the_longest_of_these() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    leaked = leaked_mask(mask, torch.tensor([2, 2]))
    assert leaked.sum(1).tolist() == [4, 3, 4, 3]
    assert torch.equal(leaked_mask(mask[:2], torch.tensor([2])).sum(1), torch.tensor([2, 3]))


# --- rows ----------------------------------------------------------------------------------------


def text_of(segments: list[Segment]) -> str:
    marks = {True: "@", False: "#"}
    return "".join(marks[s.is_context] if s.text is None else s.text for s in segments)


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        ((None, "\nWhat?"), "The image for this question: #\nThe question is: What?"),
        (("What?\n", None), "The image for this question: #\nThe question is: What?"),
        (("Why?",), "There is no image for this question. The question is: Why?"),
        (
            ("Is ", None, " ", None, "?"),
            "The images are part of the question. The question is: Is # #?",
        ),
    ],
)
def test_a_question_says_that_it_has_shots(content, rest: str) -> None:
    row = text_of(render([user(*content)], "plain", with_target=False, context="science"))
    assert row == (
        "This is the useful context information for this question: @, which contains previous "
        "scientific question answering examples, please use this context information to answer "
        "the following scientific question. " + rest
    )


def test_only_the_first_question_of_a_conversation_has_the_context() -> None:
    turns = [user("One?"), Message("assistant", (TextBlock("Yes."),)), user("Two?")]
    row = text_of(render(turns, "vicuna_v1", with_target=False, context="instruction"))
    assert row.count("@") == 1 and row.endswith("One? ASSISTANT:Yes.USER: Two? ASSISTANT:")


def test_the_released_wording_lacks_a_space() -> None:
    assert "to answerthe following question." in CONTEXT_TEMPLATES["released_instruction"].after
    assert "answerthe" not in CONTEXT_TEMPLATES["instruction"].after


def test_a_batch_holds_shots_flat_and_none_as_padding() -> None:
    batch: Any = Collator(tiny_camml_processor(), training=True)(tiny_shot_examples(4))
    assert batch["shot_counts"].tolist() == [1, 3, 0, 2]
    assert batch["shot_pixel_values"].shape == (6, 3, 28, 28)
    assert batch["shot_image_counts"].tolist() == [1] * 6
    assert batch["shot_input_ids"].shape == batch["shot_attention_mask"].shape
    assert batch["image_counts"].tolist() == [1, 0, 1, 2]  # those of the questions
    places = (batch["input_ids"] == tiny_camml().config.context_token_id).sum(1)
    assert places.tolist() == [6, 6, 0, 6]
    context = batch["input_ids"] == tiny_camml().config.context_token_id
    assert bool((batch["labels"][context] == -100).all())


def test_a_base_passes_shots_over() -> None:
    examples = tiny_shot_examples(2)
    bare = [replace(example, shots=()) for example in examples]
    collate = Collator(tiny_llava_processor(), training=True)
    batch, expected = collate(examples), collate(bare)
    assert shots_of(batch) is None
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_a_long_shot_is_cut_at_its_end() -> None:
    examples = tiny_shot_examples(1, (2,))
    whole = tiny_camml_processor().encode(examples[0], with_target=True).shots
    cut = tiny_camml_processor(max_shot_tokens=4).encode(examples[0], with_target=True).shots
    assert cut == tuple(ids[:4] for ids in whole)


def test_context_tokens_are_never_cut() -> None:
    (example,) = tiny_shot_examples(1, (2,))
    row = tiny_camml_processor(max_length=120).encode(example, with_target=True)
    assert len(row.input_ids) == 120 and "cut" in row.cut
    assert row.input_ids.count(tiny_camml().config.context_token_id) == 6


def test_data_show_names_the_context() -> None:
    text = describe(tiny_shot_examples(1)[0], tiny_camml_processor())
    assert "context  <context> x 6" in text


# --- the cache -----------------------------------------------------------------------------------


def test_cached_shots_give_the_same_answers_and_are_encoded_once() -> None:
    model, processor = tiny_camml(), tiny_camml_processor()
    examples = tiny_shot_examples(4)
    encoded = []
    model.camml.vision_perceiver.register_forward_pre_hook(
        lambda _, inputs: encoded.append(len(inputs[0]))
    )
    fresh: Any = Collator(processor, training=False)(examples)
    expected = model.generate(**fresh, **GREEDY)
    logits = model(**fresh).logits
    encoded.clear()
    cache = ShotCache(model, processor, batch_size=4)
    collate = Collator(processor, training=False, shots=cache)
    for _ in range(2):
        batch: Any = collate(examples)
        assert "shot_pixel_values" not in batch
        assert_close(model(**batch).logits, logits, atol=5e-6, rtol=0)
        assert torch.equal(model.generate(**batch, **GREEDY), expected)
    assert encoded == [4, 2]


def test_an_edited_entry_is_encoded_anew() -> None:
    cache = ShotCache(tiny_camml(), tiny_camml_processor())
    (example,) = tiny_shot_examples(1, (2,))
    cache.get(example.shots)
    first = example.shots[0]
    said = Message("assistant", (TextBlock("a blue ball."),))
    cache.get([replace(first, messages=(first.messages[0], said))])
    cache.get([replace(first, images=(tiny_image(5),))])
    assert len(cache.entries) == 4


def test_released_caches_what_a_shot_is_alone() -> None:
    model = tiny_camml(behavior="released")
    examples = tiny_shot_examples(1, (3,))
    processor = tiny_camml_processor()
    fresh: Any = Collator(processor, training=False)(examples)
    cached: Any = Collator(processor, training=False, shots=ShotCache(model, processor))(examples)
    assert_close(model(**cached).logits, model(**fresh).logits, atol=5e-6, rtol=0)


def test_a_saved_cache_is_read_by_the_same_model_only(tmp_path) -> None:
    model, processor = tiny_camml(), tiny_camml_processor()
    shots = tiny_shot_examples(1, (3,))[0].shots
    cache = ShotCache(model, processor)
    with pytest.raises(PolyptychError, match="0 encoded shots to write"):
        cache.save(tmp_path / "shots.safetensors")
    expected = cache.get(shots)
    cache.save(tmp_path / "shots.safetensors")
    again = ShotCache(model, processor)
    again.load(tmp_path / "shots.safetensors")
    assert again.entries.keys() == cache.entries.keys()
    for name, value in again.get(shots).items():
        assert torch.equal(value, expected[name])
    with pytest.raises(PolyptychError, match=r"shots encoded by model .*, not by"):
        ShotCache(tiny_camml(seed=1), processor).load(tmp_path / "shots.safetensors")
    (tmp_path / "torn").write_bytes((tmp_path / "shots.safetensors").read_bytes()[:100])
    with pytest.raises(PolyptychError, match="torn: no readable encoded shots"):
        again.load(tmp_path / "torn")


# --- bad input -----------------------------------------------------------------------------------


def test_a_shot_without_text_is_named() -> None:
    (example,) = tiny_shot_examples(1, (2,))
    mute = replace(example.shots[1], messages=(user(None),))
    example = replace(example, shots=(example.shots[0], mute))
    with pytest.raises(PolyptychError, match=r"example tiny-0: shot 2 \(shot-0-1\) has no text"):
        tiny_camml_processor().encode(example, with_target=True)


def test_an_image_of_a_shot_that_is_gone_is_named(tmp_path) -> None:
    (example,) = tiny_shot_examples(1, (1,))
    gone = replace(example.shots[0].images[0], path=str(tmp_path / "gone.png"), data=None)
    shot = replace(example.shots[0], images=(gone,))
    with pytest.raises(PolyptychError, match=r"example tiny-0, shot shot-0-0.*gone\.png"):
        Collator(tiny_camml_processor(), training=True)([replace(example, shots=(shot,))])


def test_context_tokens_need_an_id_and_a_place() -> None:
    with pytest.raises(PolyptychError, match="6 context tokens need a context_token_id"):
        tiny_camml_processor(context_token_id=None)
    processor = tiny_camml_processor(layout="images_first")
    with pytest.raises(PolyptychError, match="1 shots have no place in the layout images_first"):
        processor.encode(tiny_shot_examples(1)[0], with_target=True)


def test_a_processor_for_another_number_of_context_tokens_is_refused(tmp_path) -> None:
    tiny_camml().save_pretrained(tmp_path)
    tiny_camml_processor().save_pretrained(tmp_path)
    model, processor = load_model(tmp_path)
    assert processor.context_tokens == model.config.context_tokens == 6
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "context_tokens": 8}))
    with pytest.raises(PolyptychError, match="takes 6 context tokens, its processor makes 8"):
        load_model(tmp_path)
