"""Which image each visual token belongs to: the one question that families answer differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyptych.adapters.families import Grouping
from polyptych.errors import PolyptychError
from polyptych.language.prefill import Prefill


@dataclass(slots=True)
class FlatPrefill(Prefill):
    """A prefill whose images may have unequal numbers of visual tokens.

    ``image_features`` are the base's finished visual tokens, flat (N, D_llm): what the decoder is
    about to read, with the guidance of methods that acted before.
    """

    @property
    def visual_tokens(self) -> Float[Tensor, "N D_llm"]:
        """What the decoder reads."""
        return self.image_features

    @property
    def image(self) -> Int[Tensor, " N"]:
        """The image of each visual token, counted over the batch."""
        lengths = self.tokens_per_image
        return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def number_images(
    input_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    entry_lengths: list[int],
    grouping: Grouping,
    marker_id: int | None = None,
) -> tuple[Int[Tensor, " B"], Int[Tensor, " I"]]:
    """Images of each row, and visual tokens of each image.

    ``[# # a # #]`` with entries of 2 and 2 tokens: counts ``[2]``, lengths ``[2, 2]``; as runs the
    same; ``[# # # #]`` is two images by entry and one by run.

    Args:
        input_ids: Token ids.
        mask: Where visual tokens stand.
        entry_lengths: Visual tokens of each entry of the vision output, in order.
        grouping: The family's rule.
        marker_id: Id before the run that ends an image, for ``marker``.

    Raises:
        PolyptychError: If placeholders and visual tokens differ in number, an image lies in two
            rows, or a row has no marker for its last image.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    if sum(entry_lengths) != len(rows):
        raise PolyptychError(
            f"{len(rows)} image placeholders in the rows for {sum(entry_lengths)} visual tokens of "
            f"{len(entry_lengths)} images or tiles"
        )
    if len(rows) == 0:
        return rows.new_zeros(len(mask)), rows.new_zeros(0)
    if grouping == "entry":
        lengths = torch.tensor(entry_lengths, device=rows.device)
        image = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths)
    else:
        image = _runs(rows, columns)
        if grouping == "marker":
            image = _up_to_markers(input_ids, rows, columns, image, cast("int", marker_id))
    lengths = torch.bincount(image)
    first = lengths.cumsum(0) - lengths
    row, last_row = rows[first], rows[first + lengths - 1]
    if not torch.equal(row, last_row):
        torn = int((row != last_row).nonzero()[0])
        raise PolyptychError(
            f"image {torn} begins in row {int(row[torn])} of the batch and ends in row "
            f"{int(last_row[torn])}"
        )
    return torch.bincount(row, minlength=len(mask)), lengths


def _runs(rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The unbroken run that each visual token stands in."""
    breaks = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1] + 1)
    return torch.cat([breaks.new_zeros(1), breaks]).long().cumsum(0)


def _up_to_markers(
    input_ids: Int[Tensor, "B T"],
    rows: Int[Tensor, " N"],
    columns: Int[Tensor, " N"],
    run: Int[Tensor, " N"],
    marker_id: int,
) -> Int[Tensor, " N"]:
    """Runs joined: the one behind a marker is an image's last."""
    first = torch.cat([run.new_ones(1), run.diff()]).bool()
    closes = input_ids[rows[first], (columns[first] - 1).clamp(min=0)] == marker_id
    row = rows[first]
    ends_row = torch.cat([row[1:] != row[:-1], closes.new_ones(1)])
    if bool((ends_row & ~closes).any()):
        bad = int(row[ends_row & ~closes][0])
        raise PolyptychError(
            f"row {bad} of the batch: no token {marker_id} before the last of its "
            f"{int((row == bad).sum())} runs of visual tokens"
        )
    return (closes.long().cumsum(0) - closes.long())[run]


def find_prompt_end(
    input_ids: Int[Tensor, "B T"], marker: Int[Tensor, " M"], rows: Bool[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """The last token of the last ``marker`` in each of the chosen rows; 0 in the others.

    Raises:
        PolyptychError: If a chosen row has none.
    """
    places = torch.zeros_like(input_ids, dtype=torch.bool)
    if input_ids.shape[1] >= len(marker):
        found = (input_ids.unfold(1, len(marker), 1) == marker).all(-1)
        places[:, len(marker) - 1 :] = found
    lacking = (rows & ~places.any(1)).nonzero()
    if len(lacking):
        raise PolyptychError(
            f"row {int(lacking[0])} of the batch has images but no end of a prompt (ids "
            f"{marker.tolist()}), nor was last_prompt given; VPG-C is guided by that token"
        )
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (columns * places).amax(1)
