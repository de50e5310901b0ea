"""What holds on every family: the alarm for changes in transformers and for new families."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from family_bases import KINDS, MIXED, adapted, answers, base_model, example, logits_of, theirs
from peft import PeftModel, get_peft_model
from torch.nn import functional

from polyptych.adapters.adapt import adapt
from polyptych.adapters.base import METHODS
from polyptych.adapters.camml import Camml
from polyptych.adapters.lora import lora_config
from polyptych.adapters.sam import Sam
from polyptych.adapters.vpgc import VpgC
from polyptych.errors import PolyptychError

pytestmark = pytest.mark.parametrize("kind", KINDS)

GREEDY = {"max_new_tokens": 3, "do_sample": False}
SMALL = Camml(num_query_tokens=2, layers=1)


def test_untrained_methods_are_the_base_bit_for_bit(kind: str) -> None:
    base, (model, processor) = base_model(kind), adapted(kind, VpgC(), Sam(), SMALL)
    batch = processor.collate(MIXED, training=True)
    assert torch.equal(logits_of(base, theirs(batch)), logits_of(model, batch))
    prompts = processor.collate(MIXED[:2], training=False)
    base.generation_config.suppress_tokens = model.generation_config.suppress_tokens
    for beams in (1, 2):
        want = base.generate(**theirs(prompts), **GREEDY, num_beams=beams)
        assert torch.equal(want, model.generate(**prompts, **GREEDY, num_beams=beams))


def test_trained_methods_act_and_disabled_ones_give_the_base_back(kind: str) -> None:
    base, (model, processor) = base_model(kind), adapted(kind, Sam(), VpgC(), drawn=0.3)
    batch = processor.collate(MIXED, training=True)
    want, got = logits_of(base, theirs(batch)), logits_of(model, batch)
    with model.methods_disabled():
        assert torch.equal(want, logits_of(model, batch))
    # No image: nothing to guide or to read again. Everyone else's answer moves.
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(answers(want, batch), answers(got, batch), strict=True)
    ]
    assert moved[1] < 1e-6 and min(moved[0], moved[2], moved[3]) > 1e-3


def test_a_mixed_batch_is_its_examples_one_by_one(kind: str) -> None:
    model, processor = adapted(kind, Sam(), VpgC(), drawn=0.3)
    batch = processor.collate(MIXED, training=True)
    together = answers(logits_of(model, batch), batch)
    for one, want in zip(MIXED, together, strict=True):
        alone = processor.collate([one], training=True)
        (got,) = answers(logits_of(model, alone), alone)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def test_guidance_follows_its_images_and_leaves_a_lone_one_alone(kind: str) -> None:
    model, processor = adapted(kind, Sam(), drawn=0.3)
    seen: list[Any] = []
    model.seams.modules["sam"].register_forward_hook(
        lambda m, args, out: seen.append((args[0], out))
    )
    for images in ((1, 2), (2, 1), (1,)):
        logits_of(model, processor.collate([example("e", images)], training=True))
    (one, first), (_, swapped), (_, lone) = seen
    size = int(one.tokens_per_image[0])
    torch.testing.assert_close(first[:size], swapped[-size:], atol=1e-4, rtol=1e-5)
    assert one.image_counts.tolist() == [2] and float(first.abs().max()) > 1e-3
    assert not lone.any()


def test_every_weight_learns_and_checkpointing_changes_nothing(kind: str) -> None:
    model, processor = adapted(kind, Sam(), VpgC(), SMALL, drawn=0.3)
    shots = [example("s", (7,)), example("t", ())]
    asked = [_with(one, shots) for one in MIXED[:2]]
    batch = processor.collate([*asked, *MIXED[2:]], training=True)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    still = [n for n, g in gradients[0].items() if g is None or not g.abs().sum() > 0]
    # A score that is added to all keys alike, and a key's bias, cannot matter to a softmax.
    assert not [n for n in still if not n.endswith(("score.bias", "key.bias"))]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_batch_without_images_touches_every_weight(kind: str) -> None:
    model, processor = adapted(kind, Sam(), VpgC(), SMALL)
    model.train()
    model(**processor.collate([MIXED[1]], training=True)).loss.backward()
    gradients = [p.grad for p in model.seams.modules.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_generation_is_the_same_by_every_way(kind: str) -> None:
    model, processor = adapted(kind, Sam(), VpgC(), drawn=0.3)
    prompts = processor.collate([MIXED[0], MIXED[3]], training=False)
    width = prompts["input_ids"].shape[1]
    scored = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    cached = model.generate(**prompts, **scored)
    for way in ({"use_cache": False}, {"cache_implementation": "static"}):
        other = model.generate(**prompts, **scored, **way)
        assert torch.equal(cached.sequences, other.sequences)
        for a, b in zip(cached.scores, other.scores, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    beams = model.generate(**prompts, **scored, num_beams=3, length_penalty=0.0)
    whole = _lengthened(prompts, beams.sequences)
    said = beams.sequences[:, width:]
    scores = logits_of(model, whole).log_softmax(-1)[:, width - 1 : -1]
    ends = (said == processor.tokenizer.eos_token_id).long()
    counted = ends.cumsum(1) - ends == 0  # up to the first end
    rescored = (scores.gather(2, said[..., None])[..., 0] * counted).sum(1)
    torch.testing.assert_close(beams.sequences_scores, rescored, atol=2e-5, rtol=0)


def test_context_placeholders_read_what_stands_in_their_place(kind: str) -> None:
    base, (model, processor) = base_model(kind), adapted(kind, SMALL)
    asked = _with(MIXED[0], [example("s", (7,))])
    batch = processor.collate([asked, MIXED[1]], training=True)
    words = torch.tensor([[20, 21, 22, 23]])
    table = model.get_input_embeddings()
    model.seams.modules["camml"].forward = lambda *shots: table(words)
    plain = {n: v for n, v in theirs(batch).items() if not n.startswith("shot_")}
    ids = plain["input_ids"].clone()
    here = ids == model.seams.context_token_id
    assert here.sum(1).tolist() == [4, 0]
    plain["input_ids"] = ids.masked_scatter(here, words)
    torch.testing.assert_close(logits_of(base, plain), logits_of(model, batch), atol=2e-5, rtol=0)


def test_wrong_numbers_and_chunks_are_refused(kind: str) -> None:
    model, processor = adapted(kind, Sam(), VpgC())
    batch = processor.collate([MIXED[0]], training=True)
    visual = batch["input_ids"] == model.config.image_token_id
    fewer = batch["input_ids"].clone()
    fewer[0, int(visual[0].nonzero()[0])] = 20
    found, all_of_them = int(visual.sum()) - 1, int(visual.sum())
    with pytest.raises(
        PolyptychError, match=rf"{found} image placeholders .* {all_of_them} visual"
    ):
        model(**{**batch, "input_ids": fewer})
    with pytest.raises(PolyptychError, match="2 images by its placeholders, 3 by image_counts"):
        model(**{**batch, "image_counts": torch.tensor([3])})
    with pytest.raises(PolyptychError, match="images with inputs_embeds alone"):
        embeds = model.get_input_embeddings()(batch["input_ids"])
        model(**{**batch, "input_ids": None, "inputs_embeds": embeds})
    prompts = processor.collate([MIXED[0]], training=False)
    with pytest.raises(PolyptychError, match="chunks of 8 tokens"):
        model.generate(**prompts, **GREEDY, prefill_chunk_size=8)


def test_the_end_of_a_prompt_is_found_where_nobody_names_it(kind: str) -> None:
    model, processor = adapted(kind, VpgC(), drawn=0.3)
    batch = processor.collate(MIXED, training=True)
    assert torch.equal(logits_of(model, batch), logits_of(model, theirs(batch)))


def test_an_adapter_comes_back_from_its_file(kind: str, tmp_path: Any) -> None:
    model, processor = adapted(kind, Sam(), VpgC(), SMALL, drawn=0.3)
    batch = processor.collate(MIXED, training=True)
    model.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*"))
    base = base_model(kind)
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    record = tmp_path / "adapter" / "polyptych_adapter.json"
    named = record.read_text().replace('"name": ""', f'"name": "{tmp_path / "base"}"')
    record.write_text(named)
    again, its_processor = adapt(tmp_path / "adapter")
    assert again.methods == model.methods
    again_batch = its_processor.collate(MIXED, training=True)
    assert again_batch.keys() == batch.keys()
    assert all(torch.equal(again_batch[name], batch[name]) for name in batch)
    assert torch.equal(logits_of(model, batch), logits_of(again, batch))


def test_lora_and_methods_train_together_and_come_apart(kind: str, tmp_path: Any) -> None:
    model, processor = adapted(kind, Sam(), VpgC(), drawn=0.3)  # as if trained before
    batch = processor.collate(MIXED[:1], training=True)
    start = logits_of(model, batch)
    tuned = get_peft_model(copy.deepcopy(model), lora_config(model, rank=2))
    learning = [n for n, p in tuned.named_parameters() if p.requires_grad]
    assert any("lora_" in n for n in learning) and any(METHODS in n for n in learning)
    assert not [n for n in learning if "vision" in n or "visual" in n]
    reference = _first_dpo_loss(tuned, processor, batch)
    assert reference == pytest.approx(math.log(2), abs=1e-6)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        tuned(**batch).loss.backward()
        optimizer.step()
    tuned.eval()
    trained = logits_of(tuned, batch)
    assert float((trained - start).abs().max()) > 1e-3
    with tuned.disable_adapter():
        assert torch.equal(start, logits_of(tuned, batch))
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model, tmp_path)
    assert torch.equal(trained, logits_of(loaded, batch))
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, batch), trained, atol=2e-5, rtol=0)


def _first_dpo_loss(tuned: Any, processor: Any, batch: dict[str, Any]) -> float:
    """Chosen: the batch's answer; rejected: the same ids in reverse. Reference: adapters off."""
    labels = batch["labels"]
    rejected = batch["input_ids"].clone()
    rejected[labels != -100] = labels[labels != -100].flip(0)
    sums = []
    for ids in (batch["input_ids"], rejected):
        row = {**batch, "input_ids": ids, "labels": None}
        with torch.no_grad():
            policy = _answer_log_probability(logits_of(tuned, row), ids, labels)
            with tuned.disable_adapter():
                reference = _answer_log_probability(logits_of(tuned, row), ids, labels)
        sums.append(policy - reference)
    return float(-functional.logsigmoid(0.1 * (sums[0] - sums[1])))


def _answer_log_probability(logits: Any, ids: Any, labels: Any) -> Any:
    said = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return said[labels[:, 1:] != -100].sum()


def _lengthened(prompts: dict[str, Any], sequences: torch.Tensor) -> dict[str, Any]:
    """A prompt batch with other, longer rows of ids."""
    more = sequences.shape[1] - prompts["input_ids"].shape[1]
    batch = {**prompts, "input_ids": sequences}
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in batch:
            fill = 1 if name == "attention_mask" else 0
            batch[name] = functional.pad(batch[name], (0, more), value=fill)
    return batch


def _with(one: Any, shots: list[Any]) -> Any:
    return replace(one, shots=tuple(shots))
