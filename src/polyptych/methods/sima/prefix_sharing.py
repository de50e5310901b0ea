"""Reading many rows that begin alike: what they share is read once.

The rows of a critic share two beginnings: the fixed part of its prompt, which all of them have, and
images, question and ground truth, which all orders and candidates of one case have. The fixed part
is read once, and its keys and values stand before every case; a case is one row, whose different
endings are branches that do not see each other::

    fixed part (1 row)  ->  case: beginning, ending 1, ending 2 ... (G rows)  ->  logits

The result is that of reading every row alone. Where a model makes the meaning of a beginning depend
on what follows it (visual tokens that depend on the instruction, a second look at the images from
the end of the prompt), only the fixed part is shared.
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
from polyptych.errors import PolyptychError
from polyptych.models.incremental import ReadsIncrementally, key_values
from polyptych.schema import Example, ImageRef
from polyptych.training.branching import branching_mask, check_branching


@dataclass(frozen=True, slots=True)
class Case:
    """Rows over the same images. ``rows`` end where the model has to speak."""

    id: str
    images: tuple[ImageRef, ...]
    rows: tuple[EncodedExample, ...]
    examples: tuple[Example, ...] = ()
    """What the rows are made of; for :class:`WholeReader` alone."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Keys and values of rows that have been read, and where their words stand."""

    key_values: list[tuple[Tensor, Tensor]]
    mask: Int[Tensor, "C L"]

    def copies(self, count: int) -> _Read:
        """Views of the one row."""
        pairs = [
            (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in self.key_values
        ]
        return _Read(pairs, self.mask.expand(count, -1))


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
            return self._read_branches(cases, start, stems, features)
        _, logits = self._read(
            [row.input_ids[start:] for row in rows],
            self._fixed.copies(len(rows)),
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
        try:
            check_branching(self.model, max(len(r.input_ids) for c in cases for r in c.rows))
        except PolyptychError:
            return False
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

    def _read_branches(
        self,
        cases: Sequence[Case],
        start: int,
        stems: Sequence[int],
        features: Sequence[Tensor | None],
    ) -> list[Float[Tensor, "_ V"]]:
        """One row per case; endings stand in columns of equal width, padded on the left."""
        firsts = [case.rows[0] for case in cases]
        pad, count = self.processor.pad_token_id, max(len(case.rows) for case in cases)
        stem_ids, stem_mask = self._padded(
            [row.input_ids[start:end] for row, end in zip(firsts, stems, strict=True)],
            pad,
            left=True,
        )
        endings = [[r.input_ids[end:] for r in c.rows] for c, end in zip(cases, stems, strict=True)]
        end_ids, end_mask = self._padded(
            [ids for rows in endings for ids in [*rows, *[[]] * (count - len(rows))]],
            pad,
            left=True,
        )
        width, length = stem_ids.shape[1], end_ids.shape[1]
        in_case = end_mask.unflatten(0, (len(cases), count))
        positions = torch.cat(
            [
                stem_mask.cumsum(dim=1),
                (stem_mask.sum(dim=1)[:, None, None] + in_case.cumsum(dim=-1)).flatten(1),
            ],
            dim=1,
        )
        mask = torch.cat([stem_mask, in_case.flatten(1)], dim=1)
        branch = self._tensor([0] * width + [b for b in range(1, count + 1) for _ in range(length)])
        seen = branching_mask(mask, branch)
        seen = torch.cat([seen.new_ones(*seen.shape[:3], start), seen], dim=-1)
        output = self.model(
            input_ids=torch.cat([stem_ids, end_ids.view(len(cases), -1)], dim=1),
            attention_mask=self._as_attention_takes_it(seen),
            position_ids=(start + positions - 1).clamp(min=0),
            past_key_values=DynamicCache(self._fixed.copies(len(cases)).key_values),
            use_cache=True,
            logits_to_keep=self._tensor([width + length * b - 1 for b in range(1, count + 1)]),
            **{**self._seen(firsts, features), "last_prompt": stem_mask.sum(dim=1) * 0 + width - 1},
        )
        return [logits[: len(case.rows)] for case, logits in zip(cases, output.logits, strict=True)]

    def _as_attention_takes_it(self, seen: Tensor) -> Tensor:
        """A mask over pairs of positions; ``eager`` attention adds it, where others select."""
        if self.model.get_decoder().config._attn_implementation != "eager":
            return seen
        dtype = self.model.get_input_embeddings().weight.dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

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


class WholeReader:
    """Reads every row whole, for bases of transformers: their batches are their processor's own.

    Args:
        model: An adapted base.
        processor: Its :class:`~polyptych.adapters.processor.FamilyProcessor`.
        begun: Ids that the rows end with, behind their examples.
    """

    def __init__(self, model: Any, processor: Any, begun: Sequence[int]) -> None:
        self.model, self.processor, self.begun = model, processor, begun

    @torch.inference_mode()
    def last_logits(self, cases: Sequence[Case]) -> list[Float[Tensor, "_ V"]]:
        """Logits behind the last token of every row, case by case."""
        return [self._read(case.examples) for case in cases]

    def _read(self, examples: Sequence[Example]) -> Float[Tensor, "_ V"]:
        batch = self.processor.collate(examples, training=False, begun=self.begun)
        device, dtype = self.model.device, self.model.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in batch.items()
        }
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


def common_prefix(rows: Iterable[list[int]]) -> list[int]:
    """The ids that all rows begin with: those that the least and the greatest of them share."""
    known = list(rows)
    first, last = min(known), max(known)
    end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:end]
