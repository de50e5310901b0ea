"""Who answers: the one thing that an evaluation needs of a model.

A model in memory (:mod:`polyptych.evaluation.local_model`), a server that speaks OpenAI's API, a
Python function (:mod:`polyptych.serving.answerers`): all are asked the same way.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from polyptych.evaluation.task import GenerationSettings
from polyptych.schema import Example


@runtime_checkable
class Answerer(Protocol):
    """Answers examples in batches."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def hash(self) -> str:
        """Changes with everything that makes another answer: weights, row layout, code."""
        ...

    @property
    def tokens_per_image(self) -> int:
        """About how long an image is, to put examples of similar length together."""
        ...

    @property
    def ignores(self) -> frozenset[str]:
        """Names of :class:`GenerationSettings` that have no effect on it."""
        ...

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """Answer one batch, in its order.

        Raises:
            PolyptychError: For an image that cannot be read, or if there is no answer.
        """
        ...

    def context(self) -> dict[str, Any]:
        """What a reader must know of it to judge or repeat a number, as JSON."""
        ...


def obeyed(answerer: Answerer, settings: GenerationSettings) -> GenerationSettings:
    """The settings with those that the answerer ignores at their defaults: what really was used."""
    default = GenerationSettings()
    return dataclasses.replace(
        settings, **{name: getattr(default, name) for name in answerer.ignores}
    )


def run_key(answerer: Answerer, settings: GenerationSettings) -> str:
    """Twelve hex digits of what makes an answer: decoding settings and who answers."""
    return digest(settings.hash, answerer.hash)


def digest(*parts: str) -> str:
    """Twelve hex digits of several texts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() + b"\0")
    return found.hexdigest()[:12]
