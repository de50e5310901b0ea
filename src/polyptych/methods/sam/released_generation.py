"""Generation as the published SAM code does it: other rules than those of today's ``generate``.

The code of arXiv 2408.12867 pins transformers 4.33 and hands embeddings to its ``generate``, so:

- sequences start with id 1, which counts in ``max_length`` and ``min_length`` and is penalized as
  a repetition, while the prompt is not;
- an ended hypothesis is scored by its length without the end token, one cut off at the length limit
  by its whole length (later versions count both alike), and an example is done when its worst kept
  hypothesis is at least as good as its best running one at its present length.

The prompt is read once, whatever the number of beams. For everyday use, ``model.generate`` is
faster to adapt and as good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import Batch


@dataclass(frozen=True, slots=True)
class ReleasedGeneration:
    """Settings of the published ``generate``; defaults are its defaults."""

    num_beams: int = 5
    """1 is greedy search."""
    max_length: int = 256
    """Longest sequence, counting the id 1 it starts with: at most 255 new tokens."""
    min_length: int = 1
    """No end before this length, counted in the same way."""
    repetition_penalty: float = 1.5
    """Divides (multiplies, if negative) the scores of id 1 and of ids generated before."""
    length_penalty: float = 1.0
    """Exponent of the length that a hypothesis' score is divided by."""
    start_id: int = 1
    """What every sequence starts with."""
    end_id: int = 2
    """Ends a sequence."""
    pad_id: int = 0
    """Fills ended sequences."""

    def processors(self) -> LogitsProcessorList:
        """Score processors in the published order; they see generated ids only."""
        processors = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.min_length > 0:
            processors.append(MinLengthLogitsProcessor(self.min_length, self.end_id))
        return processors


@dataclass(slots=True)
class Generated:
    """Ids from the start id on, and the processed scores of every step."""

    sequences: Int[Tensor, "B L"]
    scores: list[Float[Tensor, "C V"]]
    """Logits in greedy search (C = B); log-probabilities in beam search (C = B x beams)."""


class _PrefilledDecoder:
    """Reads each prompt once, then a token per step and hypothesis."""

    def __init__(
        self, model: PolyptychSamForConditionalGeneration, batch: Batch, copies: int
    ) -> None:
        self.model, self.copies = model, copies
        self.mask = batch["attention_mask"].repeat_interleave(copies, dim=0)
        self.batch: Batch | None = batch
        self.cache: Any = None

    def __call__(self, ids: Int[Tensor, "C L"], parents: Int[Tensor, " C"]) -> Float[Tensor, "C V"]:
        """Logits of the next token; ``parents`` says which old row each row goes on from."""
        if self.batch is not None:
            inputs = {name: value for name, value in self.batch.items() if name != "labels"}
            outputs = self.model(**inputs, use_cache=True, logits_to_keep=1)
            self.batch, self.cache = None, outputs.past_key_values
            if self.copies > 1:
                self.cache.batch_repeat_interleave(self.copies)
            return outputs.logits[:, -1].float().repeat_interleave(self.copies, dim=0)
        if self.copies > 1:
            self.cache.reorder_cache(parents)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        outputs = self.model(
            input_ids=ids[:, -1:],
            attention_mask=self.mask,
            position_ids=self.mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.logits[:, -1].float()


@torch.no_grad()
def released_generate(
    model: PolyptychSamForConditionalGeneration,
    batch: Batch,
    settings: ReleasedGeneration | None = None,
) -> Generated:
    """Answer prompts by the published rules.

    Args:
        model: In eval mode.
        batch: Prompts, as :func:`released_batch` makes them without targets.
        settings: Default: the published ones.
    """
    settings = settings or ReleasedGeneration()
    decoder = _PrefilledDecoder(model, batch, settings.num_beams)
    processors = settings.processors()
    scores: list[Tensor] = []

    def step(ids: Tensor, parents: Tensor) -> Tensor:
        logits = decoder(ids, parents)
        raw = logits if settings.num_beams == 1 else log_softmax(logits, dim=-1)
        scores.append(processors(ids, raw))  # type: ignore[arg-type]  # it names LongTensor
        return scores[-1]

    search = greedy_search if settings.num_beams == 1 else beam_search
    count, device = len(batch["input_ids"]), batch["input_ids"].device
    return Generated(search(step, count, settings, device), scores)


def released_texts(
    processor: PolyptychProcessor, generated: Generated, settings: ReleasedGeneration | None = None
) -> list[str]:
    """Decoded answers: pads become ends, special tokens are left out, blanks stripped."""
    settings = settings or ReleasedGeneration()
    ids = generated.sequences
    ids = ids.masked_fill(ids == settings.pad_id, settings.end_id)
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


Step = Callable[[Tensor, Tensor], Tensor]
"""``(ids (C, L), parents (C,)) -> scores (C, V)`` of the next token."""


def greedy_search(
    step: Step, num_examples: int, settings: ReleasedGeneration, device: torch.device | None = None
) -> Int[Tensor, "B L"]:
    """The best token at each step, until every row has ended."""
    ids = torch.full((num_examples, 1), settings.start_id, device=device)
    rows = torch.arange(num_examples, device=device)
    ended = torch.zeros(num_examples, dtype=torch.bool, device=device)
    while ids.shape[1] < settings.max_length and not bool(ended.all()):
        tokens = step(ids, rows).argmax(dim=-1).masked_fill(ended, settings.pad_id)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        ended |= tokens == settings.end_id
    return ids


class _Hypotheses:
    """The best ended sequences of one example."""

    def __init__(self, settings: ReleasedGeneration) -> None:
        self.settings = settings
        self.best: list[tuple[float, Tensor]] = []

    def normalize(self, log_probability: float, length: int) -> float:
        return log_probability / length**self.settings.length_penalty

    def add(self, ids: Tensor, log_probability: float) -> None:
        """Keep ``ids`` (without an end token; its length counts the start id) if good enough."""
        score = self.normalize(log_probability, len(ids))
        if len(self.best) < self.settings.num_beams:
            self.best.append((score, ids))
            return
        worst = min(range(len(self.best)), key=lambda index: self.best[index][0])
        if score > self.best[worst][0]:
            del self.best[worst]
            self.best.append((score, ids))

    def complete(self, best_running: float, length: int) -> bool:
        """Whether no running beam, at its present length, beats the worst that is kept."""
        full = len(self.best) == self.settings.num_beams
        return full and min(s for s, _ in self.best) >= self.normalize(best_running, length)


def beam_search(
    step: Step, num_examples: int, settings: ReleasedGeneration, device: torch.device | None = None
) -> Int[Tensor, "B L"]:
    """Beam search with the score arithmetic and the stopping rule of transformers 4.33."""
    beams = settings.num_beams
    ids = torch.full((num_examples * beams, 1), settings.start_id, device=device)
    parents = torch.arange(num_examples * beams, device=device)
    running = torch.full((num_examples, beams), -1e9, device=device)
    running[:, 0] = 0.0  # all beams start equal: only one may be counted
    hypotheses = [_Hypotheses(settings) for _ in range(num_examples)]
    done = [False] * num_examples
    while ids.shape[1] < settings.max_length and not all(done):
        scores = step(ids, parents) + running.view(-1, 1)
        width = scores.shape[-1]
        top, places = scores.view(num_examples, -1).topk(2 * beams, dim=1)
        nexts: list[tuple[float, int, int]] = []  # score, token, parent row
        for example in range(num_examples):
            if done[example]:
                nexts += [(0.0, settings.pad_id, 0)] * beams
                continue
            kept: list[tuple[float, int, int]] = []
            for rank, (score, place) in enumerate(
                zip(top[example].tolist(), places[example].tolist(), strict=True)
            ):
                parent, token = example * beams + place // width, place % width
                if token != settings.end_id:
                    kept.append((score, token, parent))
                elif rank < beams:
                    hypotheses[example].add(ids[parent], score)
                if len(kept) == beams:
                    break
            nexts += kept
            done[example] = hypotheses[example].complete(float(top[example, 0]), ids.shape[1] + 1)
        running = torch.tensor([score for score, _, _ in nexts], device=device).view(-1, beams)
        parents = torch.tensor([parent for _, _, parent in nexts], device=device)
        tokens = torch.tensor([[token] for _, token, _ in nexts], device=device)
        ids = torch.cat([ids[parents], tokens], dim=1)
    for example in range(num_examples):
        if not done[example]:
            for row in range(example * beams, (example + 1) * beams):
                hypotheses[example].add(ids[row], float(running.view(-1)[row]))
    return _stack([sorted(h.best, key=lambda kept: kept[0])[-1][1] for h in hypotheses], settings)


def _stack(sequences: list[Tensor], settings: ReleasedGeneration) -> Int[Tensor, "B L"]:
    """One tensor: an end token behind every sequence that has room for it, then pads."""
    longest = max(len(ids) for ids in sequences)
    width = min(longest + 1, settings.max_length)
    stacked = sequences[0].new_full((len(sequences), width), settings.pad_id)
    for row, ids in enumerate(sequences):
        stacked[row, : len(ids)] = ids
        if len(ids) < width:
            stacked[row, len(ids)] = settings.end_id
    return stacked
