"""Labelled logits, and attention in bfloat16 steps: what they must not change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from polyptych.schema import IGNORE_INDEX
from polyptych.training.cpu_attention import Float32Attention, attention_for
from polyptych.training.labelled import (
    adds_to_the_loss,
    chosen_states,
    labelled_loss,
    predicting,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(0, 60, (3, 9))
    labels = ids.clone()
    labels[0, :5] = IGNORE_INDEX
    labels[1, 2:6] = IGNORE_INDEX  # answers of two turns; the first token's label predicts nothing
    labels[2] = IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


@pytest.mark.parametrize("count", [None, 40])
def test_the_loss_and_its_gradient_are_those_of_all_positions(model, batch, count) -> None:
    inputs, labels = batch
    whole = ForCausalLMLoss(model(**inputs).logits, labels, 60, num_items_in_batch=count)
    whole.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with chosen_states(model.lm_head, *predicting(labels)):
        outputs = model(**inputs)
    assert outputs.logits.shape == (4 + 4, 60)
    loss = labelled_loss(outputs, labels, count)
    loss.backward()
    torch.testing.assert_close(loss, whole)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])
    assert model(**inputs).logits.shape == (3, 9, 60)  # the head is as before


def test_rows_without_a_label_have_no_loss_and_a_gradient_of_zero(model, batch) -> None:
    inputs, labels = batch
    nothing = torch.full_like(labels, IGNORE_INDEX)
    with chosen_states(model.lm_head, *predicting(nothing)):
        loss = labelled_loss(model(**inputs), nothing)
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in model.parameters())


def test_a_loss_of_experts_is_left_to_the_model() -> None:
    def with_config(**fields):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**fields))
        return SimpleNamespace(config=config)

    assert adds_to_the_loss(with_config(output_router_logits=True))
    assert not adds_to_the_loss(with_config(output_router_logits=False))
    assert not adds_to_the_loss(with_config())


# --- Attention ------------------------------------------------------------------------------------


class _Attending(nn.Module):
    """A layer under autocast, and attention after it."""

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        query = self.linear(states)
        return scaled_dot_product_attention(query, states, states, attn_mask=mask)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)


@pytest.mark.parametrize("mask", [None, "select", "add"])
def test_attention_of_a_bfloat16_step_is_exact_to_float32(mask) -> None:
    torch.manual_seed(0)
    states, layer = torch.randn(2, 3, 5, 8), _Attending()
    masks = {
        None: None,
        "select": torch.ones(5, 5, dtype=torch.bool).tril(),
        "add": torch.zeros(5, 5, dtype=torch.bfloat16),
    }
    with torch.autocast("cpu", torch.bfloat16):
        query = layer.linear(states).float()
        with Float32Attention():
            output = layer(states, masks[mask])
    expected = scaled_dot_product_attention(
        query, states, states, attn_mask=masks[mask] if mask == "select" else None
    )
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected.bfloat16(), rtol=0, atol=0)
    output.sum().backward()
    assert layer.linear.weight.grad is not None


def test_outside_autocast_nothing_changes() -> None:
    states, layer = torch.randn(2, 3, 5, 8), _Attending()
    with Float32Attention():
        changed = layer(states, None)
    assert changed.dtype == torch.float32
    torch.testing.assert_close(changed, layer(states, None), rtol=0, atol=0)


def test_only_bfloat16_on_a_cpu_without_tiles_asks_for_it(monkeypatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert isinstance(attention_for("bf16", cpu), Float32Attention)
    for precision, device in (("fp32", cpu), ("bf16", torch.device("cuda", 0))):
        assert not isinstance(attention_for(precision, device), Float32Attention)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not isinstance(attention_for("bf16", cpu), Float32Attention)
