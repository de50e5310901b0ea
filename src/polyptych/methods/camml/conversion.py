"""Weights of the published CaMML checkpoints in our names, and back.

CaMML (arXiv 2401.03149) saves LLaVA's original layout with three BERT-shaped perceivers beside it.
More than half of what these hold is never used: a masked-language-model head each (``cls``), 72
million parameters at 7B. It is left behind. Anything else missing or unexpected is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.methods.camml.model import (
    Behavior,
    PolyptychCammlConfig,
    PolyptychCammlForConditionalGeneration,
)
from polyptych.models.blip2_conversion import (
    LANGUAGE_MODEL_NAMES,
    QFORMER_NAMES,
    Table,
    refuse_existing,
    to_ours,
    to_published,
    write_model_folder,
)
from polyptych.models.llava_conversion import PUBLISHED_TOWERS, config_from_original
from polyptych.models.processor import PolyptychProcessor
from polyptych.models.weights import StateDict, listed, overlay, read_weights

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
    ("vision_model.*", "vision_encoder.model.*"),  # CLIP's own file
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

IGNORED = (
    "*.position_ids",  # buffers that older versions saved
    "*.rotary_emb.inv_freq",
    "*.cls.predictions.*",  # the perceivers' dead heads
    "text_model.*",  # of CLIP's own file
    "text_projection.*",
    "visual_projection.*",
    "logit_scale",
)
"""Published names without a place here."""

BERT_SIZES: dict[str, Any] = {
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "cross_attention_frequency": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
"""What the published perceivers take from ``bert-base-uncased``, whatever their width."""


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


def config_from_released(
    fields: Mapping[str, Any],
    vision_config: PreTrainedConfig | None = None,
    *,
    bert: Mapping[str, Any] = BERT_SIZES,
    behavior: Behavior = "released",
) -> PolyptychCammlConfig:
    """Our config from a published ``config.json``.

    Args:
        fields: LLaVA's flat fields with ``perceiver_*`` among them.
        vision_config: The vision tower's, where ``mm_vision_tower`` names none of the published.
        bert: What the perceivers take from elsewhere.
        behavior: See :class:`PolyptychCammlConfig`.

    Raises:
        PolyptychError: For an unknown vision tower, or what LLaVA-1.5 does not have.
    """
    missing = [name for name in ("perceiver_querys", "mm_vision_tower") if name not in fields]
    if missing:
        raise PolyptychError(f"no CaMML config: {len(missing)} fields missing: {listed(missing)}")
    if vision_config is None:
        address = fields["mm_vision_tower"]
        if address not in PUBLISHED_TOWERS:
            known = ", ".join(PUBLISHED_TOWERS)
            raise PolyptychError(
                f"mm_vision_tower {address!r} needs a vision_config; known: {known}"
            )
        vision_config = AutoConfig.for_model(**PUBLISHED_TOWERS[address])
    own = ("perceiver_", "random_shots_")
    base = {name: value for name, value in fields.items() if not name.startswith(own)}
    llava = config_from_original({**base, "model_type": "llava_llama"}, vision_config).to_dict()
    del llava["model_type"]
    return PolyptychCammlConfig(
        **llava,
        perceiver_config={
            **bert,
            "hidden_size": fields.get("perceiver_hidden_size", 768),
            "num_hidden_layers": fields.get("perceiver_layers", 2),
        },
        num_query_tokens=fields["perceiver_querys"],
        behavior=behavior,
    )


def convert_checkpoint(
    out: str | Path,
    *,
    parts: Sequence[str | Path],
    config: PolyptychCammlConfig,
    processor: PolyptychProcessor | None = None,
) -> None:
    """Assemble published files into one of our folders: config, safetensors, processor.

    Args:
        out: Folder to write; a half-written one is never left under this name.
        parts: Files or folders, base first: one CaMML folder, with CLIP's before it where it brings
            no vision tower.
        config: Sizes; :func:`config_from_released` reads them.
        processor: Saved beside the weights.

    Raises:
        PolyptychError: If something is missing (by its published name), unexpected or of another
            shape.
    """
    refuse_existing(Path(out))
    converted = [convert_released(read_weights(path), source=str(path)) for path in parts]
    source = " + ".join(Path(path).name for path in parts)
    with torch.device("meta"):
        wanted = PolyptychCammlForConditionalGeneration(config).state_dict()
    missing = {n: t for n, t in wanted.items() if not any(n in part for part in converted)}
    if missing:
        names = listed(to_released(missing))
        raise PolyptychError(f"{source}: {len(missing)} of {len(wanted)} tensors missing: {names}")
    merged = overlay(converted, wanted, source=source)
    write_model_folder(out, merged, config, PolyptychCammlForConditionalGeneration, processor)


def write_released(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """A ``pytorch_model.bin`` of the published code, without the dead heads.

    Args:
        state_dict: A whole model's, in our names.
        path: The file; its folder needs the published ``config.json``, too.

    Raises:
        PolyptychError: If a tensor has no place in the published layout, or the system refuses.
    """
    published = to_released(state_dict)
    with write_aside(path, binary=True) as file:
        torch.save(published, file)


def read_fields(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a published folder.

    Raises:
        PolyptychError: If there is none.
    """
    file = Path(folder, "config.json")
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise PolyptychError(f"{file}: no readable config: {error}") from error
