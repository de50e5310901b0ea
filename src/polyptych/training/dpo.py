"""The loss of direct preference optimization, as pure functions of logits.

Rafailov et al., arXiv 2305.18290, equation 7, in the two forms that SIMA (2405.15973) has: that of
the paper, and that of its published trainer file, which scores the rejected side in another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LossKind = Literal["sigmoid", "hinge"]
Variant = Literal["plain", "released"]


def token_log_probs(
    logits: Float[Tensor, "K V"], targets: Int[Tensor, " K"]
) -> Float[Tensor, " K"]:
    """Log-probability of each target, in float32."""
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def best_other_tokens(
    logits: Float[Tensor, "K V"], targets: Int[Tensor, " K"]
) -> Int[Tensor, " K"]:
    """The likeliest token of each position that is not its target."""
    best = logits.topk(2, dim=-1).indices
    return torch.where(best[:, 0] == targets, best[:, 1], best[:, 0])


def answer_log_probs(
    logits: Float[Tensor, "K V"],
    targets: Int[Tensor, " K"],
    answer: Int[Tensor, " K"],
    pairs: int,
    variant: Variant = "plain",
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Score whole answers: the sum over their tokens, 0 for one without any.

    Args:
        logits: Of the labelled positions alone, chosen and rejected ones in any order.
        targets: The token that each of them has to say.
        answer: The answer it belongs to: i < B the i-th chosen one, B + i the i-th rejected one.
        pairs: B.
        variant: ``plain`` as in the paper. ``released``: rejected answers are scored with
            :func:`best_other_tokens` in place of their own; so the policy is pushed away from what
            it would say instead, and where the rejected token is the likeliest, towards it.

    Returns:
        The scores of the B chosen and of the B rejected answers.
    """
    if variant == "released":
        targets = torch.where(answer < pairs, targets, best_other_tokens(logits, targets))
    scores = token_log_probs(logits, targets)
    sums = scores.new_zeros(2 * pairs).index_add(0, answer, scores)
    return sums[:pairs], sums[pairs:]


@dataclass(frozen=True, slots=True)
class DPOLoss:
    """Per pair: the loss, and the rewards that it compares (these without gradient)."""

    losses: Float[Tensor, " B"]
    chosen_rewards: Float[Tensor, " B"]
    rejected_rewards: Float[Tensor, " B"]

    @property
    def accuracy(self) -> Tensor:
        """Share of pairs whose chosen answer has the higher reward."""
        return (self.chosen_rewards > self.rejected_rewards).float().mean()

    @property
    def margin(self) -> Tensor:
        """Mean difference of the rewards."""
        return (self.chosen_rewards - self.rejected_rewards).mean()


def dpo_loss(
    policy_chosen: Float[Tensor, " B"],
    policy_rejected: Float[Tensor, " B"],
    reference_chosen: Float[Tensor, " B"],
    reference_rejected: Float[Tensor, " B"],
    *,
    beta: float = 0.1,
    kind: LossKind = "sigmoid",
    reference_free: bool = False,
) -> DPOLoss:
    """Compare two answers under the policy with the same under the reference.

    Arguments are scores of whole answers from :func:`answer_log_probs`. Where policy and reference
    are equal, as at the start, the sigmoid loss is ln 2.

    Args:
        policy_chosen: Of the better answers, with gradient.
        policy_rejected: Of the worse ones, with gradient.
        reference_chosen: The same by the frozen reference.
        reference_rejected: The same by the frozen reference.
        beta: Strength of the pull to the reference.
        kind: ``sigmoid``: -log sigmoid(beta h); ``hinge``: max(0, 1 - beta h).
        reference_free: Leave the reference out of h (the rewards keep it).
    """
    margin = policy_chosen - policy_rejected
    if not reference_free:
        margin = margin - (reference_chosen - reference_rejected)
    losses = -F.logsigmoid(beta * margin) if kind == "sigmoid" else torch.relu(1 - beta * margin)
    return DPOLoss(
        losses,
        beta * (policy_chosen - reference_chosen).detach(),
        beta * (policy_rejected - reference_rejected).detach(),
    )
