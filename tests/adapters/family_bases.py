"""What the contract tests share: tiny bases, built once and copied; examples of 0 to 3 images."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from polyptych.adapters.adapt import Adapted, adapt
from polyptych.adapters.tiny import tiny_family
from polyptych.schema import Example, ImageBlock, Message, TextBlock
from polyptych.testing import tiny_image

KINDS = (
    "llava",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "idefics3",
    "smolvlm",
    "gemma3",
)
OWN = ("image_counts", "last_prompt")


@functools.cache
def _base(kind: str) -> tuple[Any, Any]:
    return tiny_family(kind)


def base_model(kind: str) -> Any:
    """The base alone; a copy of its own."""
    return copy.deepcopy(_base(kind)[0])


def processor_of(kind: str) -> Any:
    """The family's processor; a copy, since a placeholder may be added to its tokenizer."""
    return copy.deepcopy(_base(kind)[1])


def adapted(kind: str, *methods: Any, drawn: float = 0.0) -> Adapted:
    """A base with methods; ``drawn`` draws all their weights at random, so that they act."""
    result = adapt(base_model(kind), methods, processor=processor_of(kind))
    if drawn:
        draw(result.model, drawn)
    return result


def draw(model: Any, std: float, seed: int = 1) -> None:
    """Random weights for all methods, norms aside."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "polyptych_methods" in name and "norm" not in name:
            torch.nn.init.normal_(weight, std=std)


def example(name: str, images: tuple[int, ...], text: str = "what is in common?") -> Example:
    """A question over drawn images, given by their seeds, with words between them."""
    blocks: list[Any] = []
    for place, _ in enumerate(images):
        blocks += [ImageBlock(), TextBlock(f" {place} ")]
    messages = (
        Message("user", (*blocks, TextBlock(text))),
        Message("assistant", (TextBlock("a red ball"),)),
    )
    return Example(name, messages, tuple(tiny_image(seed) for seed in images))


MIXED = [
    example("two", (1, 2)),
    example("none", (), "is it?"),
    example("one", (3,), "a dog?"),
    example("three", (4, 5, 6)),
]


def theirs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without the names that only adapted models know."""
    return {name: value for name, value in batch.items() if name not in OWN}


def answers(logits: torch.Tensor, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Each row's logits on its answer."""
    return [row[labels != -100] for row, labels in zip(logits, batch["labels"], strict=True)]


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """One pass, without gradients: attention on a CPU computes otherwise where one is wanted."""
    return model(**batch).logits
