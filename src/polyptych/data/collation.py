"""Examples become a batch: images decoded and stacked flat, rows padded, nothing guessed later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from polyptych.data.images import load_image
from polyptych.data.tokenization import EncodedExample
from polyptych.schema import IGNORE_INDEX, Batch, Example, ImageRef, Shots


class SupportsEncoding(Protocol):
    """What the collator needs of a processor."""

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows."""

    @property
    def instruction_pad_token_id(self) -> int:
        """Id that fills the Q-Former's rows."""

    def encode(self, example: Example, *, with_target: bool) -> EncodedExample:
        """Token ids of one example."""

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """Pixel values (n, 3, H, W) of decoded images."""


class SupportsFeatures(Protocol):
    """What the collator needs of a feature cache."""

    def get(self, refs: Sequence[ImageRef]) -> Tensor:
        """Image features (n, P, D_v)."""


class SupportsStates(Protocol):
    """What the collator needs of a state cache."""

    def states(self, examples: Sequence[Example], rows: Sequence[EncodedExample]) -> Tensor:
        """States (B, T, D) of the examples' rows, padded on the right."""


class SupportsShots(Protocol):
    """What the collator needs of a store of encoded shots."""

    def get(self, shots: Sequence[Example]) -> Shots:
        """The four fields of what a model has made of these shots."""


def makes_own_batches(processor: Any) -> bool:
    """Whether a processor is that of a family of transformers, whose batches have other fields."""
    return hasattr(processor, "collate")


class Collator:
    """``list[Example] -> Batch``; runs in the data loader's worker processes.

    Args:
        processor: Encodes text and images.
        training: True makes right-padded rows with labels; False makes left-padded prompts that
            ``generate`` can go on from.
        features: Where frozen image features are read from instead of decoding images.
        states: Where the states that enter a decoder layer are read from (training rows only).
        shots: Where a model's encoded shots are read from instead of their texts and images.
    """

    def __init__(
        self,
        processor: SupportsEncoding,
        *,
        training: bool,
        features: SupportsFeatures | None = None,
        states: SupportsStates | None = None,
        shots: SupportsShots | None = None,
    ) -> None:
        self.processor, self.training = processor, training
        self.features, self.states, self.shots = features, states, shots

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Make the batch; keys and shapes in :class:`polyptych.schema.Batch`.

        That of a family of transformers makes it by itself, see :func:`makes_own_batches`.
        """
        if makes_own_batches(self.processor):
            processor: Any = self.processor
            return processor.collate(examples, training=self.training)
        encoded = [self.processor.encode(e, with_target=self.training) for e in examples]
        batch = self.pad(encoded)
        refs = [(f"example {e.id}", ref) for e in examples for ref in e.images]
        if refs and self.features is not None:
            batch["image_features"] = self.features.get([ref for _, ref in refs])
        elif refs:
            batch["pixel_values"] = self._pixels(refs)
        if any(row.shots for row in encoded):
            batch.update(self.read_shots(examples, encoded))
        if self.states is not None:
            batch["lower_states"] = self.states.states(examples, encoded)
        return batch

    def _pixels(self, refs: Sequence[tuple[str, ImageRef]]) -> Tensor:
        return self.processor.pixels([load_image(ref, where=where) for where, ref in refs])

    def read_shots(self, examples: Sequence[Example], encoded: Sequence[EncodedExample]) -> Shots:
        """All shots of all examples, flat, padded on the right to the longest text.

        Args:
            examples: With shots; of the others nothing is read.
            encoded: Their rows.
        """
        counts = torch.tensor([len(row.shots) for row in encoded])
        owners = [
            (e, shot)
            for e, row in zip(examples, encoded, strict=True)
            if row.shots
            for shot in e.shots
        ]
        if self.shots is not None:
            return Shots(shot_counts=counts, **self.shots.get([shot for _, shot in owners]))
        texts = [torch.tensor(ids) for row in encoded for ids in row.shots]
        lengths = torch.tensor([len(text) for text in texts])
        ids = pad_sequence(texts, batch_first=True, padding_value=self.processor.pad_token_id)
        shots = Shots(
            shot_counts=counts,
            shot_input_ids=ids,
            shot_attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            shot_image_counts=torch.tensor([len(shot.images) for _, shot in owners]),
        )
        refs = [(f"example {e.id}, shot {s.id}", ref) for e, s in owners for ref in s.images]
        if refs and self.features is not None:
            shots["shot_image_features"] = self.features.get([ref for _, ref in refs])
        elif refs:
            shots["shot_pixel_values"] = self._pixels(refs)
        return shots

    def pad(self, encoded: Sequence[EncodedExample]) -> Batch:
        """Pad rows to the longest.

        Training rows are padded on the right. Prompts are padded on the left; in the
        ``images_first`` layout between images and text, with positions that skip the gap, as the
        released SAM does.
        """
        width = max(len(row.input_ids) for row in encoded)
        pad = self.processor.pad_token_id
        ids = torch.full((len(encoded), width), pad)
        mask = torch.zeros(len(encoded), width, dtype=torch.long)
        labels = torch.full((len(encoded), width), IGNORE_INDEX)
        last_prompt = torch.zeros(len(encoded), dtype=torch.long)
        for row, example in enumerate(encoded):
            tokens, gap = torch.tensor(example.input_ids), width - len(example.input_ids)
            start = 0 if self.training else example.visual_prefix
            shift = 0 if self.training else gap
            ids[row, :start], mask[row, :start] = tokens[:start], 1
            end = shift + len(tokens)
            ids[row, shift + start : end], mask[row, shift + start : end] = tokens[start:], 1
            labels[row, shift + start : end] = torch.tensor(example.labels[start:])
            last_prompt[row] = example.last_prompt + shift
        batch = Batch(
            input_ids=ids,
            attention_mask=mask,
            image_counts=torch.tensor([row.image_count for row in encoded]),
            last_prompt=last_prompt,
        )
        if self.training:
            batch["labels"] = labels
        elif any(row.visual_prefix for row in encoded):
            batch["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        batch["qformer_input_ids"], batch["qformer_attention_mask"] = self._pad_instructions(
            encoded
        )
        return batch

    def _pad_instructions(self, encoded: Sequence[EncodedExample]) -> tuple[Tensor, Tensor]:
        width = max(len(row.instruction_ids) for row in encoded)
        ids = torch.full((len(encoded), width), self.processor.instruction_pad_token_id)
        mask = torch.zeros(len(encoded), width, dtype=torch.long)
        for row, example in enumerate(encoded):
            length = len(example.instruction_ids)
            ids[row, :length] = torch.tensor(example.instruction_ids, dtype=torch.long)
            mask[row, :length] = 1
        return ids, mask
