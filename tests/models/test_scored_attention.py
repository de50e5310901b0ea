"""Keys with a score of their own: the same numbers as the definition, by a fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyptych.connectors.attention import attend


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("masked", [False, True])
def test_a_score_is_added_to_the_logits_of_its_key(masked: bool) -> None:
    torch.manual_seed(0)
    inputs = [drawn(2, 3, 5, 4), drawn(2, 3, 7, 4), drawn(2, 3, 7, 4), drawn(2, 7)]
    query, key, value, score = inputs
    visible = torch.rand(2, 1, 5, 7) < 0.6
    visible[..., 0] = True
    mask = visible if masked else None
    logits = query @ key.mT / 2 + score[:, None, None]
    if masked:
        logits = logits.masked_fill(~visible, float("-inf"))
    want = logits.softmax(-1) @ value
    got = attend(query, key, value, mask, score)
    torch.testing.assert_close(got, want)
    change = torch.randn_like(want)
    wanted = torch.autograd.grad(want, inputs, change)
    for own, other in zip(torch.autograd.grad(got, inputs, change), wanted, strict=True):
        torch.testing.assert_close(own, other)


def test_a_learned_score_keeps_the_fused_kernel() -> None:
    """A mask with a gradient would not: this raises where no fused kernel takes it."""
    query, key, value = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    score = torch.randn(1, 6, requires_grad=True)
    visible = ~torch.eye(6, dtype=torch.bool)[None, None]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attend(query, key, value, visible, score).sum().backward()
    assert score.grad is not None and score.grad.any()
