"""Weights of the published checkpoints in our names, strictly.

SAM (arXiv 2408.12867) is assembled from parts: an EVA-CLIP ViT-g file, a Vicuna folder, an
InstructBLIP-Vicuna file ``{"model": ...}``, and SAM's own ``{"model": ...}`` on top, which holds
six tensors (and what else its authors happened to train). The published loader ignores what does
not fit, so that a wrong file passes silently; here anything missing or unexpected is an error.

One table (:data:`RULES`) covers the original names and those of a Hugging Face InstructBLIP folder.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from polyptych.errors import PolyptychError
from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.models.weights import StateDict, listed, overlay, read_weights, rename

_VIT = "vision_encoder.model."
_QFORMER = "connector.qformer."
_LAYER = r"(?:Qformer\.bert|qformer)\.encoder\.layer\.(\d+)\."
_OUR_LAYER = _QFORMER + r"layers.\1."
_GUIDANCE = "connector.guidance."

RULES: tuple[tuple[str, str], ...] = (
    # Vision encoder. The EVA file itself has no prefix; Hugging Face's module is the one we use.
    (r"(?:visual_encoder\.)?cls_token", _VIT + "embeddings.class_embedding"),
    (r"(?:visual_encoder\.)?pos_embed", _VIT + "embeddings.position_embedding"),
    (r"(?:visual_encoder\.)?patch_embed\.proj\.(.+)", _VIT + r"embeddings.patch_embedding.\1"),
    (
        r"(?:visual_encoder\.)?blocks\.(\d+)\.norm([12])\.(.+)",
        _VIT + r"encoder.layers.\1.layer_norm\2.\3",
    ),
    (
        r"(?:visual_encoder\.)?blocks\.(\d+)\.attn\.qkv\.(weight|bias)",
        _VIT + r"encoder.layers.\1.self_attn.qkv.\2",
    ),
    (
        r"(?:visual_encoder\.)?blocks\.(\d+)\.attn\.proj\.(.+)",
        _VIT + r"encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"(?:visual_encoder\.)?blocks\.(\d+)\.mlp\.(.+)", _VIT + r"encoder.layers.\1.mlp.\2"),
    (r"ln_vision\.(.+)", _VIT + r"post_layernorm.\1"),
    (r"vision_model\.(.+)", _VIT + r"\1"),
    # Q-Former
    (r"query_tokens", _QFORMER + "query_tokens"),
    (
        r"(?:Qformer\.bert|qformer)\.embeddings\.(word|position)_embeddings\.(.+)",
        _QFORMER + r"\1_embeddings.\2",
    ),
    (
        r"(?:Qformer\.bert|qformer)\.embeddings\.(?:LayerNorm|layernorm)\.(.+)",
        _QFORMER + r"embedding_norm.\1",
    ),
    (
        _LAYER + r"attention\.(?:self|attention)\.(query|key|value)\.(.+)",
        _OUR_LAYER + r"self_attention.\2.\3",
    ),
    (_LAYER + r"attention\.output\.dense\.(.+)", _OUR_LAYER + r"self_attention.output.\2"),
    (_LAYER + r"attention\.output\.LayerNorm\.(.+)", _OUR_LAYER + r"self_attention_norm.\2"),
    (
        _LAYER + r"crossattention\.(?:self|attention)\.(query|key|value)\.(.+)",
        _OUR_LAYER + r"cross_attention.\2.\3",
    ),
    (_LAYER + r"crossattention\.output\.dense\.(.+)", _OUR_LAYER + r"cross_attention.output.\2"),
    (_LAYER + r"crossattention\.output\.LayerNorm\.(.+)", _OUR_LAYER + r"cross_attention_norm.\2"),
    (_LAYER + r"intermediate\.dense\.(.+)", _OUR_LAYER + r"text_ffn.up.\2"),
    (_LAYER + r"output\.dense\.(.+)", _OUR_LAYER + r"text_ffn.down.\2"),
    (_LAYER + r"output\.LayerNorm\.(.+)", _OUR_LAYER + r"text_ffn.norm.\2"),
    (_LAYER + r"intermediate_query\.dense\.(.+)", _OUR_LAYER + r"query_ffn.up.\2"),
    (_LAYER + r"output_query\.dense\.(.+)", _OUR_LAYER + r"query_ffn.down.\2"),
    (_LAYER + r"output_query\.LayerNorm\.(.+)", _OUR_LAYER + r"query_ffn.norm.\2"),
    # SAM's own three layers; the misspelling is the published name.
    (r"attn\.(weight|bias)", _GUIDANCE + r"adaptive_adjustment.score.\1"),
    (r"Qformer\.bert\.encoder\.one_2_muliple\.0\.(.+)", _GUIDANCE + r"query_to_w.\1"),
    (r"Qformer\.bert\.encoder\.multiple_2_one\.0\.(.+)", _GUIDANCE + r"w_to_query.\1"),
    # Projection and language model (a plain Vicuna folder has no prefix)
    (r"(?:llm_proj|language_projection)\.(.+)", r"connector.projection.linear.\1"),
    (r"(?:llm_model|language_model)\.(.+)", r"language_model.\1"),
    (r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..+)", r"language_model.\1"),
)
"""Regular expression over the whole published name -> our name."""

IGNORED = (
    r".*\.position_ids",  # buffers
    r".*\.rotary_emb\.inv_freq",
    r"(?:norm|fc_norm|head)\.(?:weight|bias)",  # of the EVA file: features come from a block
)
"""Published names without a place here."""

SAM_TENSORS = tuple(
    f"{_GUIDANCE}{layer}.{kind}"
    for layer in ("adaptive_adjustment.score", "query_to_w", "w_to_query")
    for kind in ("weight", "bias")
)
"""The six tensors that make a checkpoint one of SAM: what the published setting trains."""

_QKV_BIAS = re.compile(r"(.*\.|)attn\.(q|v)_bias")


def convert_released(state_dict: Mapping[str, Tensor], *, source: str = "weights") -> StateDict:
    """Published names -> ours, for a whole model or any part of one.

    The vision encoder's ``q_bias`` and ``v_bias`` become one bias ``[q, 0, v]``; buffers are left
    out; all else is renamed only. Works for Hugging Face InstructBLIP names too.

    Raises:
        PolyptychError: If a name falls under no rule; lists the first ten.
    """
    fused = _fuse_qkv_bias(state_dict, source)
    return rename(fused, RULES, IGNORED, source=source)


def _fuse_qkv_bias(state_dict: Mapping[str, Tensor], source: str) -> StateDict:
    fused: StateDict = {}
    halves: dict[str, StateDict] = {}
    for name, tensor in state_dict.items():
        match = _QKV_BIAS.fullmatch(name)
        if match is None:
            fused[name] = tensor
        else:
            halves.setdefault(match[1], {})[match[2]] = tensor
    for block, biases in halves.items():
        if len(biases) != 2:
            missing = "v" if "q" in biases else "q"
            raise PolyptychError(f"{source}: 1 missing tensor: {block}attn.{missing}_bias")
        zeros = torch.zeros_like(biases["q"])
        fused[f"{block}attn.qkv.bias"] = torch.cat([biases["q"], zeros, biases["v"]])
    return fused


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
    out = Path(out)
    if config.guidance == "paper":
        raise PolyptychError("guidance 'paper' has no published weights; take 'released' or 'off'")
    if out.exists():
        raise PolyptychError(f"{out}: exists already")
    converted = []
    for part in parts:
        weights = _read_blocks_only(read_weights(part), config.vision_config.num_hidden_layers)
        weights = convert_released(weights, source=str(part))
        converted.append(_with_pad_rows(weights, config.text_config.vocab_size))
    if config.guidance == "released":
        require_sam(converted[-1], source=str(parts[-1]))
    with torch.device("meta"):
        wanted = PolyptychSamForConditionalGeneration(config).state_dict()
    merged = overlay(converted, wanted, source=" + ".join(Path(part).name for part in parts))

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_torch_state_dict(merged, partial, max_shard_size="5GB")
        config.architectures = [PolyptychSamForConditionalGeneration.__name__]
        config.save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        partial.rename(out)
    except OSError as error:
        raise PolyptychError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_blocks_only(state_dict: StateDict, depth: int) -> StateDict:
    """Leave out the EVA file's last block: features are taken before it (39 of 40 blocks)."""
    blocks = {name: re.fullmatch(r"blocks\.(\d+)\..+", name) for name in state_dict}
    return {
        name: tensor
        for name, tensor in state_dict.items()
        if (block := blocks[name]) is None or int(block[1]) < depth
    }


def _with_pad_rows(part: StateDict, vocab_size: int) -> StateDict:
    """Zero rows for ids that the method adds to the language model (``[PAD]``, always masked)."""
    extended = dict(part)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        if name in part and len(part[name]) < vocab_size:
            rows = part[name].new_zeros(vocab_size - len(part[name]), part[name].shape[1])
            extended[name] = torch.cat([part[name], rows])
    return extended
