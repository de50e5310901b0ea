"""Reading a prompt that continues an earlier one: nothing that stays true is computed again.

In a conversation every prompt is the one before, its answer and a new question. Images are encoded
once. Where a connector reads every image alone, their visual tokens stay, too. And a decoder layer
gives equal inputs equal keys and values, so that it only has to read what follows the part that two
prompts share. How long that part is, the embedded rows tell: it ends where the first word or
visual token differs, whatever the reason (another instruction for an instruction-aware connector,
an image in front of the text, an answer that is split into other tokens than it was made of).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import ModelOutput

from polyptych.connectors.connector import ConnectorOutput, join_images
from polyptych.language.prefill import Prefill
from polyptych.schema import shots_of


@dataclass(slots=True)
class PromptMemory:
    """What has been read of one conversation; empty at its start."""

    images: ConnectorOutput | None = None
    """Of all images so far."""
    inputs_embeds: Float[Tensor, "1 T D_llm"] | None = None
    """The last prompt as the language model read it."""
    key_values: Sequence[tuple[Tensor, Tensor]] = field(default_factory=tuple)
    """Of the decoder layers that need not read it again."""
    states: Float[Tensor, "1 T D_llm"] | None = None
    """What they gave, where layers above them are to read it again."""

    def shared_length(self, inputs_embeds: Float[Tensor, "1 T D_llm"]) -> int:
        """Positions that equal the last prompt's; at most all but the last, which has to speak."""
        if self.inputs_embeds is None or not self.key_values:
            return 0
        length = min(self.inputs_embeds.shape[1], inputs_embeds.shape[1] - 1)
        equal = (self.inputs_embeds[0, :length] == inputs_embeds[0, :length]).all(dim=-1)
        return int(equal.int().cumprod(dim=0).sum())

    def cache(self, length: int) -> DynamicCache:
        """Keys and values of the first positions; full ones, for layers with a window as well."""
        return DynamicCache([(k[..., :length, :], v[..., :length, :]) for k, v in self.key_values])


def key_values(cache: DynamicCache, layers: int) -> list[tuple[Tensor, Tensor]]:
    """Of the first layers. The cache may go on growing: its layers make new tensors of these."""
    return [(layer.keys, layer.values) for layer in cache.layers[:layers]]  # type: ignore[union-attr, misc]


class ReadsIncrementally:
    """The part of a model that reads prompts of a growing conversation, one row at a time."""

    @property
    def reads_images_alone(self) -> bool:
        """Whether an image's visual tokens depend on nothing but the image."""
        return False

    def read_more(
        self: Any,
        memory: PromptMemory,
        input_ids: Int[Tensor, "1 T"],
        last_prompt: Int[Tensor, " 1"],
        pixel_values: Float[Tensor, "I 3 H W"] | None = None,
        qformer_input_ids: Int[Tensor, "1 T_q"] | None = None,
        qformer_attention_mask: Int[Tensor, "1 T_q"] | None = None,
        **others: Any,
    ) -> tuple[ModelOutput, PromptMemory]:
        """Read a prompt, given what is known of the last one.

        Args:
            memory: From the call before, or a new one.
            input_ids: The whole dialogue.
            last_prompt: Place of its last token.
            pixel_values: The images that have not been seen yet.
            qformer_input_ids: The instruction, for whom it concerns.
            qformer_attention_mask: Where it stands.
            **others: Other fields of a batch: shots, for methods that read them; the rest says
                nothing new of a single row.

        Returns:
            Logits of the last position and the cache, for ``generate(prompt_output=...)``; and the
            memory for the next call. The old memory stays as it was.
        """
        images = self._see_more(
            memory.images, pixel_values, qformer_input_ids, qformer_attention_mask
        )
        visual_mask = input_ids == self.config.image_token_id
        inputs_embeds = self._embed(input_ids, visual_mask, shots_of(others))
        prefill = None
        if images is not None:
            counts = input_ids.new_tensor([len(images.tokens_per_image)])
            inputs_embeds = self._splice(inputs_embeds, visual_mask, images, counts)
            prefill = Prefill(
                visual_mask,
                counts,
                images.tokens_per_image,
                images.image_features,
                last_prompt,
                images.image_key_values,
            )
        output, known, states = self._read_more(inputs_embeds, prefill, memory)
        return output, PromptMemory(images, inputs_embeds, known, states)

    def _see_more(
        self: Any,
        before: ConnectorOutput | None,
        pixel_values: Tensor | None,
        instruction_ids: Tensor | None,
        instruction_mask: Tensor | None,
    ) -> ConnectorOutput | None:
        """All images so far, of which only the new ones go through the vision encoder."""
        if pixel_values is None and (before is None or self.reads_images_alone):
            return before
        features: list[Any] = [] if before is None else [before.image_features]
        if pixel_values is not None:
            features.append(self.vision_encoder(pixel_values))
        if self.reads_images_alone:
            features = features[-1:]
        new = torch.cat(features)
        seen = self.encode_images(
            image_features=new,
            image_counts=torch.tensor([len(new)], device=new.device),
            qformer_input_ids=instruction_ids,
            qformer_attention_mask=instruction_mask,
        )
        return join_images(before, seen) if before is not None and self.reads_images_alone else seen

    def _read_more(
        self: Any,
        inputs_embeds: Float[Tensor, "1 T D_llm"],
        prefill: Prefill | None,
        memory: PromptMemory,
    ) -> tuple[ModelOutput, list[tuple[Tensor, Tensor]], Tensor | None]:
        """Logits and cache; keys, values and states to remember. Here all layers are to keep."""
        known = memory.shared_length(inputs_embeds)
        output = self._decode(
            inputs_embeds[:, known:],
            prefill=None,
            past_key_values=memory.cache(known),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        return output, key_values(cache, len(cache.layers)), None
