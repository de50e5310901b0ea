"""The LLaVA family's connector: every patch becomes one visual token, each by itself."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.connectors.connector import ConnectorOutput

ProjectorType = Literal["linear", "mlp2x_gelu"]
"""``linear``: LLaVA (arXiv 2304.08485). ``mlp2x_gelu``: LLaVA-1.5 (2310.03744). Published names."""


class MLPProjector(nn.Module):
    """Image features to visual tokens, by one linear layer or two with a GELU (erf) between.

    Args:
        vision_width: D_v.
        language_width: D_llm.
        projector_type: Which of the two.

    Raises:
        ValueError: For any other type.
    """

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        projector_type: ProjectorType = "mlp2x_gelu",
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(vision_width, language_width))
        if projector_type == "mlp2x_gelu":
            self.layers.append(nn.GELU())
            self.layers.append(nn.Linear(language_width, language_width))
        elif projector_type != "linear":
            raise ValueError(f"projector_type is linear or mlp2x_gelu, not {projector_type!r}")

    def forward(self, image_features: Float[Tensor, "I P D_v"]) -> ConnectorOutput:
        """P visual tokens per image, in the order of its patches."""
        tokens = self.layers(image_features)
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        return ConnectorOutput(tokens.flatten(0, 1), lengths)
