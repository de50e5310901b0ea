"""Weights of the published Cheetah checkpoints in our names, and back.

Cheetah (arXiv 2308.04152) is assembled from parts: an EVA-CLIP ViT-g file, BLIP-2's FlanT5-XXL file
``{"model": ...}`` (Q-Former, queries, the norm behind the ViT), a LLaMA or Vicuna folder, and
Cheetah's own file on top: VPG-C's five tensors and the projection ``llama_proj``, which no other
file holds. The published loader throws its report away, so that without that projection it answers
with a random one; here anything missing or unexpected is an error.

The published model holds its Q-Former under two names, ``Qformer`` and
``llama_model.model.Qformer``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.methods.cheetah.model import (
    PolyptychCheetahConfig,
    PolyptychCheetahForConditionalGeneration,
)
from polyptych.models.blip2_conversion import (
    EVA_NAMES,
    IGNORED,
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

PROJECTION_NAMES: Table = (("llama_proj.*", "connector.projection.linear.*"),)
VPGC_NAMES: Table = (
    ("llama_model.model.query_tokens", "vpgc.query_tokens"),
    ("llama_model.model.qformer_proj.*", "vpgc.guidance_projection.*"),
    ("llama_model.model.llm_proj.*", "vpgc.residual_projection.*"),
)
NAMES: Table = (
    *EVA_NAMES,
    *QFORMER_NAMES,
    *PROJECTION_NAMES,
    *VPGC_NAMES,
    ("llama_model.*", "language_model.*"),
    *LANGUAGE_MODEL_NAMES,
)
"""Published name -> ours; the first that fits counts."""

ALIAS = "llama_model.model."
"""In front of the Q-Former's second name."""

CHEETAH_IGNORED = (
    *IGNORED,
    # Of the BLIP-2 file: what leads to its own language model, and the text half of the Q-Former,
    # which neither BLIP-2 with a language model nor Cheetah uses.
    "t5_proj.*",
    "t5_model.*",
    "Qformer.cls.*",
    "Qformer.bert.embeddings.word_embeddings.*",
    "Qformer.bert.embeddings.position_embeddings.*",
    "Qformer.bert.encoder.layer.#.intermediate.*",
    "Qformer.bert.encoder.layer.#.output.*",
)
"""Published names without a place here."""

VPGC_TENSORS = (
    "vpgc.query_tokens",
    "vpgc.guidance_projection.weight",
    "vpgc.guidance_projection.bias",
    "vpgc.residual_projection.weight",
    "vpgc.residual_projection.bias",
)
"""The five tensors that the published setting trains."""

PROJECTION_TENSORS = ("connector.projection.linear.weight", "connector.projection.linear.bias")
"""What else only Cheetah's own file holds."""


def convert_released(state_dict: Mapping[str, Tensor], *, source: str = "weights") -> StateDict:
    """Published names -> ours, for a whole model or any part of one.

    Raises:
        PolyptychError: If a name falls under no rule, or the Q-Former under its second name is
            another one than under its first.
    """
    return to_ours(
        _without_aliases(state_dict, source), NAMES, ignored=CHEETAH_IGNORED, source=source
    )


def _without_aliases(state_dict: Mapping[str, Tensor], source: str) -> StateDict:
    """The Q-Former under its first name only."""
    first: StateDict = {}
    for name, tensor in state_dict.items():
        if not name.startswith(f"{ALIAS}Qformer."):
            first[name] = tensor
    for name, tensor in state_dict.items():
        if name.startswith(f"{ALIAS}Qformer."):
            partner = name.removeprefix(ALIAS)
            _require_equal(first.setdefault(partner, tensor), tensor, f"{source}: {name}", partner)
    return first


def _require_equal(left: Tensor, right: Tensor, name: str, partner: str) -> None:
    """The same values, up to a type in which one of them was stored."""
    narrow = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
    if left.shape != right.shape or not torch.equal(left.to(narrow), right.to(narrow)):
        raise PolyptychError(f"{name} is not equal to {partner}; both name one tensor")


def require_cheetah(part: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse a checkpoint without the projection and VPG-C's five tensors.

    Raises:
        PolyptychError: Naming those that are missing, by their published names.
    """
    wanted = (*PROJECTION_TENSORS, *VPGC_TENSORS)
    missing = {name: torch.empty(0) for name in wanted if name not in part}
    if missing:
        raise PolyptychError(
            f"{source}: no Cheetah checkpoint; {len(missing)} of {len(wanted)} of its tensors are "
            f"missing: {listed(to_published(missing, NAMES))}"
        )


def convert_checkpoint(
    out: str | Path,
    *,
    parts: Sequence[str | Path],
    config: PolyptychCheetahConfig,
    processor: PolyptychProcessor | None = None,
    fresh_vpgc: bool = False,
) -> None:
    """Assemble published files into one of our folders: config, safetensors, processor.

    Args:
        out: Folder to write; a half-written one is never left under this name.
        parts: Files or folders, base first: the EVA file, BLIP-2's file, a LLaMA folder, Cheetah's
            file; or one file with everything.
        config: Sizes.
        processor: Saved beside the weights.
        fresh_vpgc: Start VPG-C as training does: linears at zero, queries copied from BLIP-2's. The
            parts then have to hold a projection, and none of VPG-C's tensors.

    Raises:
        PolyptychError: If something is missing, unexpected or of another shape, Cheetah's file
            holds no Cheetah, or its Q-Former is not BLIP-2's.
    """
    refuse_existing(Path(out))
    converted: list[StateDict] = []
    for path in parts:
        part = convert_released(read_weights(path), source=str(path))
        part = with_pad_rows(fit_vision(part, config.vision_config), config.text_config.vocab_size)
        _require_same_qformer(converted, part, str(path))
        converted.append(part)
    if not fresh_vpgc:
        require_cheetah(converted[-1], source=str(parts[-1]))
    elif not any(PROJECTION_TENSORS[0] in part for part in converted):
        names = ", ".join(Path(path).name for path in parts)
        raise PolyptychError(f"{names}: no llama_proj in {len(parts)} parts; it would be random")
    with torch.device("meta"):
        wanted = PolyptychCheetahForConditionalGeneration(config).state_dict()
    if fresh_vpgc:
        converted.insert(0, _fresh_vpgc(converted, wanted))
    merged = overlay(converted, wanted, source=" + ".join(Path(path).name for path in parts))
    write_model_folder(out, merged, config, PolyptychCheetahForConditionalGeneration, processor)


def _require_same_qformer(earlier: Sequence[StateDict], part: StateDict, source: str) -> None:
    """The Q-Former is frozen: a file over it was trained with this one or does not belong here."""
    for name, tensor in part.items():
        for other in earlier:
            if name.startswith("connector.qformer.") and name in other:
                _require_equal(tensor, other[name], f"{source}: {name}", "that of an earlier part")


def _fresh_vpgc(parts: Sequence[StateDict], wanted: Mapping[str, Tensor]) -> StateDict:
    fresh = {name: torch.zeros(wanted[name].shape) for name in VPGC_TENSORS}
    for part in parts:
        if "connector.qformer.query_tokens" in part:
            fresh["vpgc.query_tokens"] = part["connector.qformer.query_tokens"].clone()
    return fresh


def to_released(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Our names -> published ones, for a whole model or any part, with the Q-Former's alias keys.

    Raises:
        PolyptychError: If a tensor has no place in the published layout.
    """
    published = to_published(state_dict, NAMES)
    aliases = {f"{ALIAS}{name}": t for name, t in published.items() if name.startswith("Qformer.")}
    return published | aliases


def write_released(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """A file ``{"model": ...}`` that the published code takes as its Cheetah checkpoint.

    It holds what no other published file does: the projection and VPG-C's five tensors.

    Args:
        state_dict: A model's, in our names.
        path: The file.

    Raises:
        PolyptychError: If one of them is missing, or the system refuses.
    """
    require_cheetah(state_dict, source=str(path))
    own = {name: state_dict[name] for name in PROJECTION_TENSORS + VPGC_TENSORS}
    with write_aside(path, binary=True) as file:
        torch.save({"model": to_released(own)}, file)
