"""The judge of answers that no rule can score: one interface for all benchmarks that have one.

A judge is an :class:`~polyptych.evaluation.answering.Answerer` that is asked about answers: a
server of OpenAI's API, a model in memory, a Python function (``load_answerer`` of
:mod:`polyptych.serving.answerers` makes them from a name), or :class:`RecordedJudge`. Nobody is
asked unless a judge is given.

    task = with_judge(load_task("mm_vet", "DATA"), judge, "runs/mm_vet")
    evaluate(answerer, task, "runs/mm_vet")     # the judge's replies: runs/mm_vet/judge.jsonl

    task = with_recorded_replies(load_task("mm_vet", "DATA"), "runs/mm_vet")     # asks nobody

``judge.jsonl`` has a line per answer with the judge's prompt and, as ``prediction``, its reply. It
is written as predictions are: a killed run goes on where it stopped, and replies of another judge
or about other answers are refused. ``scores.json`` says who judged. The share of replies that
cannot be read is ``unparsable[judge]``; what such a reply counts for is each benchmark's affair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyptych.data.records import IMAGE_TOKEN, parse_json, read_lines
from polyptych.errors import PolyptychError
from polyptych.evaluation.answering import Answerer
from polyptych.evaluation.runner import generate
from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.task import GenerationSettings, Judging, Task, prompt_text
from polyptych.schema import Example, Message, Prediction, TextBlock

REPLIES_FILE = "judge.jsonl"
"""In the folder of a run."""

UNPARSABLE = "unparsable[judge]"


def with_judge(task: Task, judge: Answerer, folder: str | Path, *, progress: bool = True) -> Task:
    """The task with a scorer that asks the judge.

    Args:
        task: A task that has answers judged.
        judge: Who judges.
        folder: Of the run; gets :data:`REPLIES_FILE`.
        progress: Show a bar, on a terminal.

    Raises:
        PolyptychError: If the task has its answers judged by rules, or by its server.
    """
    judging, path = _judging(task), Path(folder, REPLIES_FILE)

    def replies(requests: Sequence[Example]) -> list[str]:
        settings = judging.settings
        made = generate(judge, requests, path, settings=settings, progress=progress)
        return [reply.text for reply in made]

    origin = {**task.origin, "judge": {"name": judge.name, **judge.context()}}
    return replace(task, scorers=(*task.scorers, _scorer(judging, replies)), origin=origin)


def with_recorded_replies(task: Task, folder: str | Path) -> Task:
    """The task with a scorer that reads the replies of an earlier run; as it is where none are."""
    path = Path(folder, REPLIES_FILE)
    if task.judging is None or not path.exists():
        return task
    judge, settings = RecordedJudge(path), task.judging.settings
    scorer = _scorer(task.judging, lambda requests: judge.answer(requests, settings))
    return replace(task, scorers=(*task.scorers, scorer))


def judge_request(example: Example, text: str) -> Example:
    """What a judge is asked about the answer to one example, under the same id."""
    # An answer may hold the word that stands for an image elsewhere; the judge sees none.
    message = Message("user", (TextBlock(text.replace(IMAGE_TOKEN, "image")),))
    return Example(example.id, (message,))


class RecordedJudge:
    """Replies from a file, for tests and for judging again; an answerer.

    Args:
        path: Lines as in ``judge.jsonl``; ``id``, ``prompt`` and ``prediction`` are read.

    Raises:
        PolyptychError: For a line that lacks one of them, or an id that occurs twice.
    """

    tokens_per_image = 0
    ignores = frozenset(GenerationSettings.__dataclass_fields__)

    def __init__(self, path: str | Path) -> None:
        self.path, self.name = Path(path), f"recorded:{Path(path).name}"
        self._replies: dict[str, tuple[str, str]] = {}
        hashed = hashlib.sha256()
        for where, line in read_lines(path):
            hashed.update(line)
            record = parse_json(line, where)
            keys = ("id", "prompt", "prediction")
            if not isinstance(record, dict) or not all(
                isinstance(record.get(k), str) for k in keys
            ):
                raise PolyptychError(f"{where}: a reply has the texts {', '.join(keys)}")
            if record["id"] in self._replies:
                raise PolyptychError(f"{where}: id {record['id']!r} occurs twice")
            self._replies[record["id"]] = (record["prompt"], record["prediction"])
        self.hash = hashed.hexdigest()[:12]

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """The replies to these requests.

        Raises:
            PolyptychError: For a request that was not recorded, or was another one.
        """
        return [self._reply(example) for example in examples]

    def _reply(self, example: Example) -> str:
        if example.id not in self._replies:
            raise PolyptychError(f"{self.path}: no reply about {example.id!r}")
        prompt, reply = self._replies[example.id]
        if prompt != prompt_text(example.prompt):
            raise PolyptychError(
                f"{self.path}: the reply about {example.id!r} is to another prompt"
            )
        return reply

    def context(self) -> dict[str, Any]:
        """File and hash."""
        return {"model": {"name": str(self.path), "type": "recorded", "hash": self.hash}}


def _judging(task: Task) -> Judging:
    if task.judging is None:
        raise PolyptychError(f"{task.name} asks no judge")
    return task.judging


def _scorer(judging: Judging, replies: Callable[[Sequence[Example]], list[str]]) -> Scorer:
    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        requests = [
            judge_request(example, judging.ask(example, prediction))
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        said = replies(requests)
        unread = [not judging.is_readable(reply) for reply in said]
        ids = [example.id for example in examples]
        return [*judging.measure(examples, said), mean_of(UNPARSABLE, ids, unread)]

    return score
