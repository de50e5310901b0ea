"""How good the model is on the validation sets, while it trains: loss, and CIDEr of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyptych.data.collation import Collator, SupportsFeatures
from polyptych.evaluation.metrics import compute
from polyptych.schema import IGNORE_INDEX, Example
from polyptych.training.recipe import ValidationRecipe


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
            ``loss`` (mean over answer tokens) and, unless selection is by loss, ``cider[...]``.
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
                metrics = {"loss": self._loss(model)}
                if self.settings.select_by != "loss":
                    metrics.update(self._scores(model))
        finally:
            model.train(was_training)
        return metrics

    def _batches(self, model: PreTrainedModel, *, training: bool) -> Iterator[dict[str, Tensor]]:
        collate = Collator(self.processor, training=training, features=self.features)
        size = self.settings.batch_size
        for start in range(0, len(self.examples), size):
            batch = collate(self.examples[start : start + size])
            yield {name: value.to(model.device) for name, value in batch.items()}  # type: ignore[attr-defined]

    def _loss(self, model: PreTrainedModel) -> float:
        total, tokens = 0.0, 0
        for batch in self._batches(model, training=True):
            count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            total += float(model(**batch, use_cache=False).loss) * count
            tokens += count
        return total / max(tokens, 1)

    def _scores(self, model: PreTrainedModel) -> dict[str, float]:
        answers: list[str] = []
        for batch in self._batches(model, training=False):
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


def _cider(metrics: dict[str, float]) -> float:
    return next(value for name, value in metrics.items() if name.startswith("cider"))
