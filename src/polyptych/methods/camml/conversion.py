"""Weights of the published CaMML checkpoints in our names, and back.

CaMML (arXiv 2401.03149) saves LLaVA's original layout with three BERT-shaped perceivers beside it.
More than half of what these hold is never used: a masked-language-model head each (``cls``), 72
million parameters at 7B. It is left behind. Anything else missing or unexpected is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from polyptych.models.blip2_conversion import (
    LANGUAGE_MODEL_NAMES,
    QFORMER_NAMES,
    Table,
    to_ours,
    to_published,
)
from polyptych.models.weights import StateDict

PERCEIVERS = ("vision_perceiver", "language_perceiver", "context_perceiver")

PERCEIVER_NAMES: Table = tuple(
    (
        published.replace("Qformer.", f"{perceiver}."),
        ours.replace("connector.qformer.", f"camml.{perceiver}."),
    )
    for perceiver in PERCEIVERS
    for published, ours in QFORMER_NAMES
    if published.startswith("Qformer.")
)
"""Each perceiver is a Q-Former of BLIP-2 that has lost its queries and its text half."""

NAMES: Table = (
    ("model.vision_tower.vision_tower.vision_model.*", "vision_encoder.model.*"),
    ("model.mm_projector.weight", "connector.layers.0.weight"),
    ("model.mm_projector.bias", "connector.layers.0.bias"),
    ("model.mm_projector.#.*", "connector.layers.#.*"),
    ("image_proj_to_perceiver.*", "camml.image_projection.*"),
    ("text_proj_to_perceiver.*", "camml.text_projection.*"),
    ("query_tokens_vision", "camml.context_perceiver.vision_queries"),
    ("query_tokens_text", "camml.context_perceiver.text_queries"),
    ("context_proj_vision.*", "camml.context_perceiver.vision_projection.*"),
    ("context_proj_text.*", "camml.context_perceiver.text_projection.*"),
    *PERCEIVER_NAMES,
    *LANGUAGE_MODEL_NAMES,
)
"""Published name -> ours; the first that fits counts."""

IGNORED = ("*.position_ids", "*.rotary_emb.inv_freq", "*.cls.predictions.*")
"""Buffers that older versions saved, and the perceivers' dead heads."""


def convert_released(state_dict: Mapping[str, Tensor], *, source: str = "weights") -> StateDict:
    """Published names -> ours, for a whole model or any part of one.

    Raises:
        PolyptychError: If a name falls under no rule; lists the first ten.
    """
    return to_ours(state_dict, NAMES, ignored=IGNORED, source=source)


def to_released(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Our names -> published ones, without the dead heads.

    Raises:
        PolyptychError: If a tensor has no place in the published layout (positions).
    """
    published = to_published(state_dict, NAMES)
    if "connector.layers.2.weight" not in state_dict:
        return published
    # A projector of two layers numbers them; a linear one does not.
    first = {f"model.mm_projector.{kind}" for kind in ("weight", "bias")}
    return {
        name.replace("mm_projector.", "mm_projector.0.") if name in first else name: tensor
        for name, tensor in published.items()
    }
