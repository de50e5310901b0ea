"""A model in memory as an answerer, and the steps of which its answers are made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from polyptych.data.collation import Collator
from polyptych.evaluation.answering import digest
from polyptych.evaluation.task import GenerationSettings
from polyptych.schema import Example


class LocalModel:
    """One of our models with its processor; an :class:`~polyptych.evaluation.answering.Answerer`.

    Args:
        model: A model with ``generate``.
        processor: The processor saved beside it.
        name: What tables call it; default: the last part of its own name or path.
    """

    ignores: frozenset[str] = frozenset()

    def __init__(self, model: Any, processor: Any, name: str | None = None) -> None:
        self.model, self.processor = model, processor
        own = Path(model.config.name_or_path or type(model).__name__).name
        self.name = name or own

    @cached_property
    def hash(self) -> str:
        """Of the weights and the row layout."""
        layout = json.dumps(dataclasses.asdict(self.processor.settings), sort_keys=True)
        return digest(layout, model_hash(self.model))

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one image."""
        return self.processor.tokens_per_image

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """Answer one batch; see :func:`answer`."""
        return answer(self.model, self.processor, examples, settings)

    def context(self) -> dict[str, Any]:
        """Model, row layout and what decodes images."""
        return {
            "model": {
                "name": self.model.config.name_or_path,
                "type": self.model.config.model_type,
                "hash": model_hash(self.model),
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "device": self.model.device.type,
            },
            "prompt_template": self.processor.template,
            "image_backend": type(self.processor.image_processor).__name__,
        }


@torch.inference_mode()
def answer(
    model: Any, processor: Any, examples: Sequence[Example], settings: GenerationSettings
) -> list[str]:
    """Answer one batch: ``images and words -> text``, nothing written.

    Sampling starts from ``settings.seed`` in every call and leaves the caller's random state as it
    was.
    """
    inputs = model_inputs(model, processor, examples)
    sequences = generate_ids(model, processor, inputs, settings)
    return processor.decode_answers(sequences, inputs["input_ids"].shape[1])


def generate_ids(
    model: Any, processor: Any, inputs: Mapping[str, Any], settings: GenerationSettings
) -> torch.Tensor:
    """Prompts and answers (rows, T + L) of prepared inputs; sampling as in :func:`answer`."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=settings.do_sample):
        if settings.do_sample:
            torch.manual_seed(settings.seed)
        return model.generate(**inputs, **settings.arguments(), pad_token_id=processor.pad_token_id)


def model_inputs(
    model: Any, processor: Any, examples: Sequence[Example]
) -> dict[str, torch.Tensor]:
    """Prompts and pictures of a batch, where the model is and in the type it computes in."""
    batch: Any = Collator(processor, training=False)(examples)
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }


def model_hash(model: Any) -> str:
    """Twelve hex digits of names, shapes and a few numbers of every weight: cheap at any size."""
    parts = []
    for name, weight in model.state_dict().items():
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 8)].double().cpu().tolist()
        parts.append(f"{name} {tuple(weight.shape)} {some}")
    return digest(*parts)
