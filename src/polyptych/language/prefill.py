"""What is known while a prompt with images is read: the one record that methods act on.

It exists from the splice to the last decoder layer of one pass over whole prompts, in training and
in the first step of generation; steps that read single new tokens have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyptych.connectors.connector import example_of_image
from polyptych.connectors.qformer import KeyValue
from polyptych.language.splicing import repeat_examples


@dataclass(slots=True)
class Prefill:
    """Which example, image and place every visual token belongs to, and what made it.

    Rows are examples (C = B), but in a beam search without a cache (C = copies x B).
    """

    visual_mask: Bool[Tensor, "C T"]
    """Where visual tokens stand."""
    image_counts: Int[Tensor, " B"]
    """Images of each example."""
    tokens_per_image: Int[Tensor, " I"]
    """Visual tokens of each image."""
    image_features: Float[Tensor, "I P D_v"]
    """The vision encoder's output."""
    last_prompt: Int[Tensor, " B"] | None = None
    """Place of the last prompt token."""
    image_key_values: Sequence[KeyValue | None] | None = None
    """What the connector has projected of the images, layer by layer, to be read again."""
    record: dict[str, Tensor] | None = field(default=None, repr=False)
    """Receives the named intermediates, where somebody asked for them."""

    @property
    def example(self) -> Int[Tensor, " I"]:
        """The example of each image."""
        return example_of_image(self.image_counts)

    def of_example(self, index: int, padding: int) -> Prefill | None:
        """The same of one example whose row starts behind its padding; None without images."""
        count = int(self.image_counts[index])
        if count == 0:
            return None
        first = int(self.image_counts[:index].sum())
        here = slice(first, first + count)
        last, known = self.last_prompt, self.image_key_values
        return Prefill(
            self.visual_mask[index : index + 1, padding:],
            self.image_counts[index : index + 1],
            self.tokens_per_image[here],
            self.image_features[here],
            None if last is None else last[index : index + 1] - padding,
            None if known is None else [kv and (kv[0][here], kv[1][here]) for kv in known],
        )

    def first_copies(self, states: Float[Tensor, "C T D"]) -> Float[Tensor, "B T D"]:
        """One row of every example: the copies of a beam search have read the same prompt."""
        return states[:: len(states) // len(self.image_counts)]

    def add_to_visual_tokens(
        self, states: Float[Tensor, "C T D"], residual: Float[Tensor, "N D"]
    ) -> Float[Tensor, "C T D"]:
        """``states`` with the residual of each visual token added at its place; not in place."""
        images = self.tokens_per_image.split(self.image_counts.tolist())
        per_example = torch.stack([lengths.sum() for lengths in images])
        residual, _ = repeat_examples(residual, per_example, len(states) // len(per_example))
        here = self.visual_mask
        changed = states[here] + residual.to(states.dtype)
        return states.masked_scatter(here[..., None], changed)
