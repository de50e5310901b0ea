"""Weights of the published checkpoints in our names, strictly, and back.

SAM (arXiv 2408.12867) is assembled from parts: an EVA-CLIP ViT-g file, a Vicuna folder, an
InstructBLIP-Vicuna file ``{"model": ...}``, and SAM's own ``{"model": ...}`` on top, which holds
six tensors (and what else its authors happened to train). The published loader ignores what does
not fit, so that a wrong file passes silently; here anything missing or unexpected is an error.

One table (:data:`RULES`) covers the original names and those of a Hugging Face InstructBLIP folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
from polyptych.models.blip2_conversion import (
    EVA_NAMES,
    HUGGING_FACE_NAMES,
    LANGUAGE_MODEL_NAMES,
    QFORMER_NAMES,
    Table,
    fit_vision,
    refuse_existing,
    to_ours,
    to_published,
    with_pad_rows,
    write_model_folder,
)
from polyptych.models.processor import PolyptychProcessor
from polyptych.models.weights import StateDict, listed, overlay, read_weights

_GUIDANCE = "connector.guidance."

NAMES: Table = (
    *EVA_NAMES,
    *QFORMER_NAMES,
    # SAM's own three layers; the misspelling is the published name.
    ("attn.*", f"{_GUIDANCE}adaptive_adjustment.score.*"),
    ("Qformer.bert.encoder.one_2_muliple.0.*", f"{_GUIDANCE}query_to_w.*"),
    ("Qformer.bert.encoder.multiple_2_one.0.*", f"{_GUIDANCE}w_to_query.*"),
    ("llm_proj.*", "connector.projection.linear.*"),
    ("llm_model.*", "language_model.*"),
    *HUGGING_FACE_NAMES,
    *LANGUAGE_MODEL_NAMES,
)
"""Published name -> ours; the first that fits counts."""

SAM_TENSORS = tuple(
    f"{_GUIDANCE}{layer}.{kind}"
    for layer in ("adaptive_adjustment.score", "query_to_w", "w_to_query")
    for kind in ("weight", "bias")
)
"""The six tensors that make a checkpoint one of SAM: what the published setting trains."""


def convert_released(state_dict: Mapping[str, Tensor], *, source: str = "weights") -> StateDict:
    """Published names -> ours, for a whole model or any part of one.

    Works for Hugging Face InstructBLIP names too.

    Raises:
        PolyptychError: If a name falls under no rule; lists the first ten.
    """
    return to_ours(state_dict, NAMES, source=source)


def require_sam(part: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse a checkpoint without SAM's six tensors.

    Raises:
        PolyptychError: Naming those that are missing.
    """
    missing = [name for name in SAM_TENSORS if name not in part]
    if missing:
        raise PolyptychError(
            f"{source}: no SAM checkpoint; {len(missing)} of {len(SAM_TENSORS)} of its tensors "
            f"are missing: {listed(missing)}"
        )


def convert_checkpoint(
    out: str | Path,
    *,
    parts: Sequence[str | Path],
    config: PolyptychSamConfig,
    processor: PolyptychProcessor | None = None,
) -> None:
    """Assemble published files into one of our folders: config, safetensors, processor.

    Args:
        out: Folder to write; a half-written one is never left under this name.
        parts: Files or folders, base first. For instance the EVA file, a Vicuna folder,
            InstructBLIP's file, SAM's file; or a Hugging Face InstructBLIP folder and SAM's file.
        config: Sizes. With ``guidance`` ``released`` the last part has to hold SAM's six tensors;
            ``off`` makes the base that SAM starts from, without them.
        processor: Saved beside the weights.

    Raises:
        PolyptychError: If something is missing, unexpected, of another shape, or no SAM checkpoint.
    """
    if config.guidance == "paper":
        raise PolyptychError("guidance 'paper' has no published weights; take 'released' or 'off'")
    refuse_existing(Path(out))
    converted = []
    for part in parts:
        weights = convert_released(read_weights(part), source=str(part))
        weights = fit_vision(weights, config.vision_config)
        converted.append(with_pad_rows(weights, config.text_config.vocab_size))
    if config.guidance == "released":
        require_sam(converted[-1], source=str(parts[-1]))
    with torch.device("meta"):
        wanted = PolyptychSamForConditionalGeneration(config).state_dict()
    merged = overlay(converted, wanted, source=" + ".join(Path(part).name for part in parts))
    write_model_folder(out, merged, config, PolyptychSamForConditionalGeneration, processor)


def write_released(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """A file ``{"model": ...}`` that the published code takes as its SAM checkpoint.

    It holds what no other published file does: SAM's six tensors.

    Args:
        state_dict: A model's, in our names.
        path: The file.

    Raises:
        PolyptychError: If the model has another form of guidance, or the system refuses.
    """
    require_sam(state_dict, source=str(path))
    others = [n for n in state_dict if n.startswith(_GUIDANCE) and n not in SAM_TENSORS]
    if others:
        raise PolyptychError(
            f"{path}: the published layout has no place for {len(others)} tensors of guidance "
            f"'paper': {listed(others)}"
        )
    own = {name: state_dict[name] for name in SAM_TENSORS}
    with write_aside(path, binary=True) as file:
        torch.save({"model": to_published(own, NAMES)}, file)
