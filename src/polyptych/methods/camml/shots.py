"""Shots between the two kinds of perceiver: ragged, flat, and kept per datastore entry.

What the Vision and the Language Perceiver make of a shot depends on nothing but the shot, so it can
be computed once per entry of a datastore and joined at will: :meth:`ShotTokens.split` and
:func:`join_shots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyptych.schema import Shots


@dataclass(frozen=True, slots=True)
class ShotTokens:
    """S shots after the Vision and the Language Perceiver, each modality flat over the shots."""

    vision: Float[Tensor, "N D"]
    """One row per patch of the shots' images."""
    vision_lengths: Int[Tensor, " S"]
    """Rows of each shot; 0 where it has no image."""
    language: Float[Tensor, "M D"]
    """One row per word."""
    language_lengths: Int[Tensor, " S"]
    """Rows of each shot."""

    def __len__(self) -> int:
        return len(self.vision_lengths)

    @classmethod
    def of(cls, shots: Shots) -> ShotTokens | None:
        """Those that a batch brings; None where it brings the shots themselves."""
        if "shot_vision_tokens" not in shots:
            return None
        return cls(
            shots["shot_vision_tokens"],
            shots["shot_vision_lengths"],
            shots["shot_language_tokens"],
            shots["shot_language_lengths"],
        )

    def as_inputs(self, shot_counts: Int[Tensor, " B"]) -> Shots:
        """As a batch brings them."""
        return Shots(
            shot_counts=shot_counts,
            shot_vision_tokens=self.vision,
            shot_vision_lengths=self.vision_lengths,
            shot_language_tokens=self.language,
            shot_language_lengths=self.language_lengths,
        )

    def split(self) -> list[ShotTokens]:
        """Each shot by itself, as a datastore keeps it."""
        vision = self.vision.split(self.vision_lengths.tolist())
        language = self.language.split(self.language_lengths.tolist())
        return [
            ShotTokens(
                vision[shot],
                self.vision_lengths[shot : shot + 1],
                language[shot],
                self.language_lengths[shot : shot + 1],
            )
            for shot in range(len(self))
        ]


def join_shots(shots: Sequence[ShotTokens]) -> ShotTokens:
    """Shots from anywhere as those of one batch, in this order; at least one."""
    return ShotTokens(
        torch.cat([shot.vision for shot in shots]),
        torch.cat([shot.vision_lengths for shot in shots]),
        torch.cat([shot.language for shot in shots]),
        torch.cat([shot.language_lengths for shot in shots]),
    )


def pad_ragged(
    flat: Tensor, lengths: Int[Tensor, " X"]
) -> tuple[Tensor, Bool[Tensor, "X L"] | None]:
    """Flat rows (N, ...) as (X, L, ...) and where they stand; None: nothing is padding.

    ``[a b c], [2, 1] -> [[a b] [c 0]], [[1 1] [1 0]]``. L is at least 1.
    """
    width = max(1, int(lengths.max()))
    if bool((lengths == width).all()):
        return flat.unflatten(0, (-1, width)), None
    places = torch.arange(width, device=flat.device)
    mask = places < lengths[:, None]
    padded = flat.new_zeros(len(lengths), width, *flat.shape[1:])
    return padded.masked_scatter(mask.view(*mask.shape, *[1] * (flat.dim() - 1)), flat), mask


def ranks(counts: Int[Tensor, " B"]) -> Int[Tensor, " S"]:
    """The place of each shot among those of its example: ``[2, 0, 3] -> [0, 1, 0, 1, 2]``."""
    starts = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum()), device=counts.device) - starts.repeat_interleave(counts)


def sums_over_examples(lengths: Int[Tensor, " S"], counts: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Rows of all shots of each example."""
    example = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return torch.zeros_like(counts).index_add(0, example, lengths.to(counts.dtype))


def leaked_mask(mask: Int[Tensor, "S L"], counts: Int[Tensor, " B"]) -> Bool[Tensor, "S L"]:
    """The words and pads that the released code reads: as many as the batch's longest text.

    It pads the k-th shots of all examples to the longest of these and masks nothing, so that what
    an example becomes depends on its neighbors in the batch.
    """
    rank = ranks(counts)
    lengths = mask.sum(dim=1)
    longest = lengths.new_zeros(int(counts.max())).scatter_reduce(0, rank, lengths, "amax")
    return torch.arange(mask.shape[1], device=mask.device) < longest[rank][:, None]
