"""The base over every decoder and encoder: batches, beams, caches, files, Trainer, PEFT."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

DECODERS = ("llama", "qwen2", "gpt2", "opt")
VISION = ("instructblip_vision_model", "clip_vision_model", "siglip_vision_model", "resnet")
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def batches(examples, training):
    collate = Collator(tiny_processor(), training=training)
    return collate(examples), [collate([example]) for example in examples]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("guidance", ("off", "released", "paper"))
def test_mixed_batch_equals_one_by_one(decoder, guidance):
    model = tiny_model(guidance, decoder)
    together, alone = batches(tiny_examples(4), training=True)
    logits = model(**together).logits
    for row, batch in enumerate(alone):
        single = model(**batch).logits[0]
        torch.testing.assert_close(logits[row, : len(single)], single, atol=2e-6, rtol=0)


@pytest.mark.parametrize("vision", VISION)
def test_every_vision_encoder_reaches_the_answer(vision):
    model = tiny_model(vision=vision)
    batch, _ = batches(tiny_examples(2), training=True)
    before = model(**batch).logits
    batch["pixel_values"] = batch["pixel_values"].flip(-1)
    assert (model(**batch).logits - before).abs().max() > 1e-6


@pytest.mark.parametrize("decoder", DECODERS)
def test_left_padded_generation_equals_one_by_one(decoder):
    model = tiny_model(decoder=decoder)
    together, alone = batches(tiny_examples(4), training=False)
    ids = model.generate(**together, **GREEDY)[:, together["input_ids"].shape[1] :]
    for row, batch in enumerate(alone):
        single = model.generate(**batch, **GREEDY)[0, batch["input_ids"].shape[1] :]
        assert single.tolist() == ids[row, : len(single)].tolist()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("guidance", ("released", "paper"))
def test_beams_with_one_prefill_equal_beams_without_cache(decoder, guidance):
    """Without a cache every step reads every beam's whole row: nothing of the shortcut is left."""
    model = tiny_model(guidance, decoder)
    batch, _ = batches(tiny_examples(3), training=False)
    settings = {**GREEDY, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    short = model.generate(**batch, **settings)
    full = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(short.sequences, full.sequences)
    torch.testing.assert_close(short.sequences_scores, full.sequences_scores, atol=1e-5, rtol=0)


def test_prompt_is_read_once_for_all_beams():
    model = tiny_model()
    batch, _ = batches(tiny_examples(3), training=False)
    rows = []
    model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    images = []
    model.vision_encoder.register_forward_pre_hook(lambda _, args: images.append(len(args[0])))
    model.generate(**batch, **GREEDY, num_beams=5)
    width = batch["input_ids"].shape[1]
    assert rows[0] == (3, width) and all(shape == (15, 1) for shape in rows[1:])
    assert images == [int(batch["image_counts"].sum())]


def test_sampled_sequences_share_the_prefill():
    model = tiny_model()
    batch, _ = batches(tiny_examples(2), training=False)
    ids = model.generate(
        **batch, max_new_tokens=4, do_sample=True, num_return_sequences=3, pad_token_id=0
    )
    assert len(ids) == 6


def test_image_token_is_never_generated():
    model = tiny_model()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[model.config.image_token_id] = 100 * head.weight.abs().max()
    batch, _ = batches(tiny_examples(4), training=False)
    ids = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    assert (ids != model.config.image_token_id).all()


def test_cached_features_equal_pixels():
    model = tiny_model()
    batch, _ = batches(tiny_examples(3), training=True)
    loss = model(**batch).loss
    features = model.vision_encoder(batch.pop("pixel_values"))
    torch.testing.assert_close(model(**batch, image_features=features).loss, loss)


def test_wrong_number_of_placeholders_names_both_numbers():
    model = tiny_model()
    batch, _ = batches(tiny_examples(2), training=True)
    place = (batch["input_ids"][1] == model.config.image_token_id).nonzero()[0, 0]
    batch["input_ids"][1, place] = 5
    with pytest.raises(PolyptychError, match=r"row 1 .* 8 image placeholders for 9 visual tokens"):
        model(**batch)
    batch["image_counts"] = torch.tensor([2, 2])
    with pytest.raises(PolyptychError, match="4 images, 5 were given"):
        model(**batch)


def test_placeholders_without_images_are_refused():
    model = tiny_model()
    batch, _ = batches(tiny_examples(1), training=True)
    batch.pop("pixel_values")
    with pytest.raises(PolyptychError, match="6 image placeholders, but 0 images"):
        model(**batch)


@pytest.mark.parametrize("decoder", DECODERS)
def test_save_and_load_through_the_auto_class(decoder, tmp_path):
    model = tiny_model(decoder=decoder)
    model.save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.bin"))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    batch, _ = batches(tiny_examples(3), training=True)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_text_only_batch_gives_the_connector_a_zero_gradient():
    """Otherwise a process with a text-only batch would leave the others waiting."""
    model = tiny_model().train()
    batch, _ = batches(tiny_examples(1, image_counts=(0,)), training=True)
    model(**batch).loss.backward()
    gradients = [p.grad for p in model.connector.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


@pytest.mark.parametrize("guidance", ("released", "paper"))
def test_gradients_in_plain_fp32_and_with_checkpointing(guidance):
    batch, _ = batches(tiny_examples(3), training=True)
    found = []
    for checkpointing in (False, True):
        model = tiny_model(guidance).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch, use_cache=False).loss.backward()
        found.append(
            {n: p.grad.clone() for n, p in model.connector.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_plain_trainer_learns(tmp_path):
    model = tiny_model()
    losses = []
    examples = tiny_examples(8)
    arguments = TrainingArguments(
        tmp_path,
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples,
        data_collator=Collator(tiny_processor(), training=True),
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_intermediates_are_named_only_when_asked_for():
    model = tiny_model()
    batch, _ = batches(tiny_examples(2), training=True)
    assert model(**batch).intermediates is None
    record = model(**batch, return_intermediates=True).intermediates
    count = int(batch["image_counts"].sum())
    assert record["visual_tokens"].shape == (3 * count, 48)
    assert record["image_features"].shape[0] == count
    looked = record["attention.layer.3"]
    torch.testing.assert_close(looked.sum(-1), torch.ones(count))


def test_lone_prompt_through_the_processor_as_users_call_it():
    processor, model = tiny_processor(), tiny_model()
    example = tiny_examples(1)[0]
    from polyptych.data.images import load_image

    images = [load_image(ref) for ref in example.images]
    text = "picture 1: <image>picture 2: <image>what do these pictures have in common?"
    batch = processor(images=images, text=text)
    expected = Collator(processor, training=False)(
        [dataclasses.replace(example, messages=example.prompt)]
    )
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert model.generate(**batch, **GREEDY).shape[0] == 1
    with pytest.raises(PolyptychError, match="1 <image> for 2 images"):
        processor(images=images, text="<image>what?")
