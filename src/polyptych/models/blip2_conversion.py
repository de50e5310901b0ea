"""The published layout of the BLIP-2 family in our names, and back: what its methods share.

EVA-CLIP's ViT, the Q-Former and a LLaMA in files of their own, or together in the layouts of the
original code and of Hugging Face. Names are translated by tables of pairs ``(published, ours)`` in
which ``#`` is a number and ``*`` any rest, so that one table reads in both directions
(:func:`to_ours`, :func:`to_published`). :mod:`polyptych.models.weights` reads files and is strict.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedConfig, PreTrainedModel

from polyptych.errors import PolyptychError
from polyptych.models.processor import PolyptychProcessor
from polyptych.models.weights import Rules, StateDict, rename

Table = Sequence[tuple[str, str]]
"""``(published name, our name)``, ``#`` for a number and ``*`` for any rest; the first counts."""

_VIT = "vision_encoder.model."
_QFORMER = "connector.qformer."
_POSITIONS = f"{_VIT}embeddings.position_embedding"

_EVA: Table = (
    ("cls_token", f"{_VIT}embeddings.class_embedding"),
    ("pos_embed", _POSITIONS),
    ("patch_embed.proj.*", f"{_VIT}embeddings.patch_embedding.*"),
    ("blocks.#.norm1.*", f"{_VIT}encoder.layers.#.layer_norm1.*"),
    ("blocks.#.norm2.*", f"{_VIT}encoder.layers.#.layer_norm2.*"),
    ("blocks.#.attn.qkv.*", f"{_VIT}encoder.layers.#.self_attn.qkv.*"),
    ("blocks.#.attn.proj.*", f"{_VIT}encoder.layers.#.self_attn.projection.*"),
    ("blocks.#.mlp.*", f"{_VIT}encoder.layers.#.mlp.*"),
)
EVA_NAMES: Table = (
    *((f"visual_encoder.{published}", ours) for published, ours in _EVA),
    *_EVA,  # the EVA file itself has no prefix
    ("ln_vision.*", f"{_VIT}post_layernorm.*"),
)
"""EVA-CLIP ViT-g; Hugging Face's module is the one we use."""

_QFORMER_LAYER: Table = (
    *(
        (f"{published}.{part}.*", f"{ours}.{part}.*")
        for published, ours in (
            ("attention.self", "self_attention"),
            ("crossattention.self", "cross_attention"),
        )
        for part in ("query", "key", "value")
    ),
    ("attention.output.dense.*", "self_attention.output.*"),
    ("attention.output.LayerNorm.*", "self_attention_norm.*"),
    ("crossattention.output.dense.*", "cross_attention.output.*"),
    ("crossattention.output.LayerNorm.*", "cross_attention_norm.*"),
    ("intermediate_query.dense.*", "query_ffn.up.*"),
    ("output_query.dense.*", "query_ffn.down.*"),
    ("output_query.LayerNorm.*", "query_ffn.norm.*"),
    ("intermediate.dense.*", "text_ffn.up.*"),
    ("output.dense.*", "text_ffn.down.*"),
    ("output.LayerNorm.*", "text_ffn.norm.*"),
)
QFORMER_NAMES: Table = (
    ("query_tokens", f"{_QFORMER}query_tokens"),
    ("Qformer.bert.embeddings.LayerNorm.*", f"{_QFORMER}embedding_norm.*"),
    ("Qformer.bert.embeddings.word_embeddings.*", f"{_QFORMER}word_embeddings.*"),
    ("Qformer.bert.embeddings.position_embeddings.*", f"{_QFORMER}position_embeddings.*"),
    *(
        (f"Qformer.bert.encoder.layer.#.{published}", f"{_QFORMER}layers.#.{ours}")
        for published, ours in _QFORMER_LAYER
    ),
)
"""The Q-Former in the layout of the published BLIP-2 family."""

HUGGING_FACE_NAMES: Table = (
    ("vision_model.*", f"{_VIT}*"),
    ("qformer.embeddings.layernorm.*", f"{_QFORMER}embedding_norm.*"),
    ("qformer.embeddings.word_embeddings.*", f"{_QFORMER}word_embeddings.*"),
    ("qformer.embeddings.position_embeddings.*", f"{_QFORMER}position_embeddings.*"),
    *(
        (
            f"qformer.encoder.layer.#.{published.replace('attention.self', 'attention.attention')}",
            f"{_QFORMER}layers.#.{ours}",
        )
        for published, ours in _QFORMER_LAYER
    ),
    ("language_projection.*", "connector.projection.linear.*"),
    ("language_model.*", "language_model.*"),
)
"""A Hugging Face folder of the BLIP-2 family (its vision model and queries are named like ours)."""

LANGUAGE_MODEL_NAMES: Table = (
    *((f"model.{part}.*", f"language_model.model.{part}.*") for part in ("embed_tokens", "layers")),
    ("model.norm.*", "language_model.model.norm.*"),
    ("lm_head.*", "language_model.lm_head.*"),
)
"""A plain folder of LLaMA, Vicuna and the like."""

IGNORED = (
    "*.position_ids",  # buffers
    "*.rotary_emb.inv_freq",
    *(f"{part}.*" for part in ("norm", "fc_norm", "head")),  # EVA file: features are taken before
)
"""Published names without a place here."""

_QKV_BIAS = re.compile(r"(.*\.|)attn\.(q|v)_bias")


# --- names ---------------------------------------------------------------------------------------


def to_ours(
    state_dict: Mapping[str, Tensor],
    table: Table,
    *,
    ignored: Sequence[str] = IGNORED,
    source: str = "weights",
) -> StateDict:
    """Published names -> ours, for a whole model or any part of one.

    The vision encoder's ``q_bias`` and ``v_bias`` become one bias ``[q, 0, v]``; all else is
    renamed only.

    Raises:
        PolyptychError: If the table has no place for a name; lists the first ten.
    """
    patterns = [_pattern(name) for name in ignored]
    return rename(_fuse_qkv_bias(state_dict, source), _rules(table), patterns, source=source)


def to_published(
    state_dict: Mapping[str, Tensor], table: Table, *, source: str = "model"
) -> StateDict:
    """The way back, with the vision encoder's bias in two parts.

    Raises:
        PolyptychError: If a name has no published one, or a key bias, for which the published
            layout has no place, is not zero.
    """
    backwards = _rules((ours, published) for published, ours in table)
    split: StateDict = {}
    for name, tensor in rename(state_dict, backwards, source=source).items():
        if not name.endswith("attn.qkv.bias"):
            split[name] = tensor
            continue
        query, key, value = tensor.chunk(3)
        if bool(key.any()):
            raise PolyptychError(f"{source}: {name}: key bias up to {key.abs().max():.1e}, not 0")
        stem = name.removesuffix("qkv.bias")
        split |= {f"{stem}q_bias": query.clone(), f"{stem}v_bias": value.clone()}
    return split


def _rules(table: Iterable[tuple[str, str]]) -> Rules:
    return [(_pattern(old), _replacement(new)) for old, new in table]


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")


def _replacement(name: str) -> str:
    first, *rest = re.split(r"[#*]", name)
    return first + "".join(rf"\{index}{part}" for index, part in enumerate(rest, start=1))


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


# --- fitting parts to a model --------------------------------------------------------------------


def fit_vision(part: StateDict, vision_config: PreTrainedConfig) -> StateDict:
    """An EVA part (in our names) cut and resized to a config.

    Layers behind the last one that is read go (39 of the file's 40 blocks stay), and positions
    learned for another grid of patches are resized bicubically, as the published code does.
    """
    layer = re.compile(_pattern(f"{_VIT}encoder.layers.#.*"))
    depth = vision_config.num_hidden_layers
    fitted = {
        name: tensor
        for name, tensor in part.items()
        if (match := layer.fullmatch(name)) is None or int(match[1]) < depth
    }
    if _POSITIONS in fitted:
        side = vision_config.image_size // vision_config.patch_size
        fitted[_POSITIONS] = _resize_positions(fitted[_POSITIONS], side)
    return fitted


def _resize_positions(positions: Tensor, side: int) -> Tensor:
    """(1, 1 + old x old, D) -> (1, 1 + side x side, D); the class token's position stays."""
    old = round((positions.shape[1] - 1) ** 0.5)
    if old == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = interpolate(grid.float(), size=(side, side), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)


def with_pad_rows(part: StateDict, vocab_size: int) -> StateDict:
    """Zero rows for ids that a method adds to the language model (``[PAD]``, always masked)."""
    extended = dict(part)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        if name in part and len(part[name]) < vocab_size:
            rows = part[name].new_zeros(vocab_size - len(part[name]), part[name].shape[1])
            extended[name] = torch.cat([part[name], rows])
    return extended


# --- files ---------------------------------------------------------------------------------------


def write_model_folder(
    out: str | Path,
    weights: StateDict,
    config: PreTrainedConfig,
    architecture: type[PreTrainedModel],
    processor: PolyptychProcessor | None = None,
) -> None:
    """A folder that transformers loads: config, safetensors, processor.

    Args:
        out: The folder; a half-written one is never left under this name.
        weights: The model's whole state dict.
        config: The model's.
        architecture: The model's class.
        processor: Saved beside the weights.

    Raises:
        PolyptychError: If there is one already, or the system refuses.
    """
    out = Path(out)
    refuse_existing(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_torch_state_dict(weights, partial, max_shard_size="5GB")
        config.architectures = [architecture.__name__]
        config.save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        partial.rename(out)
    except OSError as error:
        raise PolyptychError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Nothing is overwritten.

    Raises:
        PolyptychError: If there is something at this path.
    """
    if out.exists():
        raise PolyptychError(f"{out}: exists already")
