"""Visual tokens at their placeholders: order, gradients, copies for beams, and wrong counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyptych.errors import PolyptychError
from polyptych.language.splicing import embed_text, repeat_examples, splice_visual_tokens

PLACE = 9


def spliced(ids: torch.Tensor, tokens: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Text embeddings are the ids themselves, so that every number tells where it came from."""
    text = ids[..., None].float()
    return splice_visual_tokens(text, ids == PLACE, tokens, torch.tensor(counts))[..., 0]


def test_tokens_take_their_places_in_order() -> None:
    ids = torch.tensor([[1, PLACE, PLACE, 2], [PLACE, 3, 4, 5], [6, 7, 8, 0]])
    tokens = torch.tensor([[10.0], [11.0], [12.0]])
    assert spliced(ids, tokens, [2, 1, 0]).tolist() == [
        [1, 10, 11, 2],
        [12, 3, 4, 5],
        [6, 7, 8, 0],
    ]


@given(rows=st.lists(st.lists(st.sampled_from([1, 2, PLACE]), min_size=6, max_size=6), min_size=1))
@settings(max_examples=50, deadline=None)
def test_text_stays_and_visual_tokens_keep_their_order(rows: list[list[int]]) -> None:
    ids = torch.tensor(rows)
    mask = ids == PLACE
    tokens = 100 + torch.arange(int(mask.sum()), dtype=torch.float)[:, None]
    result = spliced(ids, tokens, mask.sum(1).tolist())
    assert torch.equal(result[mask], tokens[:, 0])
    assert torch.equal(result[~mask], ids[~mask].float())


@pytest.mark.parametrize("counts", [[2, 1], [1, 0], [0, 2]])
def test_wrong_counts_name_row_and_both_numbers(counts: list[int]) -> None:
    ids = torch.tensor([[1, PLACE, PLACE], [2, 3, 4]])
    row = 0 if counts[0] != 2 else 1
    message = f"row {row} .* {[2, 0][row]} image placeholders for {counts[row]} visual tokens"
    with pytest.raises(PolyptychError, match=message):
        spliced(ids, torch.zeros(sum(counts), 1), counts)


def test_gradients_reach_text_and_images_but_no_hidden_text() -> None:
    ids = torch.tensor([[1, PLACE, 2]])
    text = torch.ones(1, 3, 2, requires_grad=True)
    tokens = torch.ones(1, 2, requires_grad=True)
    result = splice_visual_tokens(text, ids == PLACE, tokens, torch.tensor([1]))
    result.sum().backward()
    assert text.grad is not None and tokens.grad is not None
    assert text.grad[0, :, 0].tolist() == [1, 0, 1]
    assert tokens.grad.tolist() == [[1, 1]]


def test_tokens_are_cast_to_the_language_model() -> None:
    ids = torch.tensor([[PLACE]])
    text = torch.zeros(1, 1, 2, dtype=torch.bfloat16)
    tokens = torch.ones(1, 2)
    assert splice_visual_tokens(text, ids == PLACE, tokens, torch.tensor([1])).dtype == text.dtype


def test_placeholders_outside_the_vocabulary_embed_as_id_0() -> None:
    table = nn.Embedding(3, 2)
    ids = torch.tensor([[2, PLACE]])
    assert torch.equal(embed_text(table, ids, ids == PLACE)[0], table.weight[[2, 0]])


def test_copies_stand_beside_their_example() -> None:
    tokens, counts = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0, 1])
    repeated, per_row = repeat_examples(tokens, counts, 2)
    assert repeated[:, 0].tolist() == [1, 2, 1, 2, 3, 3]
    assert per_row.tolist() == [2, 2, 0, 0, 1, 1]
    same, unchanged = repeat_examples(tokens, counts, 1)
    assert same is tokens
    assert unchanged is counts
