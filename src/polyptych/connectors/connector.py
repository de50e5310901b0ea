"""What every connector returns, and how images find their example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig

from polyptych.connectors.qformer import KeyValue, QFormer


@dataclass(slots=True)
class ConnectorOutput:
    """Visual tokens, flat and ragged: the shape that Q-Formers and tiled encoders share."""

    visual_tokens: Float[Tensor, "N D_llm"]
    tokens_per_image: Int[Tensor, " I"]
    image_features: Float[Tensor, "I P D_v"] | None = None
    """What was read; filled in by the model."""
    image_key_values: list[KeyValue | None] | None = None
    """Its projections by layer, where the connector is a Q-Former that may be asked again."""


def join_images(before: ConnectorOutput, after: ConnectorOutput) -> ConnectorOutput:
    """The images of both, in this order; only for connectors that read every image alone."""
    images = None
    if before.image_key_values is not None and after.image_key_values is not None:
        pairs = zip(before.image_key_values, after.image_key_values, strict=True)
        images = [None if b is None or a is None else _join_key_values(b, a) for b, a in pairs]
    features = None
    if before.image_features is not None and after.image_features is not None:
        features = torch.cat([before.image_features, after.image_features])
    return ConnectorOutput(
        torch.cat([before.visual_tokens, after.visual_tokens]),
        torch.cat([before.tokens_per_image, after.tokens_per_image]),
        features,
        images,
    )


def _join_key_values(before: KeyValue, after: KeyValue) -> KeyValue:
    return torch.cat([before[0], after[0]]), torch.cat([before[1], after[1]])


def example_of_image(image_counts: Int[Tensor, " B"]) -> Int[Tensor, " I"]:
    """The example that each image of the batch belongs to.

    ``[2, 0, 3] -> [0, 0, 2, 2, 2]``
    """
    examples = torch.arange(len(image_counts), device=image_counts.device)
    return examples.repeat_interleave(image_counts)


class VisualTokenProjection(nn.Module):
    """Q-Former width to language model width, optionally through a narrow waist.

    ``bottleneck`` limits how many numbers an image may say per token; it exists to study tight
    budgets of visual tokens and is absent (None) in the published models.
    """

    def __init__(self, width: int, language_width: int, bottleneck: int | None = None) -> None:
        super().__init__()
        self.waist = nn.Linear(width, bottleneck) if bottleneck else None
        self.linear = nn.Linear(bottleneck or width, language_width)

    def forward(self, queries: Float[Tensor, "I Q D_q"]) -> Float[Tensor, "I Q D_llm"]:
        """Project each query token."""
        return self.linear(queries if self.waist is None else self.waist(queries))


class QFormerConnector(nn.Module):
    """Reads every image alone: Q-Former, then projection. The base that methods are compared to.

    Args:
        config: Q-Former sizes.
        num_query_tokens: Visual tokens Q per image.
        language_width: D_llm.
        bottleneck: See :class:`VisualTokenProjection`.
        reads_text: Whether the Q-Former reads the instruction.
    """

    def __init__(
        self,
        config: InstructBlipQFormerConfig,
        num_query_tokens: int,
        language_width: int,
        bottleneck: int | None = None,
        reads_text: bool = True,
    ) -> None:
        super().__init__()
        self.qformer = QFormer(config, num_query_tokens, reads_text)
        self.projection = VisualTokenProjection(config.hidden_size, language_width, bottleneck)

    def forward(
        self,
        image_features: Float[Tensor, "I P D_v"],
        image_counts: Int[Tensor, " B"],
        instruction_ids: Int[Tensor, "B T_q"] | None = None,
        instruction_mask: Int[Tensor, "B T_q"] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> ConnectorOutput:
        """Visual tokens of all images of all examples, in order.

        ``record``, where given, receives the named intermediates.
        """
        example = example_of_image(image_counts)
        images = self.qformer.image_key_values(image_features)
        hidden = self.qformer.embed(
            len(image_features), None if instruction_ids is None else instruction_ids[example]
        )
        mask = self.qformer.self_mask(
            None if instruction_mask is None else instruction_mask[example]
        )
        queries = self.qformer(hidden, images, mask, record)
        connected = self.output(queries)
        connected.image_key_values = images
        return connected

    def output(self, queries: Float[Tensor, "I Q D_q"]) -> ConnectorOutput:
        """Project the final queries and flatten them."""
        tokens = self.projection(queries)
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        return ConnectorOutput(tokens.flatten(0, 1), lengths)
