r"""Pairs become a batch: one row per pair, its prompt and images once, both answers behind it.

    prompt, as generation reads it | chosen answer | rejected answer
    <s> USER: # # # # \n What ... ASSISTANT: | A dog . </s> | A cat . </s>

The two answers are branches: both see the prompt, neither sees the other, and both count positions
from the prompt's end. So a pair costs one pass over one row. The published trainer makes four over
two, and encodes the image eight times.

Tokens and labels are those of the model's own rows: the answer's tokens and the end token count,
nothing of the prompt. For ``vicuna_v1`` and Llama's tokenizer this is what the published code makes
of the whole dialogue in one string (but for answers that begin with a blank, which SIMA strips).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from polyptych.data.collation import Collator, SupportsFeatures
from polyptych.data.preferences import answered
from polyptych.data.tokenization import encode_example
from polyptych.errors import PolyptychError
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import IGNORE_INDEX, PreferencePair
from polyptych.training.branching import CHOSEN, PROMPT, REJECTED


@dataclass(frozen=True, slots=True)
class PairAnswers:
    """Token ids of both answers behind the same prompt."""

    chosen: list[int]
    rejected: list[int]


def encode_answers(
    processor: PolyptychProcessor, pair: PreferencePair, max_length: int | None
) -> PairAnswers:
    """Tokenize the answers of one pair, cut at their end to fit behind the prompt.

    Raises:
        PolyptychError: If the prompt leaves no room; names the pair and both numbers.
    """
    prompt = len(processor.encode(answered(pair), with_target=False).input_ids)
    limits = [limit for limit in (max_length, processor.max_length) if limit is not None]
    room = min(limits) - prompt if limits else None
    if room is not None and room <= 0:
        raise _no_room(pair, prompt, min(limits))
    return PairAnswers(
        _answer_ids(processor, pair, pair.chosen)[:room],
        _answer_ids(processor, pair, pair.rejected)[:room],
    )


def _answer_ids(processor: PolyptychProcessor, pair: PreferencePair, answer: str) -> list[int]:
    """What stands behind the prompt in a training row without a limit."""
    row = encode_example(
        answered(pair, answer),
        tokenizer=processor.tokenizer,
        qformer_tokenizer=processor.qformer_tokenizer,
        image_token_id=processor.image_token_id,
        settings=replace(processor.settings, max_length=None),
        with_target=True,
        context_token_id=processor.context_token_id,
    )
    return row.input_ids[row.last_prompt + 1 :]


class PreferenceCollator:
    """``[{"index": 3}, ...] -> batch`` over a fixed list of pairs; runs in the worker processes.

    The batch holds what the model reads (see :class:`polyptych.schema.Batch`; rows are pairs, and
    images come once), ``branch (T,)`` for :func:`polyptych.training.branching.branching_mask`, and
    what is scored, flat over both answers of all pairs: ``scored_rows``, ``scored_columns`` (where
    a token is predicted), ``scored_targets`` and ``scored_answers`` (i < B: the i-th chosen one,
    B + i: the i-th rejected one). ``pair (B,)`` are the indices; ``reference_log_probs (B, 2)`` are
    there where they are known.

    Args:
        processor: Of the model.
        pairs: What the indices speak of.
        max_length: Longest prompt with an answer, in tokens.
        features: Where frozen image features are read from instead of decoding images.
    """

    def __init__(
        self,
        processor: PolyptychProcessor,
        pairs: Sequence[PreferencePair],
        *,
        max_length: int | None = None,
        features: SupportsFeatures | None = None,
    ) -> None:
        self.processor, self.pairs, self.max_length = processor, pairs, max_length
        self.prompts = Collator(processor, training=False, features=features)
        self.reference: Mapping[int, tuple[float, float]] = {}
        """Log-probabilities of both answers under the reference, by index of the pair."""

    def __call__(self, items: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """Make the batch."""
        indices = [item["index"] for item in items]
        pairs = [self.pairs[index] for index in indices]
        answers = [encode_answers(self.processor, pair, self.max_length) for pair in pairs]
        prompts = self.prompts([answered(pair) for pair in pairs])
        batch = branching_rows(prompts, answers, self.processor.pad_token_id)
        batch["pair"] = torch.tensor(indices)
        if all(index in self.reference for index in indices):
            batch["reference_log_probs"] = torch.tensor([self.reference[i] for i in indices])
        return batch


class TwoRowCollator:
    """The same for bases of transformers: two rows per pair, chosen answers before rejected ones.

    Their batches are their processor's own, and not all of their decoders take branching masks.
    What is scored is said in the same fields; answers beyond the limit are cut, too.

    Args:
        processor: A :class:`~polyptych.adapters.processor.FamilyProcessor`.
        pairs: What the indices speak of.
        max_length: Longest prompt with an answer, in tokens.
    """

    def __init__(
        self, processor: Any, pairs: Sequence[PreferencePair], *, max_length: int | None = None
    ) -> None:
        limits = [limit for limit in (max_length, processor.max_length) if limit is not None]
        self.limit = min(limits, default=None)
        self.processor, self.pairs = processor.without_limit(), pairs
        self.reference: Mapping[int, tuple[float, float]] = {}
        """As in :class:`PreferenceCollator`."""

    def __call__(self, items: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """Make the batch."""
        indices = [item["index"] for item in items]
        pairs = [self.pairs[index] for index in indices]
        examples = [answered(pair, pair.chosen) for pair in pairs]
        examples += [answered(pair, pair.rejected) for pair in pairs]
        batch = self.processor.collate(examples, training=True)
        labels = self._cut(batch, pairs)
        rows, columns = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
        scored = {"rows": rows, "columns": columns - 1, "targets": labels[rows, columns]}
        batch |= {f"scored_{name}": value for name, value in scored.items()}
        batch["scored_answers"] = rows
        batch["pair"] = torch.tensor(indices)
        if all(index in self.reference for index in indices):
            batch["reference_log_probs"] = torch.tensor([self.reference[i] for i in indices])
        return batch

    def _cut(self, batch: dict[str, Tensor], pairs: Sequence[PreferencePair]) -> Tensor:
        """The labels; what is beyond the limit is masked, in them and for attention."""
        labels = batch.pop("labels")
        if self.limit is None:
            return labels
        beyond = batch["attention_mask"].cumsum(dim=1) > self.limit
        prompts = batch["attention_mask"].sum(dim=1) - (labels != IGNORE_INDEX).sum(dim=1)
        for pair, length in zip((*pairs, *pairs), prompts.tolist(), strict=True):
            if length >= self.limit:
                raise _no_room(pair, length, self.limit)
        batch["attention_mask"] = batch["attention_mask"].masked_fill(beyond, 0)
        return labels.masked_fill(beyond, IGNORE_INDEX)


def _no_room(pair: PreferencePair, prompt: int, limit: int) -> PolyptychError:
    return PolyptychError(
        f"pair {pair.id}: a prompt of {prompt} tokens leaves no room for an answer in {limit}"
    )


def branching_rows(
    prompts: Mapping[str, Any], answers: Sequence[PairAnswers], pad_token_id: int
) -> dict[str, Any]:
    """Both answers behind each prompt, and where their tokens are predicted.

    Args:
        prompts: A batch of prompts padded on the left.
        answers: Of each prompt.
        pad_token_id: Fills up shorter answers.
    """
    width = prompts["input_ids"].shape[1]
    mask = prompts["attention_mask"]
    positions = prompts.get("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
    ids, masks, places = [prompts["input_ids"]], [mask], [positions]
    branch, scored = [torch.full((width,), PROMPT)], []
    start = width
    for side, kind in enumerate((CHOSEN, REJECTED)):
        tokens = [torch.tensor((a.chosen, a.rejected)[side]) for a in answers]
        padded = pad_sequence(tokens, batch_first=True, padding_value=pad_token_id)
        steps = torch.arange(padded.shape[1])
        ids.append(padded)
        masks.append((steps < torch.tensor([len(own) for own in tokens])[:, None]).long())
        places.append(positions[:, -1:] + 1 + steps)
        branch.append(torch.full_like(steps, kind))
        scored += [
            _scored(row, own, width - 1, start, side * len(answers) + row)
            for row, own in enumerate(tokens)
        ]
        start += padded.shape[1]
    names = ("rows", "columns", "targets", "answers")
    return {
        **prompts,
        "input_ids": torch.cat(ids, dim=1),
        "attention_mask": torch.cat(masks, dim=1),
        "position_ids": torch.cat(places, dim=1),
        "branch": torch.cat(branch),
        **{f"scored_{n}": v for n, v in zip(names, torch.cat(scored, dim=1), strict=True)},
    }


def _scored(row: int, tokens: Tensor, last_prompt: int, start: int, answer: int) -> Tensor:
    """Row, column, target, answer of each token (4, length); the prompt says the first one."""
    columns = torch.arange(start - 1, start - 1 + len(tokens))
    columns[:1] = last_prompt
    return torch.stack(
        [torch.full_like(tokens, row), columns, tokens, torch.full_like(tokens, answer)]
    )
