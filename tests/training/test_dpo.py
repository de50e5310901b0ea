"""The loss of preference tuning, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from polyptych.training.dpo import answer_log_probs, best_other_tokens, dpo_loss

# Probabilities of three words at three positions: chosen says word 0, rejected words 1 and 2.
PROBABILITIES = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
TARGETS = torch.tensor([0, 1, 2])
ANSWERS = torch.tensor([0, 1, 1])


def test_answers_are_scored_by_the_sum_over_their_tokens() -> None:
    chosen, rejected = answer_log_probs(PROBABILITIES.log(), TARGETS, ANSWERS, 1)
    assert chosen.tolist() == pytest.approx([math.log(0.5)])
    assert rejected.tolist() == pytest.approx([math.log(0.7) + math.log(0.1)])


def test_released_scores_the_best_other_token_of_rejected_answers_alone() -> None:
    logits = PROBABILITIES.log()
    assert best_other_tokens(logits, TARGETS).tolist() == [1, 0, 0]  # the runner-up, or the best
    chosen, rejected = answer_log_probs(logits, TARGETS, ANSWERS, 1, "released")
    assert chosen.tolist() == pytest.approx([math.log(0.5)])
    assert rejected.tolist() == pytest.approx([math.log(0.2) + math.log(0.6)])


def test_released_raises_a_rejected_token_that_is_the_likeliest() -> None:
    """The published variant's defect: descending makes this rejected token more probable."""
    logits = PROBABILITIES.log().requires_grad_()
    for variant, rises in (("plain", False), ("released", True)):
        logits.grad = None
        scores = answer_log_probs(logits, TARGETS, ANSWERS, 1, variant)
        dpo_loss(*scores, torch.zeros(1), torch.zeros(1)).losses.mean().backward()
        assert bool(-logits.grad[1, 1] > 0) is rises


def test_an_answer_without_tokens_scores_zero() -> None:
    chosen, rejected = answer_log_probs(torch.zeros(1, 4), torch.tensor([3]), torch.tensor([3]), 2)
    assert chosen.tolist() == [0.0, 0.0]
    assert rejected.tolist() == pytest.approx([0.0, math.log(0.25)])


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    chosen, _ = answer_log_probs(logits, torch.tensor([1, 2]), torch.tensor([0, 0]), 1)
    assert chosen.dtype == torch.float32
    wanted = logits.float().log_softmax(-1)
    assert float(chosen) == pytest.approx(float(wanted[0, 1] + wanted[1, 2]), abs=1e-5)


def losses(**options) -> tuple[float, float, float]:
    """Policy 2 and 1 nearer to the reference's -10 and -12 in margin: h = (2) - (-1) = 3."""
    loss = dpo_loss(
        torch.tensor([-8.0]),
        torch.tensor([-13.0]),
        torch.tensor([-10.0]),
        torch.tensor([-12.0]),
        **options,
    )
    return (
        float(loss.losses),
        float(loss.chosen_rewards),
        float(loss.rejected_rewards),
    )


def test_the_loss_compares_distances_from_the_reference() -> None:
    value, chosen, rejected = losses()
    assert value == pytest.approx(math.log(1 + math.exp(-0.1 * 3)))
    assert (chosen, rejected) == pytest.approx((0.2, -0.1))
    assert losses(beta=0.5)[0] == pytest.approx(math.log(1 + math.exp(-0.5 * 3)))
    assert losses(kind="hinge")[0] == pytest.approx(1 - 0.3)
    assert losses(reference_free=True)[0] == pytest.approx(math.log(1 + math.exp(-0.1 * 5)))


def test_it_starts_at_ln_2_with_a_gradient() -> None:
    policy = torch.tensor([-8.0, -3.0], requires_grad=True), torch.tensor([-9.0, -1.0])
    loss = dpo_loss(*policy, policy[0].detach(), policy[1])
    assert loss.losses.tolist() == pytest.approx([math.log(2)] * 2)
    assert float(loss.accuracy) == 0.0 and float(loss.margin) == 0.0
    loss.losses.mean().backward()
    assert policy[0].grad.tolist() == pytest.approx([-0.1 * 0.5 / 2] * 2)
