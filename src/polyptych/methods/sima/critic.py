"""In-context self-critic (section 3.2 of the paper): which of two answers is the better one?

The model that wrote the answers judges them, with the ground truth and three visual metrics in its
prompt. Every sampled answer is held against the greedy one. By default the verdict is not written
but read off: behind a fixed beginning of the critic's answer, the log-odds of the tokens ``1`` and
``2`` say how sure it is; with both orders a bias for one of the places cancels. The published way,
one order and words that are parsed, is :class:`WordsJudge` with ``both_orders=False``.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from polyptych.data.collation import makes_own_batches
from polyptych.data.tokenization import EncodedExample
from polyptych.evaluation.answering import Answerer, obeyed
from polyptych.evaluation.local_model import model_hash
from polyptych.evaluation.runner import batches_by_length
from polyptych.evaluation.task import GenerationSettings
from polyptych.methods.sima.critic_rows import (
    Contest,
    CriticRows,
    RememberingTokenizer,
    default_format,
    encode_whole,
    verdict_tokens,
)
from polyptych.methods.sima.prefix_sharing import Case, SharedReader, WholeReader
from polyptych.methods.sima.records import (
    GREEDY,
    Comparison,
    Responses,
    Verdict,
    parse_verdict_line,
    responses_line,
    verdict_line,
)
from polyptych.methods.sima.released import parse_verdict
from polyptych.methods.sima.stage_file import StageFile, with_stored_images
from polyptych.schema import Example

WORDS_SETTINGS = GenerationSettings(max_new_tokens=4096)
"""Decoding of written verdicts, as published."""

IDENTICAL, EMPTY, TOO_LONG = "identical answers", "empty answer", "too long for the critic"
"""Why an answer is not compared."""


@runtime_checkable
class Judge(Protocol):
    """Whoever says which answer is better."""

    def run(self) -> dict[str, Any]:
        """All that makes its verdicts, as JSON; a killed run goes on only with the same."""

    def compare(self, contests: Sequence[Contest]) -> list[tuple[Comparison | None, ...]]:
        """One comparison per candidate of each contest; None where it does not fit the context."""


def self_critic(
    judge: Judge,
    responses: Sequence[Responses],
    out: str | Path,
    *,
    batch_size: int = 16,
    tokens_per_image: int = 0,
    progress: bool = True,
) -> list[Verdict]:
    """Compare every prompt's sampled answers with its greedy one and write one JSON line each.

    Equal and empty answers are dropped before, and counted.

    Args:
        judge: Who compares.
        responses: What :func:`polyptych.methods.sima.responses.self_generate` gave.
        out: The JSONL file; a killed run goes on where it stopped.
        batch_size: Prompts that are judged together; changes no verdict.
        tokens_per_image: To put prompts of similar length together.
        progress: Show a bar with an estimate of the time left, on a terminal.

    Returns:
        Verdicts in the order of the responses.

    Raises:
        PolyptychError: If ``out`` was begun with another judge, or if the judge needs a ground
            truth and a prompt has none.
    """
    out = Path(out)
    prompts = with_stored_images([item.prompt for item in responses], out.parent)
    responses = [
        dataclasses.replace(item, prompt=prompt)
        for item, prompt in zip(responses, prompts, strict=True)
    ]
    inputs = {item.id: responses_line(item, out.parent) for item in responses}
    run = {"stage": "verdicts", **judge.run()}
    file: StageFile[Verdict] = StageFile(out, inputs, run, verdict_line, parse_verdict_line)
    todo = {item.id: item for item in file.todo(responses)}
    if todo:
        examples = [item.prompt.example for item in todo.values()]
        with file.writing(progress=progress) as add:
            for batch in batches_by_length(examples, tokens_per_image, batch_size):
                add(_judge_batch(judge, [todo[example.id] for example in batch]))
    return file.finish()


def _judge_batch(judge: Judge, batch: Sequence[Responses]) -> list[Verdict]:
    kept = [comparable(item.answers) for item in batch]
    contests = [
        Contest(item, candidates)
        for item, (candidates, _) in zip(batch, kept, strict=True)
        if candidates
    ]
    compared = dict(
        zip(
            (contest.id for contest in contests),
            judge.compare(contests) if contests else [],
            strict=True,
        )
    )
    verdicts = []
    for item, (_, dropped) in zip(batch, kept, strict=True):
        found = compared.get(item.id, ())
        missing = sum(comparison is None for comparison in found)
        if missing:
            dropped[TOO_LONG] += missing
        comparisons = tuple(comparison for comparison in found if comparison is not None)
        verdicts.append(Verdict(item, comparisons, dict(dropped)))
    return verdicts


def comparable(answers: Sequence[str]) -> tuple[tuple[int, ...], Counter[str]]:
    """Places of sampled answers worth comparing with the greedy one; why the others are not.

    Answers are equal if they differ in outer blanks and case only.
    """
    dropped: Counter[str] = Counter()
    seen = {answers[GREEDY].strip().lower()}
    if "" in seen:
        return (), Counter({EMPTY: len(answers) - 1}) if len(answers) > 1 else Counter({EMPTY: 1})
    kept = []
    for place, answer in enumerate(answers[1:], start=1):
        key = answer.strip().lower()
        if not key:
            dropped[EMPTY] += 1
        elif key in seen:
            dropped[IDENTICAL] += 1
        else:
            seen.add(key)
            kept.append(place)
    return tuple(kept), dropped


class LikelihoodJudge:
    """Compares the probabilities of the two verdicts behind a fixed beginning of the answer.

    Args:
        model: The critic; for SIMA the model that wrote the answers.
        processor: The processor saved beside it.
        rows: Its prompts; default: :func:`default_format` in both orders.
    """

    def __init__(self, model: Any, processor: Any, rows: CriticRows | None = None) -> None:
        self.model, self.processor = model, processor
        self.rows = rows or CriticRows(default_format(processor))
        self.tokenizer = RememberingTokenizer(processor.tokenizer)
        self.instructed = bool(getattr(model.config, "instruction_aware", False))
        closing = self.rows.form.prompt.closing
        self.forced, self.verdicts = verdict_tokens(processor.tokenizer, closing)
        self.reader: SharedReader | WholeReader = (
            WholeReader(model, processor, self.forced)
            if makes_own_batches(processor)
            else SharedReader(model, processor)
        )

    def run(self) -> dict[str, Any]:
        """Model, prompt and orders."""
        return {"judge": "likelihood", "model": model_hash(self.model), **self.rows.run()}

    def compare(self, contests: Sequence[Contest]) -> list[tuple[Comparison | None, ...]]:
        """Log-odds (nats) of the candidate, in each order."""
        encoded = [[self._rows_of(contest, c) for c in contest.candidates] for contest in contests]
        cases = [
            self._case(contest, found)
            for contest, found in zip(contests, encoded, strict=True)
            if any(found)
        ]
        logits = self.reader.last_logits(cases) if cases else []
        odds = iter(
            row.tolist()
            for scores in logits
            for row in scores.float().log_softmax(dim=-1)[:, list(self.verdicts)]
        )
        return [
            tuple(
                _comparison(c, [next(odds) for _ in rows]) if rows else None
                for c, rows in zip(contest.candidates, found, strict=True)
            )
            for contest, found in zip(contests, encoded, strict=True)
        ]

    def _case(self, contest: Contest, found: Sequence[Sequence[EncodedExample]]) -> Case:
        """All rows of a contest that fit the context."""
        kept = zip(contest.candidates, found, strict=True)
        examples = (self.rows.examples(contest, candidate) for candidate, rows in kept if rows)
        images = contest.responses.prompt.example.images
        return Case(contest.id, images, tuple(chain(*found)), tuple(chain(*examples)))

    def _rows_of(self, contest: Contest, candidate: int) -> list[EncodedExample]:
        """One per order; none if one of them does not fit the context."""
        examples = self.rows.examples(contest, candidate)
        rows = [
            encode_whole(
                self.processor,
                example,
                self.forced,
                tokenizer=self.tokenizer,
                instructed=self.instructed,
            )
            for example in examples
        ]
        return [] if None in rows else [row for row in rows if row is not None]


def _comparison(candidate: int, orders: Sequence[Sequence[float]]) -> Comparison:
    """Log-probabilities of ``1`` and ``2`` in each order; the candidate is ``1``, then ``2``."""
    odds = [first - second for first, second in orders]
    mass = sum(math.exp(first) + math.exp(second) for first, second in orders) / len(orders)
    signed = (value if place == 0 else -value for place, value in enumerate(odds))
    return Comparison(candidate, tuple(signed), mass=mass)


class WordsJudge:
    """Lets a critic write its verdict and parses it as the published code does.

    A verdict counts 1 for the answer that it prefers; two that disagree cancel.

    Args:
        answerer: Who writes: the model itself, or a server.
        rows: What is asked.
        settings: How verdicts are decoded; default: greedily, as published.
        processor: Of a model in memory, to leave out what does not fit its context.
    """

    def __init__(
        self,
        answerer: Answerer,
        rows: CriticRows,
        settings: GenerationSettings = WORDS_SETTINGS,
        processor: Any = None,
    ) -> None:
        self.answerer, self.rows, self.processor = answerer, rows, processor
        self.settings = obeyed(answerer, settings)

    def run(self) -> dict[str, Any]:
        """Who answers, how, prompt and orders."""
        return {
            "judge": "words",
            "answerer": {"name": self.answerer.name, "hash": self.answerer.hash},
            "decoding": self.settings.hash,
            **self.rows.run(),
        }

    def compare(self, contests: Sequence[Contest]) -> list[tuple[Comparison | None, ...]]:
        """1, -1 or None (no verdict in the words) in each order."""
        asked = [[self._rows_of(contest, c) for c in contest.candidates] for contest in contests]
        examples = [row for found in asked for rows in found for row in rows]
        texts = iter(self.answerer.answer(examples, self.settings) if examples else [])
        return [
            tuple(
                _spoken(c, [next(texts) for _ in rows]) if rows else None
                for c, rows in zip(contest.candidates, found, strict=True)
            )
            for contest, found in zip(contests, asked, strict=True)
        ]

    def _rows_of(self, contest: Contest, candidate: int) -> list[Example]:
        """One per order; none if one of them does not fit the context."""
        examples = self.rows.examples(contest, candidate)
        if self.processor is None:
            return examples
        fits = all(encode_whole(self.processor, example) is not None for example in examples)
        return examples if fits else []


def _spoken(candidate: int, texts: Sequence[str]) -> Comparison:
    """The verdicts of each order's text; response 1 is the candidate in the first order."""
    values = {"sampled": 1.0, "greedy": -1.0, None: None}
    found = [values[parse_verdict(text)] for text in texts]
    signed = [value if place == 0 or value is None else -value for place, value in enumerate(found)]
    return Comparison(candidate, tuple(signed), tuple(texts))
