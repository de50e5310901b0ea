"""How good the model is on the validation sets, while it trains: loss, and CIDEr of its answers.

The loss is taken a second time with the images shuffled among the examples. A model that looks at
its images does worse then; one that does not is found out while it still trains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyptych.data.collation import Collator, SupportsFeatures
from polyptych.evaluation.metrics import compute
from polyptych.schema import IGNORE_INDEX, Example
from polyptych.training.recipe import ValidationRecipe
from polyptych.training.tracking import SHUFFLED_LOSS


class Validation:
    """Validation examples and what is measured on them.

    Args:
        examples: All that is looked at.
        processor: The model's.
        settings: Batch size, length of answers, and what the best checkpoint is best in.
        features: Cached image features, where training reads them too.
        autocast: Compute in bfloat16.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Any,
        settings: ValidationRecipe,
        *,
        features: SupportsFeatures | None = None,
        autocast: bool = False,
    ) -> None:
        self.examples, self.processor, self.settings = examples, processor, settings
        self.features, self.autocast = features, autocast
        self.shuffled = with_images_of_others(self.examples)

    def is_better(self, metrics: dict[str, float], best: dict[str, float] | None) -> bool:
        """Whether these metrics beat the best so far; an equal score does not."""
        if best is None:
            return True
        if self.settings.select_by == "loss":
            return metrics["loss"] < best["loss"]
        return _cider(metrics) > _cider(best)

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Measure; leaves torch's random numbers and the model's mode as they were.

        Returns:
            ``loss`` (mean over answer tokens), ``loss_with_shuffled_images`` (unless there are too
            few images to shuffle) and, unless selection is by loss, ``cider[...]``.
        """
        was_training = model.training
        devices = range(torch.cuda.device_count())
        model.eval()
        try:
            with (
                torch.random.fork_rng(devices=list(devices)),
                torch.no_grad(),
                torch.autocast(model.device.type, torch.bfloat16, enabled=self.autocast),
            ):
                metrics = {"loss": self._loss(model, self.examples)}
                if self.shuffled is not None:
                    metrics[SHUFFLED_LOSS] = self._loss(model, self.shuffled)
                if self.settings.select_by != "loss":
                    metrics.update(self._scores(model))
        finally:
            model.train(was_training)
        return metrics

    def _batches(
        self, model: PreTrainedModel, examples: Sequence[Example], *, training: bool
    ) -> Iterator[dict[str, Tensor]]:
        collate = Collator(self.processor, training=training, features=self.features)
        size = self.settings.batch_size
        for start in range(0, len(examples), size):
            batch = collate(examples[start : start + size])
            yield {name: value.to(model.device) for name, value in batch.items()}  # type: ignore[attr-defined]

    def _loss(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        total, tokens = 0.0, 0
        for batch in self._batches(model, examples, training=True):
            count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            total += float(model(**batch, use_cache=False).loss) * count
            tokens += count
        return total / max(tokens, 1)

    def _scores(self, model: PreTrainedModel) -> dict[str, float]:
        answers: list[str] = []
        for batch in self._batches(model, self.examples, training=False):
            sequences = model.generate(  # type: ignore[operator]
                **batch,
                max_new_tokens=self.settings.max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.processor.pad_token_id,
            )
            answers += self.processor.decode_answers(sequences, batch["input_ids"].shape[1])
        references = [example.references or (example.target or "",) for example in self.examples]
        return {score.name: score.value for score in compute(("cider",), answers, references)}


def with_images_of_others(examples: Sequence[Example]) -> list[Example] | None:
    """The examples with their images dealt out anew; each keeps its number of images.

    The deal is the same at every call. No example gets one of its own images where that can be
    helped by exchanges.

    Returns:
        None where no example would see other images than before.
    """
    owners = [index for index, example in enumerate(examples) for _ in example.images]
    own = [set(example.images) for example in examples]
    dealt = [ref for example in examples for ref in example.images]
    random.Random("images of others").shuffle(dealt)
    count = len(dealt)
    for here in range(count):
        for other in range(here + 1, here + count):
            if dealt[here] not in own[owners[here]]:
                break
            there = other % count
            if dealt[there] not in own[owners[here]] and dealt[here] not in own[owners[there]]:
                dealt[here], dealt[there] = dealt[there], dealt[here]
    if all(ref in own[owner] for ref, owner in zip(dealt, owners, strict=True)):
        return None
    rest = iter(dealt)
    return [
        replace(example, images=tuple(next(rest) for _ in example.images)) for example in examples
    ]


def _cider(metrics: dict[str, float]) -> float:
    return next(value for name, value in metrics.items() if name.startswith("cider"))
