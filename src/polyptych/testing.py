"""Shipped test doubles: tiny models with fixed weights, their processor, and drawn examples.

Everything is built from a config in milliseconds, on a CPU, without a download.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from polyptych.language.tokenizer import IMAGE_TOKEN, train_tokenizer
from polyptych.methods.camml.model import (
    PolyptychCammlConfig,
    PolyptychCammlForConditionalGeneration,
)
from polyptych.methods.cheetah.model import (
    PolyptychCheetahConfig,
    PolyptychCheetahForConditionalGeneration,
)
from polyptych.methods.sam.model import (
    Guidance,
    PolyptychSamConfig,
    PolyptychSamForConditionalGeneration,
)
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

TINY_QUERIES = 3
TINY_IMAGE_SIZE = 28
TINY_CONTEXT = 1024
"""Positions of a model whose questions have preambles."""

_TEXTS = [
    "what do these pictures have in common?",
    "a red ball is in every picture.",
    "the dog sleeps under the tree. caption 1: mia runs on the beach.",
]

_DECODERS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "qwen2": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 48,
        "word_embed_proj_dim": 32,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
}

_VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": TINY_IMAGE_SIZE,
    "patch_size": 7,
}


def tiny_processor(image_processor: Any = None, **settings: Any) -> PolyptychProcessor:
    """A processor of the tiny models; ``settings`` override the row layout."""
    settings = {"tokens_per_image": TINY_QUERIES, "template": "qa", "max_length": 256, **settings}
    if image_processor is None:
        size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
        image_processor = BlipImageProcessorPil(size=size)
    return PolyptychProcessor(image_processor, train_tokenizer(_TEXTS, vocab_size=320), **settings)


def tiny_model(
    guidance: Guidance = "paper",
    decoder: str = "llama",
    vision: str = "instructblip_vision_model",
    *,
    seed: int = 0,
    zero_init: bool = False,
    **config: Any,
) -> PolyptychSamForConditionalGeneration:
    """A SAM model of about 200,000 random parameters over one of four decoder families.

    ``zero_init=False`` also draws the exchange layers at random, so that guidance does something.
    """
    torch.manual_seed(seed)
    parts = _tiny_parts(decoder, vision)
    parts["qformer_config"]["cross_attention_frequency"] = 1 if guidance == "paper" else 2
    model = PolyptychSamForConditionalGeneration(
        PolyptychSamConfig(guidance=guidance, **parts, **config)
    )
    if not zero_init and model.connector.guidance is not None:
        _draw([model.connector.guidance.query_to_w, model.connector.guidance.w_to_query])
    return model.eval()


def tiny_cheetah(
    decoder: str = "llama",
    vision: str = "instructblip_vision_model",
    *,
    seed: int = 0,
    zero_init: bool = False,
    **config: Any,
) -> PolyptychCheetahForConditionalGeneration:
    """A model with VPG-C; ``zero_init=False`` draws its linears at random, so that it acts."""
    torch.manual_seed(seed)
    parts = {**_tiny_parts(decoder, vision), "instruction_aware": False, **config}
    model = PolyptychCheetahForConditionalGeneration(PolyptychCheetahConfig(**parts))
    if not zero_init:
        _draw([model.vpgc.guidance_projection, model.vpgc.residual_projection])
    return model.eval()


def tiny_llava(
    decoder: str = "llama",
    vision: str = "clip_vision_model",
    *,
    seed: int = 0,
    **config: Any,
) -> PolyptychLlavaForConditionalGeneration:
    """A LLaVA of random parameters: 16 patches of a 28-pixel image become 16 visual tokens."""
    torch.manual_seed(seed)
    parts = {**_tiny_parts(decoder, vision), **config}
    for name in ("qformer_config", "num_query_tokens"):
        parts.pop(name)
    return PolyptychLlavaForConditionalGeneration(PolyptychLlavaConfig(**parts)).eval()


def tiny_llava_processor(**settings: Any) -> PolyptychProcessor:
    """Its processor: the preprocessing of CLIP behind square padding, and its 16 places."""
    return tiny_processor(
        LlavaImageProcessorPil(
            size={"shortest_edge": TINY_IMAGE_SIZE},
            crop_size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE},
            do_pad=True,
        ),
        **{
            "tokens_per_image": (TINY_IMAGE_SIZE // _VISION["patch_size"]) ** 2,
            "template": "vicuna_v1",
            **settings,
        },
    )


def tiny_camml(
    decoder: str = "llama",
    vision: str = "clip_vision_model",
    *,
    seed: int = 0,
    **config: Any,
) -> PolyptychCammlForConditionalGeneration:
    """A CaMML with 2 x 3 context tokens; its weights are drawn large, so that shots are felt."""
    torch.manual_seed(seed)
    parts = _tiny_parts(decoder, vision)
    sizes = parts.pop("qformer_config") | {"num_hidden_layers": 2}
    for name in ("max_position_embeddings", "n_positions"):
        if name in parts["text_config"]:  # a question with shots has a preamble
            parts["text_config"][name] = TINY_CONTEXT
    parts = {**parts, "perceiver_config": sizes, **config}
    model = PolyptychCammlForConditionalGeneration(PolyptychCammlConfig(**parts))
    for parameter in model.camml.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def tiny_camml_processor(**settings: Any) -> PolyptychProcessor:
    """Its processor; the context's places have the first id outside the vocabulary."""
    outside = len(tiny_processor().tokenizer)
    return tiny_llava_processor(
        **{
            "context_tokens": 2 * TINY_QUERIES,
            "context_token_id": outside,
            "max_length": TINY_CONTEXT,
            **settings,
        }
    )


def _tiny_parts(decoder: str, vision: str) -> dict[str, Any]:
    """The config of a tiny BLIP-2 base."""
    tokenizer = tiny_processor().tokenizer
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "layer_type": "basic"}
    if vision != "resnet":
        sizes = {**_VISION, "initializer_range": 0.02}
    return {
        "vision_config": {"model_type": vision, **sizes},
        "qformer_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "cross_attention_frequency": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "text_config": {"model_type": decoder, **ids, **_DECODERS[decoder]},
        "num_query_tokens": TINY_QUERIES,
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    }


def _draw(layers: Sequence[torch.nn.Linear]) -> None:
    """Random weights in place of the zeros that a method starts from."""
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.2)
        torch.nn.init.normal_(layer.bias, std=0.2)


def tiny_image(seed: int, size: int = 40) -> ImageRef:
    """A PNG with two colored shapes, given as bytes."""
    generator = torch.Generator().manual_seed(seed)
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(2):
        x, y, *color = torch.randint(0, 200, (5,), generator=generator).tolist()
        corner = (x % (size // 2), y % (size // 2))
        draw.ellipse((*corner, corner[0] + 15, corner[1] + 15), fill=tuple(color))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


def tiny_examples(count: int, image_counts: tuple[int, ...] = (2, 3, 1, 0)) -> list[Example]:
    """Examples whose numbers of images cycle through ``image_counts``."""
    examples = []
    for index in range(count):
        images = image_counts[index % len(image_counts)]
        blocks: list[ImageBlock | TextBlock] = []
        for picture in range(images):
            blocks += [TextBlock(f"picture {picture + 1}: "), ImageBlock()]
        blocks.append(TextBlock("what do these pictures have in common?"))
        answer = ("a red ball.", "the dog sleeps.", "a tree.")[index % 3]
        examples.append(
            Example(
                id=f"tiny-{index}",
                messages=(
                    Message("user", tuple(blocks)),
                    Message("assistant", (TextBlock(answer),)),
                ),
                images=tuple(tiny_image(10 * index + picture) for picture in range(images)),
                references=(answer,),
            )
        )
    return examples


def tiny_shot_examples(
    count: int,
    shot_counts: tuple[int, ...] = (1, 3, 0, 2),
    image_counts: tuple[int, ...] = (1, 0, 1, 2),
) -> list[Example]:
    """Examples with shots of one image each, whose texts differ in length."""
    examples = tiny_examples(count, image_counts)
    texts = ("a red ball.", "the dog sleeps under the tree.", "mia runs.")
    result = []
    for index, example in enumerate(examples):
        shots = tuple(
            Example(
                id=f"shot-{index}-{number}",
                messages=(
                    Message("user", (ImageBlock(), TextBlock("what is it?"))),
                    Message("assistant", (TextBlock(texts[(index + number) % 3]),)),
                ),
                images=(tiny_image(100 + 10 * index + number),),
            )
            for number in range(shot_counts[index % len(shot_counts)])
        )
        result.append(replace(example, shots=shots))
    return result
