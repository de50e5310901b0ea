"""The critic's prompts: what is asked about two answers, and its ids, of which none is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from polyptych.data.collation import makes_own_batches
from polyptych.data.tokenization import EncodedExample, encode_example
from polyptych.errors import PolyptychError
from polyptych.methods.sima.prefix_sharing import common_prefix
from polyptych.methods.sima.prompts import BRIEF, FULL, VERDICTS, CriticFormat
from polyptych.methods.sima.records import GREEDY, Responses
from polyptych.schema import IGNORE_INDEX, Example


@dataclass(frozen=True, slots=True)
class Contest:
    """Answers to one prompt that are held against its greedy one."""

    responses: Responses
    candidates: tuple[int, ...]

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.responses.id

    def orders(self, candidate: int, both: bool) -> list[tuple[str, str]]:
        """The candidate as response 1, then as response 2."""
        answers = self.responses.answers
        first = (answers[candidate], answers[GREEDY])
        return [first, first[::-1]] if both else [first]


@dataclass(frozen=True, slots=True)
class CriticRows:
    """Makes the critic's prompts of a contest."""

    form: CriticFormat
    both_orders: bool = True
    """False asks once, the sampled answer being response 1, as published."""

    def examples(self, contest: Contest, candidate: int) -> list[Example]:
        """One prompt per order.

        Raises:
            PolyptychError: If the ground truth is to be shown and there is none.
        """
        prompt = contest.responses.prompt
        truth = prompt.ground_truth if self.form.ground_truth else None
        if self.form.ground_truth and not truth:
            raise PolyptychError(
                f"id {prompt.id!r} has no ground truth; give it, or judge without ground truth"
            )
        question = [block for message in prompt.example.prompt for block in message.content]
        rows = []
        for place, order in enumerate(contest.orders(candidate, self.both_orders), start=1):
            messages = self.form.messages(question, truth, *order)
            identity = f"{prompt.id}/{candidate}/{place}"
            rows.append(Example(identity, messages, prompt.example.images))
        return rows

    def run(self) -> dict[str, Any]:
        """Prompt and orders."""
        return {"prompt": self.form.fingerprint, "both_orders": self.both_orders}


class RememberingTokenizer:
    """Tokenizes the latest texts once: the fixed part of a prompt, which comes with every case."""

    def __init__(self, tokenizer: Any) -> None:
        self.bos_token_id, self.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.cls_token_id = getattr(tokenizer, "cls_token_id", None)
        self.sep_token_id = getattr(tokenizer, "sep_token_id", None)

        @lru_cache(maxsize=16)
        def ids_of(text: str, add_special_tokens: bool) -> list[int]:
            return tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]

        self._ids_of = ids_of

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """The ids, as tokenizers of transformers give them."""
        return {"input_ids": self._ids_of(text, add_special_tokens)}


class _NoInstruction:
    """In place of a Q-Former's tokenizer where no Q-Former reads the instruction."""

    cls_token_id = sep_token_id = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": []}


def encode_whole(
    processor: Any,
    example: Example,
    forced: Sequence[int] = (),
    *,
    tokenizer: Any = None,
    instructed: bool = True,
) -> EncodedExample | None:
    """Ids of a critic's prompt with the beginning of its answer; None where they do not fit.

    Nothing is ever cut: a critic that sees half of an answer would judge something else.

    Args:
        processor: The critic's.
        example: Its prompt.
        forced: Ids that its answer begins with.
        tokenizer: In place of the processor's.
        instructed: Whether the model's Q-Former reads the instruction.
    """
    if makes_own_batches(processor):
        row = processor.without_limit().encode(example, with_target=False)
    else:
        settings = dataclasses.replace(processor.settings, max_length=None, max_prompt_tokens=None)
        row = encode_example(
            example,
            tokenizer=tokenizer or processor.tokenizer,
            qformer_tokenizer=processor.qformer_tokenizer if instructed else _NoInstruction(),
            image_token_id=processor.image_token_id,
            settings=settings,
            with_target=False,
        )
    longest = processor.max_length
    if longest is not None and len(row.input_ids) + len(forced) >= longest:
        return None
    return dataclasses.replace(
        row,
        input_ids=[*row.input_ids, *forced],
        labels=[*row.labels, *[IGNORE_INDEX] * len(forced)],
    )


def default_format(processor: Any, **choices: Any) -> CriticFormat:
    """The full prompt, or the brief one where its fixed part fills over half of the context.

    Args:
        processor: The critic's.
        **choices: Other fields of the format.
    """
    form = CriticFormat(FULL, **choices)
    if processor.max_length is None:
        return form
    length = len(processor.tokenizer(form.fixed_text())["input_ids"])
    return form if 2 * length <= processor.max_length else CriticFormat(BRIEF, **choices)


def verdict_tokens(tokenizer: Any, closing: str) -> tuple[list[int], tuple[int, int]]:
    """Ids that the answer is made to begin with, and the first id that tells 1 from 2.

    ``"... response: [[" -> ids of "... response: [[", (id of "1", id of "2")``

    Raises:
        PolyptychError: If the tokenizer does not tell the two apart.
    """
    first, second = (
        tokenizer(closing + verdict, add_special_tokens=False)["input_ids"] for verdict in VERDICTS
    )
    forced = common_prefix([first, second])
    if len(forced) in (len(first), len(second)):
        raise PolyptychError(f"the tokenizer writes {closing + '1'!r} and its like alike")
    return forced, (first[len(forced)], second[len(forced)])
