"""What a bfloat16 training step on a CPU saves by fewer logits and by attention in float32.

A small LLaVA, all of which learns, reads rows of several images with a short answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapter_costs import example
from measuring import measure, peak_bytes
from polyptych.adapters.adapt import adapt
from polyptych.adapters.tiny import TinySizes, tiny_family
from polyptych.training.cpu_attention import Float32Attention
from polyptych.training.labelled import chosen_states, labelled_loss, predicting

SIZES = TinySizes(
    side=96,
    patch=12,  # 64 visual tokens an image
    vision_width=128,
    width=256,
    layers=4,
    heads=8,
    positions=1024,
)
VOCABULARY = 32000

Step = Callable[[Any, dict[str, Tensor]], Tensor]


def everywhere(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The loss that the model computes: logits of all positions."""
    return model(**batch, use_cache=False).loss


def where_labelled(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The same loss from fewer logits."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with chosen_states(model.get_output_embeddings(), *predicting(batch["labels"])):
        return labelled_loss(model(**inputs, use_cache=False), batch["labels"])


def in_float32(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """And with attention out of autocast's reach: what `polyptych train` does."""
    with Float32Attention():
        return where_labelled(model, batch)


STEPS: dict[str, Step] = {
    "logits everywhere": everywhere,
    "logits where labelled": where_labelled,
    "and attention in float32": in_float32,
}


def backward(step: Step, model: Any, batch: dict[str, Tensor]) -> None:
    """Forward and backward under autocast."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = step(model, batch)
    loss.backward()


def learner(sizes: TinySizes, vocabulary: int) -> tuple[Any, Any]:
    """A LLaVA with a large vocabulary, and its processor."""
    model, processor = tiny_family("llava", sizes=sizes)
    model.resize_token_embeddings(vocabulary)
    adapted = adapt(model, [], processor=processor)
    return adapted.model.train(), adapted.processor


def measured(
    images: int,
    rows: int,
    repeats: int,
    sizes: TinySizes = SIZES,
    vocabulary: int = VOCABULARY,
) -> list[dict[str, Any]]:
    """Processor time of a step and what it needs at its peak beside the weights."""
    model, processor = learner(sizes, vocabulary)
    batch = processor.collate([example(images)] * rows, training=True)
    tasks = {name: partial(backward, step, model, batch) for name, step in STEPS.items()}
    times = measure(tasks, repeats, 120.0, summarize=min)
    size = {"rows": rows, "positions": batch["input_ids"].shape[1], "vocabulary": vocabulary}
    found = []
    for name, task in tasks.items():
        model.zero_grad()
        found.append({"variant": name, **size, "mib": peak_bytes(task) / 2**20, **times[name]})
    return found
