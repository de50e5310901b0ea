"""Beam search that does in a step only what the step needs.

Rules and results are those of transformers, whose implementation serves every wish: at each step it
rebuilds all running and all finished sequences and asks all criteria of the text so far. With a
small decoder that takes as long as the decoder. Here finished sequences are looked at when a beam
ends, and endings are read off the newest tokens. Whoever wants scores, sampling or other criteria
gets transformers' search (:func:`is_plain`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

NEVER = -1e9
"""A score that no sequence has; transformers' value, because it is added to real ones."""


def is_plain(config: Any, criteria: StoppingCriteriaList, synced_gpus: bool = False) -> bool:
    """Whether :func:`beam_search` does what a generation config asks for."""
    wanted = (config.do_sample, config.return_dict_in_generate, config.low_memory, synced_gpus)
    return not any(wanted) and all(
        type(criterion) in (MaxLengthCriteria, EosTokenCriteria) for criterion in criteria
    )


@dataclass
class _Finished:
    """The best sequences that have ended, per example: as many as beams, best first."""

    ids: Int[Tensor, "B beams L"]
    scores: Float[Tensor, "B beams"]
    lengths: Int[Tensor, "B beams"]
    there: Bool[Tensor, "B beams"]
    open: Bool[Tensor, "B 1"]
    """Whether a running beam may still become better."""

    @classmethod
    def none(cls, running: Int[Tensor, "B beams L"]) -> _Finished:
        """At the start."""
        some = running[..., 0]
        return cls(
            running.clone(),
            torch.full(some.shape, NEVER, device=some.device),
            torch.zeros_like(some),
            torch.zeros_like(some, dtype=torch.bool),
            torch.ones_like(some[:, :1], dtype=torch.bool),
        )

    def add(
        self,
        ids: Int[Tensor, "B beams L"],
        scores: Float[Tensor, "B beams"],
        ended: Bool[Tensor, "B beams"],
        length: int,
        stop_when_full: bool,
    ) -> None:
        """Keep the best of what is there and what has ended now."""
        closed = ~self.open
        if stop_when_full:
            closed = closed | self.there.all(dim=1, keepdim=True)
        scores = scores + (closed.float() + (~ended).float()) * NEVER
        both, best = torch.cat([self.scores, scores], dim=1).topk(self.scores.shape[1])
        self.scores = both
        self.ids = torch.cat([self.ids, ids], dim=1).gather(
            1, best[..., None].expand(*best.shape, ids.shape[-1])
        )
        lengths = torch.cat([self.lengths, torch.full_like(self.lengths, length)], dim=1)
        self.lengths = lengths.gather(1, best)
        self.there = torch.cat([self.there, ended], dim=1).gather(1, best)

    def close(self, best_possible: Float[Tensor, "B 1"]) -> None:
        """Close examples whose running beams cannot reach the worst of a full list."""
        worst = self.scores.amin(dim=1, keepdim=True).where(self.there, NEVER)
        self.open = self.open & (best_possible > worst).any(dim=1, keepdim=True)


def beam_search(
    model: Any,
    input_ids: Int[Tensor, "C T"],
    processors: Any,
    config: Any,
    model_kwargs: dict[str, Any],
) -> Int[Tensor, "R L"]:
    """Search with ``config.num_beams`` rows per example; C = B x beams, prompts left-padded.

    Args:
        model: With ``generate``'s own steps: ``_prefill``, ``prepare_inputs_for_generation``.
        input_ids: Prompts, each as often as there are beams.
        processors: Change the logarithmic probabilities of the next token.
        config: A plain generation config, prepared by ``generate``.
        model_kwargs: What ``generate`` hands to the model.

    Returns:
        Prompts and answers, R = B x ``num_return_sequences``, best first, filled up on the right.
    """
    with torch.inference_mode():  # its hundreds of small calls take 3 to 5 % less time
        found = _search(model, input_ids, processors, config, model_kwargs)
    return found.clone()  # an ordinary tensor, which may be changed and learned from


def _search(
    model: Any,
    input_ids: Int[Tensor, "C T"],
    processors: Any,
    config: Any,
    model_kwargs: dict[str, Any],
) -> Int[Tensor, "R L"]:
    beams, prompt = config.num_beams, input_ids.shape[1]
    examples, penalty = len(input_ids) // beams, config.length_penalty
    eos, full = config._eos_token_tensor, config.early_stopping is True
    kept = beams * max(2, 1 + (0 if eos is None else len(eos)))
    running = _room(input_ids, config).unflatten(0, (examples, beams))
    scores = torch.zeros(examples, beams, device=input_ids.device)
    scores[:, 1:] = NEVER  # beams start equal: the first speaks for all
    first_row = torch.arange(examples, device=input_ids.device)[:, None] * beams
    finished, length = _Finished.none(running), prompt
    outputs = model._prefill(input_ids, config, model_kwargs)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        log_probs = outputs.logits[:, -1].float().log_softmax(dim=-1)
        for process in processors:
            log_probs = process(running[:, :, :length].flatten(0, 1), log_probs)
        words = log_probs.shape[-1]
        total = log_probs.unflatten(0, (examples, beams)) + scores[..., None]
        top, place = total.flatten(1).topk(kept)
        beam, word = place // words, place % words
        length += 1
        ends = torch.zeros_like(place, dtype=torch.bool) if eos is None else torch.isin(word, eos)
        if length >= config.max_length:
            ends[:] = True

        scores, ended = top[:, :beams], bool(ends.any())
        if ended:
            told = _follow(running, first_row, beam[:, :beams], word[:, :beams], length)
            final = top[:, :beams] / (length - prompt) ** penalty
            finished.add(told, final, ends[:, :beams], length, full)
            scores, best = (top + ends * NEVER).topk(beams)
            beam, word = beam.gather(1, best), word.gather(1, best)
        beam, word = beam[:, :beams], word[:, :beams]
        running = _follow(running, first_row, beam, word, length)
        if ended or bool(finished.there.any()):
            hopes_for_length = config.early_stopping == "never" and penalty > 0
            reach = config.max_length if hopes_for_length else length
            finished.close(scores[:, :1] / (reach - prompt) ** penalty)
            over = not bool(finished.open.any()) or (full and bool(finished.there.all()))
            if over or bool(ends.all()):
                break
        if (cache := model_kwargs.get("past_key_values")) is not None:
            cache.reorder_cache((beam + first_row).flatten())
        inputs = model.prepare_inputs_for_generation(
            running[:, :, :length].flatten(0, 1),
            next_sequence_length=1 if model_kwargs["use_cache"] else None,
            **model_kwargs,
        )
        outputs = model(**inputs, return_dict=True)
    returned = config.num_return_sequences
    longest = int(finished.lengths[:, :returned].max())
    return finished.ids[:, :returned, :longest].flatten(0, 1)


def _room(input_ids: Int[Tensor, "C T"], config: Any) -> Int[Tensor, "C L"]:
    """The prompts, and room for the longest answer."""
    pad, eos = config._pad_token_tensor, config._eos_token_tensor
    fill = -1 if eos is None else int(pad or eos[0])  # as transformers: 0 is no padding token
    room = input_ids.new_full((len(input_ids), config.max_length), fill)
    room[:, : input_ids.shape[1]] = input_ids
    return room


def _follow(
    running: Int[Tensor, "B beams L"],
    first_row: Int[Tensor, "B 1"],
    beam: Int[Tensor, "B beams"],
    word: Int[Tensor, "B beams"],
    length: int,
) -> Int[Tensor, "B beams L"]:
    """The sequences that go on from ``beam`` by ``word``."""
    followed = running.flatten(0, 1)[beam + first_row]
    followed[:, :, length - 1] = word
    return followed
