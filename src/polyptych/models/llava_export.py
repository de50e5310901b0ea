"""Our LLaVA base as a folder of transformers (``llava-hf``) or of LLaVA's own code (``original``).

The way back of :mod:`polyptych.models.llava_conversion`: what is read and written again is the same
bit for bit.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import LlavaConfig, LlavaProcessor, PreTrainedConfig

from polyptych.errors import PolyptychError
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.models.llava_conversion import ORIGINAL_DECODERS, PUBLISHED_TOWERS, WORD_TABLES
from polyptych.models.processor import PolyptychProcessor
from polyptych.models.weights import rename

TO_LLAVA_HF: tuple[tuple[str, str], ...] = (
    (r"vision_encoder\.model\.(.+)", r"vision_tower.vision_model.\1"),
    (r"connector\.layers\.0\.(.+)", r"multi_modal_projector.linear_1.\1"),
    (r"connector\.layers\.2\.(.+)", r"multi_modal_projector.linear_2.\1"),
    (r"(language_model\..+)", r"\1"),
)
"""Ours -> the llava-hf names that every version of transformers reads."""

TO_ORIGINAL: tuple[tuple[str, str], ...] = (
    (r"vision_encoder\.model\.(.+)", r"model.vision_tower.vision_tower.vision_model.\1"),
    (r"connector\.layers\.(.+)", r"model.mm_projector.\1"),
    (r"language_model\.(.+)", r"\1"),
)
"""Ours -> the original names; a linear projector has no ``0.`` there."""


def write_llava_hf(
    model: PolyptychLlavaForConditionalGeneration,
    processor: PolyptychProcessor,
    out: str | Path,
) -> None:
    """Write a folder that ``LlavaForConditionalGeneration.from_pretrained`` opens.

    transformers looks the placeholder up in the embedding table. A model whose placeholder lies
    outside gets rows for it, filled with the mean of the others, so that none is ever generated
    and :func:`write_original` can leave them out again.

    Raises:
        PolyptychError: If ``out`` exists, or the layout cannot hold the model.
    """
    config = model.config
    if config.projector_type != "mlp2x_gelu":
        raise PolyptychError(f"{out}: llava-hf has no projector of type {config.projector_type}")
    tokenizer = copy.deepcopy(processor.tokenizer)
    if processor.image_token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [processor.image_token]})
    image_token_id = tokenizer.convert_tokens_to_ids(processor.image_token)
    words = config.text_config.vocab_size
    if config.image_token_id < words and config.image_token_id != image_token_id:
        raise PolyptychError(
            f"{out}: image token id {config.image_token_id} in the model, "
            f"{image_token_id} in the tokenizer"
        )
    has_class_token = config.feature_choice.has_class_token
    # transformers' "default" would drop the first patch of an encoder without class token
    strategy = config.vision_feature_select_strategy if has_class_token else "full"
    rows = words if image_token_id < words else -(-len(tokenizer) // 64) * 64
    assert config.tokens_per_image is not None  # both layouts have ViTs only
    text_config = copy.deepcopy(config.text_config)
    text_config.vocab_size = rows
    theirs = LlavaConfig(
        vision_config=config.vision_config,
        text_config=text_config,
        image_token_index=image_token_id,
        image_seq_length=config.tokens_per_image,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=strategy,
        architectures=["LlavaForConditionalGeneration"],
        dtype=model.dtype,
    )
    weights = {name: _with_mean_rows(name, t, rows) for name, t in model.state_dict().items()}
    saved = LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(has_class_token),
        image_token=processor.image_token,
    )
    with _folder_aside(out) as partial:
        save_torch_state_dict(rename(weights, TO_LLAVA_HF), partial, max_shard_size="5GB")
        theirs.save_pretrained(partial)
        saved.save_pretrained(partial)


def write_original(
    model: PolyptychLlavaForConditionalGeneration,
    processor: PolyptychProcessor,
    out: str | Path,
) -> None:
    """Write a folder in the layout of LLaVA's own code.

    Rows of the tables from the placeholder on are left out where they hold nothing but added
    tokens. A vision tower that is none of :data:`PUBLISHED_TOWERS` is saved beside, too, in
    ``vision_tower/``, since LLaVA's code wants it at an address of its own.

    Raises:
        PolyptychError: If ``out`` exists, or the layout cannot hold the model.
    """
    config, text = model.config, model.config.text_config
    kinds = {decoder: kind for kind, decoder in ORIGINAL_DECODERS.items()}
    if text.model_type not in kinds:
        raise PolyptychError(f"{out}: the original layout has no {text.model_type} decoder")
    rows = _rows_without_added_tokens(config, processor)
    weights = rename(
        {n: t[:rows].clone() if n in WORD_TABLES else t for n, t in model.state_dict().items()},
        TO_ORIGINAL,
    )
    if config.projector_type == "linear":
        weights = {n.replace("mm_projector.0.", "mm_projector."): t for n, t in weights.items()}
    tower = _published_name(config.vision_config)
    fields = {
        **text.to_dict(),
        "vocab_size": rows,
        "rope_theta": text.rope_parameters["rope_theta"],  # where older transformers look for it
        "model_type": kinds[text.model_type],
        "architectures": [f"Llava{text.model_type.capitalize()}ForCausalLM"],
        "mm_vision_tower": tower or "vision_tower",
        "mm_hidden_size": model.vision_encoder.hidden_size,
        "mm_projector_type": config.projector_type,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": (
            "patch" if config.vision_feature_select_strategy == "default" else "cls_patch"
        ),
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": "pad" if processor.image_processor.do_pad else "square",
    }
    with _folder_aside(out) as partial:
        save_torch_state_dict(weights, partial, max_shard_size="5GB")
        (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
        processor.tokenizer.save_pretrained(partial)
        if tower is None:
            model.vision_encoder.model.save_pretrained(partial / "vision_tower")
            processor.image_processor.save_pretrained(partial / "vision_tower")


def _with_mean_rows(name: str, tensor: Tensor, rows: int) -> Tensor:
    if name not in WORD_TABLES or len(tensor) >= rows:
        return tensor
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - len(tensor), -1)])


def _rows_without_added_tokens(config: PolyptychLlavaConfig, processor: PolyptychProcessor) -> int:
    rows, start = config.text_config.vocab_size, config.image_token_id
    added = set(processor.tokenizer.get_added_vocab())
    words = [w for w, i in processor.tokenizer.get_vocab().items() if i >= start and w not in added]
    return rows if words else min(rows, start)


def _published_name(vision_config: PreTrainedConfig) -> str | None:
    for name, sizes in PUBLISHED_TOWERS.items():
        if all(getattr(vision_config, field, None) == value for field, value in sizes.items()):
            return name
    return None


@contextmanager
def _folder_aside(out: str | Path) -> Iterator[Path]:
    """A folder to fill that gets its name when it is whole."""
    out = Path(out)
    if out.exists():
        raise PolyptychError(f"{out}: exists already")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except OSError as error:
        raise PolyptychError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
