"""A tuning step as SIMA's published trainer computes it: what our benchmark compares to.

arXiv 2405.15973. A transcription in our own words, from a description of the released program, of
its order of work for one batch of pairs:

- chosen and rejected rows go through the model one after the other, first with adapters, then
  without: four passes, each over image, prompt and answer;
- the image is encoded in each of them, and once more for the labels that belong to it: eight times;
- logits are made of all positions, turned to float32, and softmax is taken of all of them.

Where the original would be slower for reasons that have nothing to do with its algorithm, this
transcription takes the faster side. It uses the parameters of one of our models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyptych.schema import IGNORE_INDEX
from polyptych.training.dpo import dpo_loss


class PublishedTrainer:
    """The published order of work over a model of ours with adapters (``variant="plain"``)."""

    def __init__(self, model: Any, beta: float = 0.1) -> None:
        self.model, self.beta = model, beta

    def loss(self, rows: Mapping[str, Mapping[str, Tensor]], pixel_values: Tensor) -> Tensor:
        """The mean loss; ``rows`` has ``input_ids`` and ``labels`` of both sides, (B, T) each."""
        policy = [self._log_probs(rows[side], pixel_values) for side in ("chosen", "rejected")]
        with torch.no_grad(), self.model.disable_adapter():
            reference = [
                self._log_probs(rows[side], pixel_values) for side in ("chosen", "rejected")
            ]
        return dpo_loss(*policy, *reference, beta=self.beta).losses.mean()

    def _log_probs(self, rows: Mapping[str, Tensor], pixel_values: Tensor) -> Tensor:
        counts = torch.ones(len(pixel_values), dtype=torch.long)
        logits = self.model(
            input_ids=rows["input_ids"],
            attention_mask=torch.ones_like(rows["input_ids"]),
            pixel_values=pixel_values,
            image_counts=counts,
            use_cache=False,
        ).logits.float()
        with torch.no_grad():  # the labels' own expansion
            self.model.get_base_model().encode_images(pixel_values, image_counts=counts)
        labels, logits = rows["labels"][:, 1:], logits[:, :-1]
        here = labels != IGNORE_INDEX
        targets = labels.masked_fill(~here, 0)
        every = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        return (every * here).sum(-1)
