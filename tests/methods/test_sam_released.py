"""The published row layout, searches and ranking, on tiny models and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from polyptych.methods.sam.conversion import SAM_TENSORS
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.methods.sam.released import (
    freeze_to_released,
    rank_candidates,
    released_batch,
    released_rows,
)
from polyptych.methods.sam.released_generation import (
    ReleasedGeneration,
    beam_search,
    greedy_search,
    released_generate,
    released_texts,
)
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import IGNORE_INDEX
from polyptych.testing import TINY_IMAGE_SIZE, TINY_QUERIES, tiny_model, tiny_processor

PROMPTS = ["what do these pictures have in common? {image#1}", "a dog"]
COUNTS = [2, 2]


@pytest.fixture(scope="module")
def model() -> PolyptychSamForConditionalGeneration:
    return tiny_model("released")


def processor(**settings) -> PolyptychProcessor:
    released = {"layout": "images_first", "template": "plain", "max_length": None}
    return tiny_processor(**{**released, **settings})


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, TINY_IMAGE_SIZE, TINY_IMAGE_SIZE, generator=generator)


def prompt_batch():
    return released_batch(processor(), PROMPTS, pixels(4), COUNTS)


# --- layout --------------------------------------------------------------------------------------


def test_images_come_first_and_image_marks_stay_text() -> None:
    ours = processor()
    (row,) = released_rows(ours, PROMPTS[:1], [2])
    words = ours.tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
    images = [ours.image_token_id] * (2 * TINY_QUERIES)
    assert row.input_ids == [*images, ours.tokenizer.bos_token_id, *words]
    assert "{image#1}" in ours.tokenizer.decode(row.input_ids)


def test_training_cuts_the_prompt_from_the_left_and_the_target_from_the_right() -> None:
    ours = processor(max_prompt_tokens=4, max_target_tokens=2)
    words = ours.tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
    target = ours.tokenizer("the dog sleeps under", add_special_tokens=False)["input_ids"]
    assert len(words) > 3 and len(target) > 2
    (row,) = released_rows(ours, PROMPTS[:1], [1], ["the dog sleeps under"])
    bos = ours.tokenizer.bos_token_id
    assert row.input_ids[TINY_QUERIES:] == [bos, *words[-3:], *target[:2]]
    assert row.labels == [IGNORE_INDEX] * (TINY_QUERIES + 4) + target[:2]


def test_pads_stand_between_images_and_text() -> None:
    batch = prompt_batch()
    gap = int((batch["attention_mask"][1] == 0).sum())
    assert gap > 0
    start = 2 * TINY_QUERIES
    assert batch["attention_mask"][1].tolist() == [1] * start + [0] * gap + [1] * (
        batch["input_ids"].shape[1] - start - gap
    )
    assert batch["position_ids"][1, start : start + gap + 2].tolist() == [1] * gap + [start] + [
        start + 1
    ]


def test_freezing_leaves_sams_six_tensors(model) -> None:
    assert set(freeze_to_released(model)) == set(SAM_TENSORS)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(SAM_TENSORS)


# --- searches over a made-up language ------------------------------------------------------------


def markov(table: Tensor, calls: list[int] | None = None):
    """Log-probabilities that depend on the last token only."""

    def step(ids: Tensor, parents: Tensor) -> Tensor:
        if calls is not None:
            calls.append(ids.shape[1])
        return table.log()[ids[:, -1]]

    return step


def test_a_cut_off_hypothesis_is_scored_by_its_whole_length() -> None:
    # One new token fits. Ended: log .5 over the length 1 of [1]; cut off: log .3 over the length 2
    # of [1 3], which is more. (With equal lengths, as today, ending would win.)
    table = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(4, 4)
    settings = ReleasedGeneration(num_beams=2, max_length=2)
    assert math.log(0.5) / 1 < math.log(0.3) / 2
    assert beam_search(markov(table), 1, settings).tolist() == [[1, 3]]


def test_search_stops_when_no_running_beam_can_reach_the_worst_kept() -> None:
    # Ends with .9 everywhere. Kept after step 2: log .9 and (log .05 + log .9) / 2 = -1.55. The
    # best candidate of steps 2, 3, 4 has log .9 + (step - 1) log .05 over the length step + 1:
    # -1.03, -1.52, -1.82. So the fourth step is the last.
    table = torch.tensor([[0.05, 0.0, 0.9, 0.05]]).expand(4, 4)
    calls: list[int] = []
    settings = ReleasedGeneration(num_beams=2, max_length=20)
    assert beam_search(markov(table, calls), 1, settings).tolist() == [[1, 2]]
    assert calls == [1, 2, 3, 4]


def exhaustive(table: Tensor, settings: ReleasedGeneration) -> list[int]:
    """The best sequence of all, by the published score."""
    words = [token for token in range(len(table)) if token != settings.end_id]
    logs, scored = table.log(), []
    for length in range(1, settings.max_length + 1):
        for tail in itertools.product(words, repeat=length - 1):
            ids = [settings.start_id, *tail]
            total = sum(float(logs[a, b]) for a, b in itertools.pairwise(ids))
            if length < settings.max_length:
                total += float(logs[ids[-1], settings.end_id])
            scored.append((total / length**settings.length_penalty, ids))
    return max(scored)[1]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_wide_beams_find_the_best_of_all(seed: int, length_penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(4, 4, generator=generator).softmax(dim=-1)
    settings = ReleasedGeneration(num_beams=81, max_length=4, length_penalty=length_penalty)
    # More beams than sequences: copies of beams that do not exist fill up with a score of -1e9.
    found = beam_search(markov(table), 1, settings)[0].tolist()
    best = exhaustive(table, settings)
    assert found[: len(best)] == best
    assert found[len(best) :] in ([], [settings.end_id])


def test_examples_of_a_batch_do_not_meet() -> None:
    generator = torch.Generator().manual_seed(7)
    tables = torch.rand(3, 6, 6, generator=generator).mul(3).softmax(dim=-1)
    settings = ReleasedGeneration(num_beams=3, max_length=8)

    def step(ids: Tensor, parents: Tensor) -> Tensor:
        example = torch.arange(len(ids)) // settings.num_beams
        return tables.log()[example, ids[:, -1]]

    together = beam_search(step, 3, settings)
    for example in range(3):
        alone = beam_search(markov(tables[example]), 1, settings)[0].tolist()
        row = together[example].tolist()
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {settings.pad_id}


def test_greedy_rows_that_ended_are_padded() -> None:
    # 1 -> 3 -> end for row 0; row 1 goes on to the limit.
    def step(ids: Tensor, parents: Tensor) -> Tensor:
        wanted = torch.tensor([2 if ids.shape[1] >= 2 else 3, 4])
        return torch.nn.functional.one_hot(wanted, 5).float()

    settings = ReleasedGeneration(num_beams=1, max_length=5)
    assert greedy_search(step, 2, settings).tolist() == [[1, 3, 2, 0, 0], [1, 4, 4, 4, 4]]


# --- generation ----------------------------------------------------------------------------------


def test_penalty_sees_the_start_id_but_not_the_prompt(model) -> None:
    plain = ReleasedGeneration(num_beams=1, max_length=2, repetition_penalty=1.0)
    penalized = ReleasedGeneration(num_beams=1, max_length=2, repetition_penalty=2.0)
    before = released_generate(model, prompt_batch(), plain).scores[0]
    after = released_generate(model, prompt_batch(), penalized).scores[0]
    changed = (before != after).nonzero()[:, 1].unique().tolist()
    assert changed == [1]
    expected = torch.where(before[:, 1] < 0, before[:, 1] * 2, before[:, 1] / 2)
    torch.testing.assert_close(after[:, 1], expected)


def test_lengths_count_the_start_id(model) -> None:
    settings = ReleasedGeneration(num_beams=1, max_length=5, min_length=3)
    generated = released_generate(model, prompt_batch(), settings)
    assert generated.sequences.shape == (2, 5)
    assert generated.sequences[:, 0].tolist() == [1, 1]
    ends = [bool(scores[:, 2].isneginf().all()) for scores in generated.scores]
    assert ends == [True, True, False, False]


def test_beams_with_a_cache_equal_beams_without(model) -> None:
    batch, beams = prompt_batch(), 3
    settings = ReleasedGeneration(num_beams=beams, max_length=7, repetition_penalty=1.0)
    images = {
        name: batch[name]
        for name in ("pixel_values", "image_counts", "qformer_input_ids", "qformer_attention_mask")
    }

    @torch.no_grad()
    def step(ids: Tensor, parents: Tensor) -> Tensor:
        new = ids[:, 1:]
        mask = batch["attention_mask"].repeat_interleave(beams, dim=0)
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        rows = torch.cat([batch["input_ids"].repeat_interleave(beams, dim=0), new], dim=1)
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        outputs = model(input_ids=rows, attention_mask=mask, position_ids=positions, **images)
        return outputs.logits[:, -1].log_softmax(dim=-1)

    generated = released_generate(model, batch, settings)
    assert torch.equal(generated.sequences, beam_search(step, 2, settings))
    assert len(released_texts(processor(), generated, settings)) == 2


# --- candidate ranking ---------------------------------------------------------------------------


def test_candidates_are_ranked_by_their_summed_loss_without_guidance(model) -> None:
    candidates = ["a tree.", "the dog sleeps under the tree.", "red"]
    ours = processor()
    images = pixels(4)
    ranks = rank_candidates(model, ours, PROMPTS, candidates, images, COUNTS)
    for index, prompt in enumerate(PROMPTS):
        own = images[2 * index : 2 * index + 2]
        batch = released_batch(ours, [prompt], own, [2])
        losses = []
        for candidate in candidates:
            ids = ours.tokenizer(candidate, add_special_tokens=False, return_tensors="pt")
            ids = ids["input_ids"]
            rows = torch.cat([batch["input_ids"], ids], dim=1)
            with torch.no_grad(), model.guidance_disabled():
                logits = model(
                    input_ids=rows,
                    pixel_values=own,
                    image_counts=batch["image_counts"],
                    qformer_input_ids=batch["qformer_input_ids"],
                    qformer_attention_mask=batch["qformer_attention_mask"],
                ).logits
            words = logits[0, -ids.shape[1] - 1 : -1].log_softmax(dim=-1)
            losses.append(-float(words.gather(1, ids[0][:, None]).sum()))
        expected = sorted(range(len(candidates)), key=lambda c: losses[c])
        assert ranks[index].tolist() == expected
