"""Reading many rows that begin alike: what they share is read once.

The rows of a critic share two beginnings: the fixed part of its prompt, which all of them have, and
images, question and ground truth, which all orders and candidates of one case have. A causal
decoder gives equal beginnings equal keys and values, so each is read once, in a batch, and copied:

    fixed part (1 row)  ->  beginnings of cases (G rows)  ->  what differs (R rows)  ->  logits

The result is that of reading every row alone. Where a model makes the meaning of a beginning depend
on what follows it (visual tokens that depend on the instruction, a second look at the images from
the end of the prompt), only as much is shared as stays true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from polyptych.data.images import load_image
from polyptych.data.tokenization import EncodedExample
from polyptych.models.incremental import ReadsIncrementally, key_values
from polyptych.schema import ImageRef


@dataclass(frozen=True, slots=True)
class Case:
    """Rows over the same images. ``rows`` end where the model has to speak."""

    id: str
    images: tuple[ImageRef, ...]
    rows: tuple[EncodedExample, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """Keys and values of rows that have been read, and where their words stand."""

    key_values: list[tuple[Tensor, Tensor]]
    mask: Int[Tensor, "C L"]

    def select(self, rows: Sequence[int]) -> _Read:
        """Copies of some rows, in this order; views where there is one row only."""
        if len(self.mask) == 1:
            count = len(rows)
            pairs = [
                (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1))
                for k, v in self.key_values
            ]
            return _Read(pairs, self.mask.expand(count, -1))
        index = torch.tensor(rows, device=self.mask.device)
        pairs = [(k.index_select(0, index), v.index_select(0, index)) for k, v in self.key_values]
        return _Read(pairs, self.mask.index_select(0, index))


class SharedReader:
    """Reads cases with one model; the fixed part is kept from call to call.

    Args:
        model: A :class:`~polyptych.models.vision_language.VisionLanguageModel`.
        processor: The processor saved beside it.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._fixed_ids: list[int] = []
        self._fixed = self._nothing()

    @torch.inference_mode()
    def last_logits(self, cases: Sequence[Case]) -> list[Float[Tensor, "_ V"]]:
        """Logits behind the last token of every row, case by case."""
        rows = [row for case in cases for row in case.rows]
        owner = [index for index, case in enumerate(cases) for _ in case.rows]
        start = self._read_fixed(rows)
        features = self._features(cases)
        stems = [len(common_prefix(row.input_ids[:-1] for row in case.rows)) for case in cases]
        if self._keeps_beginnings(cases, start, stems):
            firsts = [case.rows[0] for case in cases]
            read, _ = self._read(
                [row.input_ids[start:end] for row, end in zip(firsts, stems, strict=True)],
                self._fixed.select([0] * len(cases)),
                self._seen(firsts, features),
            )
            tails = [row.input_ids[stems[case] :] for row, case in zip(rows, owner, strict=True)]
            _, logits = self._read(tails, read.select(owner), {})
        else:
            _, logits = self._read(
                [row.input_ids[start:] for row in rows],
                self._fixed.select([0] * len(rows)),
                self._seen(rows, [features[case] for case in owner]),
            )
        return list(logits.split([len(case.rows) for case in cases]))

    def _read_fixed(self, rows: Sequence[EncodedExample]) -> int:
        """Read what all rows begin with, before any image, unless it is known; its length."""
        known = self._fixed_ids
        if not known or any(row.input_ids[: len(known)] != known for row in rows):
            ids = common_prefix(row.input_ids[:-1] for row in rows)
            end = next((i for i, token in enumerate(ids) if token in self._places), len(ids))
            self._fixed_ids, self._fixed = ids[:end], self._nothing()
            if end:
                self._fixed, _ = self._read([ids[:end]], self._fixed, {})
        return len(self._fixed_ids)

    def _nothing(self) -> _Read:
        return _Read([], torch.zeros(1, 0, dtype=torch.long, device=self.model.device))

    @property
    def _places(self) -> set[int | None]:
        """Ids that stand for something that is no word."""
        return {self.processor.image_token_id, self.processor.context_token_id}

    def _keeps_beginnings(self, cases: Sequence[Case], start: int, stems: Sequence[int]) -> bool:
        """Whether each case has a beginning with all its images that means the same in all rows."""
        if type(self.model)._read_more is not ReadsIncrementally._read_more:
            return False  # some of its layers read images again from the end of the prompt
        instructed = getattr(self.model.config, "instruction_aware", False)
        for case, stem in zip(cases, stems, strict=True):
            first = case.rows[0]
            if stem <= start or self._places.intersection(first.input_ids[stem:]):
                return False
            if instructed and any(r.instruction_ids != first.instruction_ids for r in case.rows):
                return False
        return True

    def _features(self, cases: Sequence[Case]) -> list[Tensor | None]:
        """Image features of each case, all images in one pass of the vision encoder."""
        refs = [(f"id {case.id!r}", image) for case in cases for image in case.images]
        if not refs:
            return [None] * len(cases)
        pixels = self.processor.pixels([load_image(image, where=where) for where, image in refs])
        features = self.model.vision_encoder(pixels.to(self.model.device, self.model.dtype))
        parts = features.split([len(case.images) for case in cases])
        return [part if len(part) else None for part in parts]

    def _seen(
        self, rows: Sequence[EncodedExample], features: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """The fields of a batch that speak of images; none where there are no images."""
        present = [part for part in features if part is not None]
        if not present:
            return {}
        pad = self.processor.instruction_pad_token_id
        ids, mask = self._padded([row.instruction_ids for row in rows], pad, left=False)
        return {
            "image_features": torch.cat(present),
            "image_counts": self._tensor([row.image_count for row in rows]),
            "qformer_input_ids": ids,
            "qformer_attention_mask": mask,
            # from the right, since rows are padded on the left
            "last_prompt": self._tensor([row.last_prompt - len(row.input_ids) for row in rows]),
        }

    def _read(
        self, ids: Sequence[list[int]], before: _Read, seen: dict[str, Tensor]
    ) -> tuple[_Read, Float[Tensor, "C V"]]:
        """Read rows that go on from ``before``; what has been read then, and the last logits."""
        input_ids, mask = self._padded(ids, self.processor.pad_token_id, left=True)
        whole = torch.cat([before.mask, mask], dim=1)
        positions = (whole.cumsum(dim=1) - 1).clamp(min=0)[:, before.mask.shape[1] :]
        if seen:
            width = input_ids.shape[1]
            seen = {**seen, "last_prompt": (seen["last_prompt"] + width).clamp(min=0)}
        output = self.model(
            input_ids=input_ids,
            attention_mask=whole,
            position_ids=positions,
            past_key_values=DynamicCache(before.key_values),
            use_cache=True,
            logits_to_keep=1,
            **seen,
        )
        cache = output.past_key_values
        return _Read(key_values(cache, len(cache.layers)), whole), output.logits[:, -1]

    def _padded(self, rows: Sequence[list[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask (C, L)."""
        width = max(len(row) for row in rows)
        gaps = [width - len(row) for row in rows]
        ids = [
            [pad] * g * left + r + [pad] * g * (not left) for r, g in zip(rows, gaps, strict=True)
        ]
        mask = [
            [0] * g * left + [1] * len(r) + [0] * g * (not left)
            for r, g in zip(rows, gaps, strict=True)
        ]
        return self._tensor(ids), self._tensor(mask)

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)


def common_prefix(rows: Iterable[list[int]]) -> list[int]:
    """The ids that all rows begin with: those that the least and the greatest of them share."""
    known = list(rows)
    first, last = min(known), max(known)
    end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:end]
