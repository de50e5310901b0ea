"""LLaVA checkpoints of both layouts, read strictly (and written by ``llava_export.py``).

``original``: what LLaVA's own code saves (flat config with ``mm_*`` fields, 32,000 words, the
vision tower inside or left at its own address). ``llava-hf``: transformers' layout, of any version.
Names are changed by one table; anything missing or left over is an error, since transformers itself
only warns and goes on with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    PreTrainedConfig,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from polyptych.errors import PolyptychError
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.models.weights import overlay, read_weights, rename
from polyptych.vision.encoder import feature_choice

Layout = Literal["llava-hf", "original"]

_VISION = "vision_encoder.model."
WORD_TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""Our names of what has one row per word."""

RULES: tuple[tuple[str, str], ...] = (
    (
        r"(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.+)",
        _VISION + r"\1",
    ),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.+)", r"connector.layers.0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.+)", r"connector.layers.2.\1"),
    (r"model\.mm_projector\.(weight|bias)", r"connector.layers.0.\1"),
    (r"model\.mm_projector\.([02])\.(.+)", r"connector.layers.\1.\2"),
    (r"model\.language_model\.(.+)", r"language_model.model.\1"),
    (r"(language_model\..+)", r"\1"),
    (r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..+)", r"language_model.\1"),
)
"""Names of the original layout and of all llava-hf versions -> ours."""

IGNORED = (r".*\.position_ids", r".*\.rotary_emb\.inv_freq")
"""Buffers that older versions saved."""

_TOWER = ((r"(?:vision_model\.)?((?:embeddings|encoder|p(?:re|ost)_lay|head).+)", _VISION + r"\1"),)
_TOWER_IGNORED = (*IGNORED, r"text_model\..+", r"(?:text|visual)_projection\..+", r"logit_.+")

_VIT_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
PUBLISHED_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**_VIT_L, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_VIT_L, "image_size": 224},
}
"""Sizes of the vision towers that the original checkpoints name without bringing them."""

ORIGINAL_DECODERS = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
"""``model_type`` of the original layout -> its decoder's."""

_SMALL_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]
_WEIGHTS = ["*.safetensors", "*.bin"]


def layout_of(fields: Mapping[str, Any]) -> Layout | None:
    """Which layout a ``config.json`` belongs to; None if it is no LLaVA.

    Both have been written with ``model_type`` ``llava``; the parts of the config tell them apart.
    """
    if fields.get("model_type") in ORIGINAL_DECODERS and "mm_vision_tower" in fields:
        return "original"
    if fields.get("model_type") == "llava" and "text_config" in fields:
        return "llava-hf"
    return None


def read_llava(
    source: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    vision_tower: str | Path | None = None,
    image_aspect_ratio: Literal["pad"] | None = None,
) -> tuple[PolyptychLlavaForConditionalGeneration, PolyptychProcessor]:
    """Open a LLaVA checkpoint of either layout as our model and processor.

    Args:
        source: Folder or hub name.
        dtype: Type to compute in; None: that in which the word embeddings are stored.
        vision_tower: Original layout: folder or hub name of the CLIP or SigLIP model, where the
            weights leave it out or ``mm_vision_tower`` cannot be found.
        image_aspect_ratio: ``pad`` pads pictures to squares whatever the checkpoint says. LLaVA-1.5
            was trained so, the original layout records it, and llava-hf folders crop all the same.

    Raises:
        PolyptychError: If something is missing, unexpected, of another shape or not supported.
    """
    folder = local_folder(source)
    config, tower = _read_config(folder, vision_tower)
    weights = rename(read_weights(folder), RULES, IGNORED, source=str(folder))
    if not any(name.startswith(_VISION) for name in weights):
        if tower is None:
            raise PolyptychError(f"{folder}: 0 tensors of a vision tower")
        own = read_weights(local_folder(tower))
        weights |= rename(own, _TOWER, _TOWER_IGNORED, source=tower)
    if config.text_config.tie_word_embeddings and WORD_TABLES[0] in weights:
        weights.setdefault(WORD_TABLES[1], weights[WORD_TABLES[0]])
    with torch.device("meta"):
        wanted = PolyptychLlavaForConditionalGeneration(config).state_dict()
    weights = overlay([weights], wanted, source=str(folder))
    model: Any = PolyptychLlavaForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=weights[WORD_TABLES[0]].dtype if dtype is None else dtype,
    )
    return model.eval(), read_processor(
        folder, config, vision_tower=tower, image_aspect_ratio=image_aspect_ratio
    )


def read_llava_processor(source: str | Path) -> PolyptychProcessor:
    """The processor alone, without the weights; see :func:`read_llava`."""
    folder = local_folder(source, weights=False)
    config, tower = _read_config(folder, None)
    return read_processor(folder, config, vision_tower=tower)


def local_folder(source: str | Path, *, weights: bool = True) -> Path:
    """A folder as it is; a hub name as its downloaded (or cached) folder.

    Args:
        source: Folder or hub name.
        weights: Whether the weights are downloaded, too.

    Raises:
        PolyptychError: If there is no such folder and the hub does not give it.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(
            snapshot_download(str(source), allow_patterns=_SMALL_FILES + _WEIGHTS * weights)
        )
    except (OSError, ValueError) as error:  # ValueError: no possible hub name
        reason = str(error).strip().splitlines()[0]
        raise PolyptychError(f"{source}: no folder here nor on the hub: {reason}") from error


# Configs


def _read_config(
    folder: Path, vision_tower: str | Path | None
) -> tuple[PolyptychLlavaConfig, str | None]:
    """Our config, and the vision tower's own address where it has one."""
    file = folder / "config.json"
    if not file.is_file():
        raise PolyptychError(f"{folder}: no config.json here")
    fields = json.loads(file.read_text("utf-8"))
    layout = layout_of(fields)
    if layout is None:
        raise PolyptychError(f"{file}: model_type {fields.get('model_type')!r} is no LLaVA")
    try:
        if layout == "llava-hf":
            return _config_from_llava_hf(LlavaConfig.from_dict(fields)), None
        address = str(fields["mm_vision_tower"] if vision_tower is None else vision_tower)
        if (folder / address).is_dir():  # written beside the weights
            address = str(folder / address)
        return config_from_original(fields, vision_config_of(address)), address
    except PolyptychError as error:
        raise PolyptychError(f"{file}: {error}") from None
    except ValueError as error:  # another vision encoder, or a layer that it does not have
        raise PolyptychError(f"{file}: {error}") from error


def vision_config_of(address: str | Path) -> PreTrainedConfig:
    """The config of a vision tower: one of the published, or of a CLIP or SigLIP folder.

    Args:
        address: Its published name, folder or hub name.
    """
    if str(address) in PUBLISHED_TOWERS:
        return AutoConfig.for_model(**PUBLISHED_TOWERS[str(address)])
    config = AutoConfig.from_pretrained(local_folder(address, weights=False))
    return getattr(config, "vision_config", config)


def _config_from_llava_hf(theirs: LlavaConfig) -> PolyptychLlavaConfig:
    for field, wanted in (("projector_hidden_act", "gelu"), ("multimodal_projector_bias", True)):
        if getattr(theirs, field) != wanted:
            raise PolyptychError(f"{field} {getattr(theirs, field)}, supported: {wanted}")
    if not isinstance(theirs.vision_feature_layer, int):
        raise PolyptychError(f"vision_feature_layer {theirs.vision_feature_layer} is not one layer")
    strategy = theirs.vision_feature_select_strategy
    vision: Any = theirs.vision_config  # a config by now, whatever was given
    if strategy == "default" and not feature_choice(vision).has_class_token:
        raise PolyptychError(
            "vision_feature_select_strategy 'default' takes the first patch for a class token, "
            f"which a {vision.model_type} has not; supported: full"
        )
    return PolyptychLlavaConfig(
        vision_config=vision,
        text_config=theirs.text_config,
        vision_feature_layer=theirs.vision_feature_layer,
        vision_feature_select_strategy=strategy,
        image_token_id=theirs.image_token_index,
    )


def config_from_original(
    fields: Mapping[str, Any], vision_config: PreTrainedConfig
) -> PolyptychLlavaConfig:
    """Our config from the flat fields of the original layout.

    Args:
        fields: ``config.json``: the decoder's fields, and ``mm_*`` beside them.
        vision_config: The vision tower's, which the original layout only names.

    Raises:
        PolyptychError: For what LLaVA-1.5 does not have: tiles, image start tokens.
    """
    for field, values in (
        ("mm_projector_type", (None, "linear", "mlp2x_gelu")),
        ("mm_use_im_start_end", (None, False)),
        ("mm_patch_merge_type", (None, "flat")),
        ("image_aspect_ratio", (None, "square", "pad")),
        ("mm_vision_select_feature", (None, "patch", "cls_patch")),
    ):
        if fields.get(field) not in values:
            known = ", ".join(str(value) for value in values[1:])
            raise PolyptychError(f"{field} {fields[field]!r}, supported: {known}")
    text = {
        name: value
        for name, value in fields.items()
        if "mm_" not in name and not name.startswith(("image_", "tokenizer_", "_"))
    }
    for name in ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype"):
        text.pop(name, None)
    keeps_class_token = fields.get("mm_vision_select_feature") == "cls_patch"
    return PolyptychLlavaConfig(
        vision_config=vision_config,
        text_config={"model_type": ORIGINAL_DECODERS[fields["model_type"]], **text},
        projector_type=fields.get("mm_projector_type") or "linear",
        vision_feature_layer=fields.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if keeps_class_token else "default",
    )


# Processors


def read_processor(
    folder: Path,
    config: PolyptychLlavaConfig,
    *,
    vision_tower: str | Path | None = None,
    image_aspect_ratio: Literal["pad"] | None = None,
) -> PolyptychProcessor:
    """The processor of a LLaVA, or of what is built on one.

    Args:
        folder: Folder with tokenizer and ``config.json``.
        config: Ours.
        vision_tower: Folder with the preprocessing, where ``folder`` has none.
        image_aspect_ratio: See :func:`read_llava`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= config.text_config.vocab_size:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    places = [folder, *([Path(vision_tower)] if vision_tower else [])]
    places = [place for place in places if _has_image_processor(place)]
    if places:
        image_processor = AutoImageProcessor.from_pretrained(places[0], backend="pil")
    else:
        side = config.vision_config.image_size
        image_processor = LlavaImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    fields = json.loads((folder / "config.json").read_text("utf-8"))
    if "pad" in (image_aspect_ratio, fields.get("image_aspect_ratio")):
        image_processor = pad_to_square(image_processor)
    assert config.tokens_per_image is not None  # both layouts have ViTs only
    return PolyptychProcessor(
        image_processor,
        tokenizer,
        image_token_id=config.image_token_id,
        tokens_per_image=config.tokens_per_image,
        template="vicuna_v1",
        max_length=getattr(config.text_config, "max_position_embeddings", None),
    )


def _has_image_processor(folder: Path) -> bool:
    if (folder / "preprocessor_config.json").is_file():
        return True
    file = folder / "processor_config.json"
    return file.is_file() and "image_processor" in json.loads(file.read_text("utf-8"))


def pad_to_square(image_processor: Any) -> LlavaImageProcessorPil:
    """The same preprocessing behind square padding with the mean color, as LLaVA-1.5 was trained.

    Args:
        image_processor: Of CLIP or SigLIP.
    """
    names = ("size", "crop_size", "do_center_crop", "image_mean", "image_std", "resample")
    chosen = {name: getattr(image_processor, name, None) for name in names}
    chosen["do_center_crop"] = bool(chosen["do_center_crop"])
    kept = {name: value for name, value in chosen.items() if value is not None}
    return LlavaImageProcessorPil(**kept, do_pad=True)
