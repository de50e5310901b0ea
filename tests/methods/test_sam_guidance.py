"""What guidance must and must not do, in both forms."""

from __future__ import annotations

import pytest
import torch

from polyptych.data.collation import Collator
from polyptych.methods.sam.guidance import PaperGuidance, context_mask, image_slots
from polyptych.methods.sam.model import PolyptychSamConfig
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

FORMS = ("released", "paper")


def batch_of(*image_counts: int):
    examples = tiny_examples(len(image_counts), image_counts)
    return Collator(tiny_processor(), training=True)(examples)


def tokens_of(model, batch):
    """Visual tokens per image (I, Q, D)."""
    names = ("pixel_values", "image_counts", "qformer_input_ids", "qformer_attention_mask")
    with torch.inference_mode():
        tokens = model.encode_images(**{name: batch[name] for name in names}).visual_tokens
    return tokens.unflatten(0, (-1, model.config.num_query_tokens))


@pytest.mark.parametrize("form", FORMS)
def test_zero_initialized_guidance_is_the_base(form):
    model, batch = tiny_model(form, zero_init=True), batch_of(2, 3, 1, 0)
    guided = tokens_of(model, batch)
    with model.guidance_disabled():
        assert torch.allclose(tokens_of(model, batch), guided, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_guidance_changes_every_image_of_a_group(form):
    model, batch = tiny_model(form), batch_of(2, 3)
    guided = tokens_of(model, batch)
    with model.guidance_disabled():
        change = (guided - tokens_of(model, batch)).abs().amax(dim=(1, 2))
    assert (change > 1e-3).all()


def test_lone_image_equals_the_base_exactly_in_the_paper_form():
    model, batch = tiny_model("paper"), batch_of(1, 1)
    guided = tokens_of(model, batch)
    with model.guidance_disabled():
        assert torch.equal(tokens_of(model, batch), guided)


def test_lone_image_guides_itself_in_the_released_form():
    """The published five-dimensional input with one image does; the four-dimensional does not."""
    model, batch = tiny_model("released"), batch_of(1)
    guided = tokens_of(model, batch)
    with model.guidance_disabled():
        assert (guided - tokens_of(model, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_examples_of_a_batch_do_not_guide_each_other(form):
    model, batch = tiny_model(form), batch_of(2, 3)
    before = tokens_of(model, batch)
    batch["pixel_values"][3] += 1.0  # an image of the second example
    after = tokens_of(model, batch)
    assert torch.equal(before[:2], after[:2])
    assert ((after - before)[2:].abs().amax(dim=(1, 2)) > 1e-4).all()


@pytest.mark.parametrize("form", FORMS)
def test_swapping_two_images_swaps_their_tokens(form):
    model, batch = tiny_model(form), batch_of(3)
    before = tokens_of(model, batch)
    order = torch.tensor([2, 1, 0])
    batch["pixel_values"] = batch["pixel_values"][order]
    torch.testing.assert_close(tokens_of(model, batch), before[order], atol=1e-5, rtol=0)


def test_context_of_the_paper_form_leaves_the_own_image_out():
    """With the exchange told nothing (query_to_w zero), c_j depends on the other images only."""
    model, batch = tiny_model("paper"), batch_of(2)
    torch.nn.init.zeros_(model.connector.guidance.query_to_w.weight)
    torch.nn.init.zeros_(model.connector.guidance.query_to_w.bias)
    semantics = []
    for shift in (0.0, 1.0):
        batch["pixel_values"][0] += shift
        record = {}
        names = ("pixel_values", "image_counts", "qformer_input_ids", "qformer_attention_mask")
        model.encode_images(**{name: batch[name] for name in names}, record=record)
        semantics.append(record["contextual_semantics"])
    assert torch.equal(semantics[0][0], semantics[1][0])
    assert (semantics[0][1] - semantics[1][1]).abs().max() > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_all_guidance_weights_once_the_exchange_has_moved(form):
    batch = batch_of(2, 3)
    zero = tiny_model(form, zero_init=True).train()
    zero(**batch).loss.backward()
    guidance = zero.connector.guidance
    assert guidance.w_to_query.weight.grad.any()
    assert not guidance.query_to_w.weight.grad.any()
    moved = tiny_model(form).train()
    moved(**batch).loss.backward()
    silent = [
        name
        for name, p in moved.connector.guidance.named_parameters()
        if p.grad is None or not p.grad.any()
    ]
    # The tower's last text feed-forward and, being a softmax bias, the score's offset cannot count.
    assert all("text_ffn" in n or n.endswith(("score.bias", "key.bias")) for n in silent), silent


def test_slots_of_ragged_examples_and_what_they_may_choose():
    image, filled = image_slots(torch.tensor([2, 0, 3, 1]), torch.tensor([0, 2]))
    assert image.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert filled.int().tolist() == [[1, 1, 0], [1, 1, 1]]
    visible = context_mask(filled[..., None], num_queries=1)[:, 0].int()
    assert visible[0].tolist() == [[0, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert visible[1].tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    ragged = torch.tensor([[[True, True], [True, False]]])
    visible = context_mask(ragged, num_queries=2)[0, 0].int()
    assert visible.tolist() == [[0, 0, 1, 0]] * 2 + [[1, 1, 0, 0]] * 2


def test_exchange_layers_that_leave_no_second_look_are_refused():
    qformer = tiny_model("paper").connector.qformer
    with pytest.raises(ValueError, match="no cross-attention"):
        PaperGuidance(qformer, 24, exchange_from=3, exchange_to=3)
    with pytest.raises(ValueError, match="no cross-attention"):
        PaperGuidance(qformer, 24, exchange_from=0, exchange_to=1)


def test_default_exchange_layers_of_the_published_size():
    """12 layers that look in even ones: h enters before layer 8, c leaves after 9, 10 looks."""
    config = PolyptychSamConfig(qformer_config={"num_hidden_layers": 12})
    assert (config.exchange_from, config.exchange_to) == (8, 9)


def test_w_former_starts_as_a_copy_of_the_current_q_former():
    model = tiny_model("paper", zero_init=True)
    with torch.no_grad():
        model.connector.qformer.query_tokens.add_(1.0)
    model.copy_qformer_to_w_former()
    tower = model.connector.guidance.w_former.tower
    assert torch.equal(tower.query_tokens, model.connector.qformer.query_tokens)
