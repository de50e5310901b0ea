"""What VPG-C must and must not do to its base, over several decoders."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, StoppingCriteriaList

from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.language.halves import decoder_layers
from polyptych.methods.cheetah.conversion import VPGC_TENSORS
from polyptych.methods.cheetah.model import PolyptychCheetahConfig
from polyptych.methods.cheetah.released import freeze_to_released
from polyptych.methods.cheetah.released_generation import StopAtIds
from polyptych.testing import tiny_cheetah, tiny_examples, tiny_processor

DECODERS = ("llama", "qwen2", "opt")
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
CLOSE = {"atol": 3e-6, "rtol": 0}


def batch_of(*image_counts: int, training: bool = True):
    examples = tiny_examples(len(image_counts), image_counts)
    return Collator(tiny_processor(), training=training)(examples)


def singles(*image_counts: int, training: bool = True):
    collate = Collator(tiny_processor(), training=training)
    return [collate([e]) for e in tiny_examples(len(image_counts), image_counts)]


def deep(decoder: str = "llama", layers: int = 4, **config):
    """A decoder with layers below and above the injection."""
    text = {**tiny_cheetah(decoder).config.text_config.to_dict(), "num_hidden_layers": layers}
    text.pop("layer_types", None)  # one entry per layer
    return tiny_cheetah(decoder, text_config=text, **config)


@torch.no_grad()
def logits_of(model, batch):
    return model(**batch).logits


# --- the base ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_at_the_start_it_is_the_base_bit_for_bit(decoder) -> None:
    model, batch = tiny_cheetah(decoder, zero_init=True), batch_of(2, 3, 1, 0)
    changed = logits_of(model, batch)
    with model.vpgc_disabled():
        assert torch.equal(changed, logits_of(model, batch))
    prompts = batch_of(2, 1, training=False)
    ids = model.generate(**prompts, **GREEDY)
    with model.vpgc_disabled():
        assert torch.equal(ids, model.generate(**prompts, **GREEDY))


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_row_with_images_is_changed_and_only_those(decoder) -> None:
    model, batch = deep(decoder), batch_of(2, 3, 1, 0)
    changed = logits_of(model, batch)
    with model.vpgc_disabled():
        base = logits_of(model, batch)
    assert logits_of(model, batch).equal(changed), "VPG-C is on again"
    apart = (changed - base).abs().amax(dim=(1, 2))
    assert (apart[:3] > 1e-3).all() and apart[3] == 0


def test_only_visual_tokens_are_changed_where_layer_k_is_entered() -> None:
    model, batch = deep(), batch_of(2, 0, 1)
    with torch.no_grad():
        states = model(**batch, return_intermediates=True).intermediates
    residual = states["vpgc.after"] - states["vpgc.before"]
    visual = batch["input_ids"] == model.config.image_token_id
    assert not residual[~visual].any()
    torch.testing.assert_close(residual[visual], states["vpgc.residual"].flatten(0, 1))


def test_the_guidance_is_the_raw_output_of_the_layer_below_at_the_last_prompt_token() -> None:
    model, batch = deep(injection_layer=3), batch_of(2, 1)
    kept = {}
    layers = decoder_layers(model.get_decoder())
    layers[2].register_forward_hook(lambda _m, _a, output: kept.update(states=output))
    with torch.no_grad():
        found = model(**batch, return_intermediates=True).intermediates
    expected = kept["states"][torch.arange(2), batch["last_prompt"]]
    assert torch.equal(found["vpgc.guidance_hidden"], expected)
    assert (batch["labels"][torch.arange(2), batch["last_prompt"]] == -100).all()
    assert (batch["labels"][torch.arange(2), batch["last_prompt"] + 1] != -100).all()


def test_the_answer_does_not_reach_the_guidance() -> None:
    model, batch = deep(), batch_of(2, 1)
    with torch.no_grad():
        before = model(**batch, return_intermediates=True).intermediates["vpgc.residual"]
        learned = batch["labels"] != -100
        batch["input_ids"] = torch.where(learned, 7, batch["input_ids"])
        after = model(**batch, return_intermediates=True).intermediates["vpgc.residual"]
    torch.testing.assert_close(before, after)


def test_another_question_sees_the_images_in_another_way() -> None:
    model, batch = deep(), batch_of(2)
    with torch.no_grad():
        before = model(**batch, return_intermediates=True).intermediates
        batch["input_ids"][0, batch["last_prompt"][0] - 2] = 7
        after = model(**batch, return_intermediates=True).intermediates
    assert torch.equal(before["visual_tokens"], after["visual_tokens"]), "the first look is blind"
    assert (before["vpgc.residual"] - after["vpgc.residual"]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_exchanging_images_changes_the_result() -> None:
    model, batch = deep(), batch_of(3)
    before = logits_of(model, batch)
    batch["pixel_values"] = batch["pixel_values"][[1, 0, 2]]
    assert (logits_of(model, batch) - before).abs().max() > 1e-4


# --- batches, padding, decoding ------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("training", (True, False), ids=("right", "left"))
def test_mixed_batch_equals_one_by_one(decoder, training) -> None:
    model, counts = deep(decoder), (2, 3, 1, 0)
    batch = batch_of(*counts, training=training)
    together = logits_of(model, batch)
    for row, single in enumerate(singles(*counts, training=training)):
        there = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together[row, there], logits_of(model, single)[0], **CLOSE)


@pytest.mark.parametrize("decoder", DECODERS)
def test_left_padded_generation_equals_one_by_one(decoder) -> None:
    model, counts = deep(decoder), (2, 3, 1, 0)
    batch = batch_of(*counts, training=False)
    ids = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for row, single in enumerate(singles(*counts, training=False)):
        alone = model.generate(**single, **GREEDY)[0, single["input_ids"].shape[1] :]
        assert alone.tolist() == ids[row, : len(alone)].tolist()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("beams", (1, 3))
def test_decoding_with_and_without_cache_agrees(decoder, beams) -> None:
    """Without a cache every step runs VPG-C again, from the prompt's last token."""
    model, batch = deep(decoder), batch_of(2, 0, 1, training=False)
    settings = {**GREEDY, "num_beams": beams, "return_dict_in_generate": True}
    settings["output_logits"] = beams == 1
    cached = model.generate(**batch, **settings)
    full = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(cached.sequences, full.sequences)
    if beams == 1:
        for left, right in zip(cached.logits, full.logits, strict=True):
            torch.testing.assert_close(left, right, **CLOSE)


def test_vpgc_runs_once_per_prompt_whatever_the_beams() -> None:
    model, batch = deep(), batch_of(2, 1, training=False)
    rows = []
    model.vpgc.residual_projection.register_forward_hook(lambda _m, a, _o: rows.append(len(a[0])))
    model.generate(**batch, **GREEDY, num_beams=4)
    assert rows == [3], "one look at three images, none in the steps after"


def test_a_row_that_ends_early_does_not_cut_the_others() -> None:
    """The published chat stops all rows when the first has ended."""
    model, batch = tiny_cheetah(seed=5), batch_of(3, 2, 1, training=False)
    width, settings = batch["input_ids"].shape[1], {**GREEDY, "max_new_tokens": 8}
    free = model.generate(**batch, **settings)[:, width:]
    end = free[0, 3:5].tolist()  # what the first row says in steps 4 and 5, and nobody else
    pairs = [[row[i : i + 2] for i in range(7)] for row in free.tolist()]
    assert [row.count(end) for row in pairs] == [1, 0, 0]
    stop = StoppingCriteriaList([StopAtIds([end, [5, 5, 5]], width)])
    ids = model.generate(**batch, **settings, stopping_criteria=stop)[:, width:]
    assert ids[0].tolist() == [*free[0, :5].tolist(), 0, 0, 0]
    assert torch.equal(ids[1:], free[1:])


def test_nothing_ends_in_the_prompt() -> None:
    stop = StopAtIds([[8], [6, 7]], prompt_width=2)
    rows = torch.tensor([[6, 7, 1, 8], [6, 7, 6, 7], [1, 8, 8, 1], [1, 6, 7, 6]])
    assert stop(rows, None).tolist() == [True, True, False, False]
    assert stop(rows[:, :3], None).tolist() == [False, False, True, False]


def test_the_second_look_reads_the_first_ones_keys_and_values() -> None:
    model, batch = deep(), batch_of(2, 1)
    calls = []
    for layer in model.connector.qformer.layers:
        if layer.has_cross_attention:
            layer.cross_attention.key.register_forward_hook(lambda *_: calls.append(1))
    logits_of(model, batch)
    assert len(calls) == 2, "once per layer with cross-attention"


# --- training ------------------------------------------------------------------------------------


def test_gradients_reach_vpgc_only_and_nothing_below_layer_k() -> None:
    model, batch = deep(), batch_of(2, 1, 0)
    assert set(freeze_to_released(model)) == set(VPGC_TENSORS)
    entered, left = [], []
    layers = decoder_layers(model.get_decoder())
    k = model.config.injection_layer
    layers[k - 1].register_forward_hook(lambda _m, _a, output: left.append(output.grad_fn))
    layers[k].self_attn.register_forward_hook(
        lambda _m, _a, kw, _o: entered.append(kw["hidden_states"].grad_fn), with_kwargs=True
    )
    outputs = model.train()(**batch, return_intermediates=True)
    assert left == [None] and outputs.intermediates["vpgc.before"].grad_fn is None
    assert entered[0] is not None
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in VPGC_TENSORS), name
        assert parameter.grad is None or parameter.grad.any(), name


def test_at_the_start_only_the_last_linear_learns() -> None:
    model, batch = tiny_cheetah(zero_init=True), batch_of(2, 1)
    freeze_to_released(model)
    model(**batch).loss.backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"vpgc.residual_projection.weight", "vpgc.residual_projection.bias"}


@pytest.mark.parametrize("decoder", DECODERS)
def test_activation_checkpointing_changes_nothing(decoder) -> None:
    """Also where another batch is read before backward computes the layers again."""
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = deep(decoder).train()
        freeze_to_released(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        injected = decoder_layers(model.get_decoder())[model.config.injection_layer]
        calls: list[bool] = []
        injected.self_attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(True))
        loss = model(**batch_of(2, 1)).loss
        model(**batch_of(0, 1, 3))
        loss.backward()
        runs.append(len(calls))
        gradients.append([loss.detach(), *(model.get_parameter(n).grad for n in VPGC_TENSORS)])
    assert runs == [2, 3], "once more with checkpointing"
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-8)


def test_a_text_only_batch_trains() -> None:
    model = tiny_cheetah().train()
    freeze_to_released(model)
    loss = model(**batch_of(0, 0)).loss
    assert torch.isfinite(loss)


# --- files, copies, adapters ---------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_save_and_load_through_the_auto_class(decoder, tmp_path: Path) -> None:
    model = deep(decoder, injection_layer=3)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.injection_layer == 3
    batch = batch_of(2, 1)
    assert torch.equal(logits_of(loaded.eval(), batch), logits_of(model, batch))


def test_a_copy_acts_with_its_own_vpgc() -> None:
    model, batch = deep(), batch_of(2, 1)
    before = logits_of(model, batch)
    copied = copy.deepcopy(model)
    assert torch.equal(logits_of(copied, batch), before)
    with torch.no_grad():
        copied.vpgc.residual_projection.weight.zero_()
        copied.vpgc.residual_projection.bias.zero_()
    assert torch.equal(logits_of(model, batch), before), "the original kept its weights"
    with model.vpgc_disabled():
        base = logits_of(model, batch)
    assert torch.equal(logits_of(copied, batch), base)


def test_peft_trains_lora_and_vpgc_together(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["vpgc"]
    )
    model = peft.get_peft_model(deep(), config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("vpgc.modules_to_save" in name for name in trained) == len(VPGC_TENSORS)
    batch = batch_of(2, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05
    changed = logits_of(model.eval(), batch)
    model.save_pretrained(tmp_path)
    fresh = deep()
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(loaded, batch), changed)
    with loaded.disable_adapter():
        torch.testing.assert_close(logits_of(loaded, batch), logits_of(deep(), batch))


# --- refusals ------------------------------------------------------------------------------------


def test_a_batch_without_the_end_of_its_prompts_is_refused() -> None:
    model, batch = tiny_cheetah(), batch_of(2, 1)
    del batch["last_prompt"]
    with pytest.raises(PolyptychError, match="2 examples came without last_prompt"):
        model(**batch)
    with model.vpgc_disabled():
        model(**batch)


@pytest.mark.parametrize("layer", (0, 2, 7, -1))
def test_a_layer_that_is_not_there_is_refused(layer) -> None:
    text = tiny_cheetah().config.text_config
    with pytest.raises(PolyptychError, match=rf"injection_layer {layer} is not between 1 and 1,"):
        PolyptychCheetahConfig(injection_layer=layer, text_config=text)


def test_half_of_the_layers_lie_below_by_default() -> None:
    for layers, middle in ((2, 1), (5, 2), (32, 16)):
        text = {"model_type": "llama", "num_hidden_layers": layers}
        assert PolyptychCheetahConfig(text_config=text).injection_layer == middle


def test_decoders_without_a_list_of_layers_are_refused_in_one_line() -> None:
    with pytest.raises(PolyptychError, match="GPT2Model keeps no list of layers"):
        tiny_cheetah("gpt2")


def test_words_before_the_first_image_may_be_read_already() -> None:
    model, batch = deep(), batch_of(2, training=False)
    with torch.no_grad():
        cache = model(input_ids=batch["input_ids"][:, :1], use_cache=True).past_key_values
        rest = {**batch, "input_ids": batch["input_ids"][:, 1:], "past_key_values": cache}
        rest["last_prompt"] = batch["last_prompt"] - 1
        logits = model(**rest).logits
    torch.testing.assert_close(logits, logits_of(model, batch)[:, 1:], **CLOSE)
