"""Tiny random models of every family with their processors: a few ten thousand parameters each.

For tests and small studies; everything is built from configs in milliseconds, without a download.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from polyptych.adapters.families import FAMILIES
from polyptych.adapters.image_only import build_processor
from polyptych.language.tokenizer import train_tokenizer

_TEXTS = ("what do these pictures have in common?", "a red ball is in every picture: a dog, too.")


@dataclass(frozen=True, slots=True)
class TinySizes:
    """Sizes of a tiny model and its images."""

    side: int = 28
    """Pixels a side of an image or tile."""
    patch: int = 7
    """Pixels a side of a patch; every family but the two LLaVAs merges 2 x 2 patches or more."""
    vision_width: int = 16
    vision_layers: int = 2
    width: int = 32
    """Of the decoder."""
    layers: int = 4
    heads: int = 2
    """Of decoder and vision encoder."""
    positions: int = 1024
    """Longest row in tokens."""

    @property
    def patches(self) -> int:
        """Patches of an image or tile."""
        return (self.side // self.patch) ** 2

    @property
    def text(self) -> dict[str, Any]:
        """Fields of a decoder's config."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 2 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads // 2 or 1,
            "head_dim": self.width // self.heads,
            "max_position_embeddings": self.positions,
            # 0.02 is made for widths of thousands.
            "initializer_range": self.width**-0.5,
        }

    @property
    def vision(self) -> dict[str, Any]:
        """Fields of a vision encoder's config, as most families call them."""
        return {
            "hidden_size": self.vision_width,
            "intermediate_size": 2 * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.heads,
            "image_size": self.side,
            "patch_size": self.patch,
        }

    @property
    def qwen_vision(self) -> dict[str, Any]:
        """The same as Qwen calls them."""
        return {
            "depth": self.vision_layers,
            "num_heads": self.heads,
            "patch_size": self.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }

    @property
    def rope(self) -> dict[str, Any]:
        """Qwen's three axes of positions."""
        half = self.width // self.heads // 2
        across = 3 * half // 8
        sections = [half - 2 * across, across, across]
        return {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}


TINY = TinySizes()

_EXTRA: dict[str, dict[str, str]] = {
    "llava": {"image_token": "<image>"},
    "llava_onevision": {"image_token": "<image>", "video_token": "<video>"},
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "gemma3": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    "idefics3": {"image_token": "<image>"},
    "smolvlm": {"image_token": "<image>"},
}
_QWEN_EXTRA = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_MARKS = {
    "llava": (),
    "idefics3": ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    "gemma3": ("<start_of_turn>", "<end_of_turn>"),
}
_CHAT_MARKS = ("<|im_start|>", "<|im_end|>")

_PLACES = {
    "internvl": "<IMG_CONTEXT>\n",
    "gemma3": "<start_of_image>",
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|><|image_pad|><|vision_end|>"
    ),
}
_TURNS = {
    "llava": ("{{ m['role'] | upper }}: ", " ", "ASSISTANT:"),
    **dict.fromkeys(
        ("idefics3", "smolvlm"),
        ("{{ m['role'] | capitalize }}: ", "<end_of_utterance>\n", "Assistant:"),
    ),
    "gemma3": (
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
}
_CHAT_TURN = ("<|im_start|>{{ m['role'] }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")


def chat_template(kind: str) -> str:
    """A template of the family's form: its marks of turns and images, images where they stand."""
    before, after, prompt_end = _TURNS.get(kind, _CHAT_TURN)
    place = _PLACES.get(kind, "<image>")
    return (
        "{% for m in messages %}" + before + "{% for block in m['content'] %}"
        "{% if block['type'] == 'image' %}" + place + "{% else %}{{ block['text'] }}{% endif %}"
        "{% endfor %}"
        + after
        + "{% endfor %}{% if add_generation_prompt %}"
        + prompt_end
        + "{% endif %}"
    )


def tiny_family_tokenizer(
    kind: str, texts: Iterable[str] = _TEXTS, vocab_size: int = 320
) -> PreTrainedTokenizerFast:
    """A small tokenizer with the special tokens of the family."""
    trained = train_tokenizer(texts, vocab_size)
    extra = _EXTRA.get(kind, _QWEN_EXTRA)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=extra,
    )
    marks = [*extra.values(), *_MARKS.get(kind, _CHAT_MARKS)]
    if kind in ("idefics3", "smolvlm"):
        marks += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer.add_tokens(marks, special_tokens=True)
    return tokenizer


def tiny_family_processor(
    kind: str, tokenizer: Any = None, sizes: TinySizes = TINY
) -> ProcessorMixin:
    """The family's own processor over tiny images, built without torchvision."""
    tokenizer = tokenizer or tiny_family_tokenizer(kind)
    side, patches = sizes.side, sizes.patches
    square = {"height": side, "width": side}
    tiles: Any = {"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}}
    settings: dict[str, Any] = {}
    image_processor: Any
    if kind == "llava":
        image_processor = LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
        settings = {
            "patch_size": sizes.patch,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        }
    elif kind == "llava_onevision":
        image_processor = LlavaOnevisionImageProcessorPil(
            size=square, image_grid_pinpoints=_grids(side)
        )
        settings = {"num_image_tokens": patches, "vision_feature_select_strategy": "full"}
    elif kind == "internvl":
        image_processor = GotOcr2ImageProcessorPil(size=square, max_patches=2)
        settings = {"image_seq_length": patches // 4}
    elif kind in ("idefics3", "smolvlm"):
        chosen = Idefics3ImageProcessorPil if kind == "idefics3" else SmolVLMImageProcessorPil
        image_processor = chosen(**tiles)
        settings = {"image_seq_len": patches // 4}
    elif kind == "gemma3":
        image_processor = Gemma3ImageProcessorPil(size=square)
        settings = {"image_seq_length": patches // 4}
    else:
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=sizes.patch,
            size={"shortest_edge": side * side, "longest_edge": 2 * side * side},
        )
    return build_processor(
        FAMILIES[kind], image_processor, tokenizer, chat_template=chat_template(kind), **settings
    )


def _grids(side: int) -> list[list[int]]:
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def tiny_family_config(kind: str, tokenizer: Any, sizes: TinySizes = TINY) -> Any:
    """The config of a tiny model of the family."""

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(name)

    ids = {name: getattr(tokenizer, name) for name in _SPECIAL}
    decoder = {**sizes.text, "vocab_size": len(tokenizer) + 4, **ids}
    side, patches = sizes.side, sizes.patches
    fields: dict[str, Any] = {}
    if kind in ("llava", "llava_onevision"):
        name = "clip_vision_model" if kind == "llava" else "siglip_vision_model"
        model_type = "llama" if kind == "llava" else "qwen2"
        fields = {"image_token_index": token("<image>")}
        if kind == "llava_onevision":
            fields |= {"video_token_index": token("<video>"), "image_grid_pinpoints": _grids(side)}
        vision = {"model_type": name, **sizes.vision}
        decoder["model_type"] = model_type
    elif kind == "internvl":
        fields = {"image_token_id": token("<IMG_CONTEXT>"), "image_seq_length": patches // 4}
        vision = {**sizes.vision, "image_size": [side] * 2, "patch_size": [sizes.patch] * 2}
        decoder["model_type"] = "qwen2"
    elif kind in ("idefics3", "smolvlm"):
        fields = {"image_token_id": token("<image>"), "scale_factor": 2}
        vision = sizes.vision
        decoder["model_type"] = "llama"
    elif kind == "gemma3":
        fields = {
            "image_token_index": token("<image_soft_token>"),
            "boi_token_index": token("<start_of_image>"),
            "eoi_token_index": token("<end_of_image>"),
            "mm_tokens_per_image": patches // 4,
        }
        vision = {"model_type": "siglip_vision_model", **sizes.vision}
        decoder |= {"query_pre_attn_scalar": decoder["head_dim"], "sliding_window": 512}
    else:
        fields = {
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
        }
        vision = sizes.qwen_vision
        if kind == "qwen2_vl":
            vision |= {"embed_dim": sizes.vision_width, "hidden_size": sizes.width}
        else:
            vision |= {
                "hidden_size": sizes.vision_width,
                "intermediate_size": 2 * sizes.vision_width,
                "out_hidden_size": sizes.width,
            }
        if kind == "qwen2_5_vl":
            vision |= {"window_size": side, "fullatt_block_indexes": [sizes.vision_layers - 1]}
        if kind == "qwen3_vl":
            vision |= {"num_position_embeddings": patches, "deepstack_visual_indexes": [0]}
        decoder["rope_parameters"] = sizes.rope
    return AutoConfig.for_model(
        kind, text_config=decoder, vision_config=vision, tie_word_embeddings=False, **fields
    )


_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def tiny_family(
    kind: str, *, seed: int = 0, tokenizer: Any = None, sizes: TinySizes = TINY
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A random model of the family, in eval mode, and its processor."""
    tokenizer = tokenizer or tiny_family_tokenizer(kind)
    torch.manual_seed(seed)
    config = tiny_family_config(kind, tokenizer, sizes)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma's is zero until it is loaded
            torch.nn.init.normal_(weight, std=0.2)
    generation: Any = model.generation_config
    for name in _SPECIAL:
        setattr(generation, name, getattr(tokenizer, name))
    return model, tiny_family_processor(kind, tokenizer, sizes)
