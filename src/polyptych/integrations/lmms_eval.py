"""Our models in lmms-eval, as a chat model: images stay where the task puts them.

    lmms-eval eval --model polyptych --model_args pretrained=MODEL --batch_size 8 --tasks pope
    torchrun --nproc_per_node 2 -m lmms_eval --model polyptych ...        # two GPUs

MODEL is anything that ``polyptych evaluate`` takes. lmms-eval finds :func:`manifests` by the entry
point group ``lmms_eval.models``; it has to be installed beside this package and is imported only
when it asks. Written for lmms-eval 0.7, whose requests have six arguments (its guide says five).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from polyptych.evaluation.task import GenerationSettings
from polyptych.integrations.devices import best_device
from polyptych.integrations.messages import chat_example
from polyptych.schema import Example

NAME = "polyptych"


def manifests() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.PolyptychChat", aliases=()),
    ]


def __getattr__(name: str) -> Any:
    """``PolyptychChat``, whose base class is lmms-eval's, is made when it is asked for."""
    if name == "PolyptychChat":
        return _chat_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _chat_class() -> type:
    from lmms_eval.api.model import lmms

    class PolyptychChat(lmms):
        """A model that answers interleaved messages.

        Args:
            pretrained: A folder, hub name, bundled name, server or function.
            batch_size: Requests answered together.
            device: Where a model in memory computes; default: a GPU if there is one.
            api_model: What a server calls its model.
        """

        is_simple = False

        def __init__(
            self,
            pretrained: str,
            batch_size: int | str = 1,
            device: str | None = None,
            api_model: str | None = None,
        ) -> None:
            from polyptych.serving.answerers import load_answerer

            self.pretrained = pretrained  # before the base looks for a name of its cache
            super().__init__()
            self.device = device or best_device()  # where its processes exchange counts
            self.answerer = load_answerer(pretrained, device=self.device, api_model=api_model)
            self.batch_size = int(batch_size)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Answer requests in their order."""
            prepared = [self._prepare(request.args) for request in requests]
            answers: dict[int, str] = {}
            for start, stop in _runs([settings for _, settings, _ in prepared], self.batch_size):
                part = prepared[start:stop]
                texts = self.answerer.answer([example for example, _, _ in part], part[0][1])
                for number, text, (_, _, until) in zip(
                    range(start, stop), texts, part, strict=True
                ):
                    answers[number] = cut(text, until)
            return [answers[number] for number in range(len(prepared))]

        def _prepare(self, arguments: Sequence[Any]) -> tuple[Example, GenerationSettings, Any]:
            _context, doc_to_messages, options, doc_id, task, split = arguments
            messages = doc_to_messages(self.task_dict[task][split][doc_id])
            example = chat_example(f"{task} {split} {doc_id}", messages)
            return example, settings_of(options), options.get("until")

        def loglikelihood(self, requests: Sequence[Any]) -> Any:
            """Refused: lmms-eval's chat models only write."""
            raise NotImplementedError(f"{NAME}: only tasks that generate text can be run")

        def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
            """Refused."""
            raise NotImplementedError(f"{NAME}: tasks of several rounds cannot be run")

    return PolyptychChat


def settings_of(options: Mapping[str, Any]) -> GenerationSettings:
    """lmms-eval's options of generation as our settings; temperature 0 means greedy."""
    default = GenerationSettings()
    temperature = float(options.get("temperature") or 0)
    samples = bool(options.get("do_sample", temperature > 0)) and temperature > 0
    return GenerationSettings(
        num_beams=int(options.get("num_beams") or default.num_beams),
        max_new_tokens=int(options.get("max_new_tokens") or default.max_new_tokens),
        do_sample=samples,
        temperature=temperature if samples else default.temperature,
        top_p=float(options.get("top_p") or default.top_p) if samples else default.top_p,
    )


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """A text up to the first of some marks."""
    marks = [until] if isinstance(until, str) else list(until or ())
    for mark in filter(None, marks):
        text = text.split(mark)[0]
    return text


def _runs(settings: Sequence[GenerationSettings], size: int) -> list[tuple[int, int]]:
    """Stretches of at most ``size`` requests that have the same settings."""
    found: list[tuple[int, int]] = []
    start = 0
    for number in range(1, len(settings) + 1):
        ends = number == len(settings) or settings[number] != settings[start]
        if ends or number - start == size:
            found.append((start, number))
            start = number
    return found
