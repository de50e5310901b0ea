"""Models of the studies' size: the bundled encoder, a small Q-Former, a small decoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import ResNetConfig, ResNetModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.records import read_records
from polyptych.language.tokenizer import IMAGE_TOKEN, train_tokenizer
from polyptych.models.blip2 import PolyptychBlip2ForConditionalGeneration
from polyptych.models.checkpoint import ASSETS
from polyptych.models.processor import PolyptychProcessor

ENCODER = ASSETS / "storybook-encoder"
"""The frozen encoder of all bases; trained by :mod:`polyptych.reproduce.encoder`."""

WIDTH = 128
"""Of Q-Former and decoder."""


def build_processor(
    encoder: Path, sets: Iterable[Path], tokens: int, *, vocab_size: int = 1024
) -> PolyptychProcessor:
    """A tokenizer trained on the texts of the training sets, and the encoder's image processor."""
    texts = (
        message.text
        for path in sets
        for example in read_records(path)
        for message in example.messages
    )
    return PolyptychProcessor(
        BlipImageProcessorPil.from_pretrained(encoder),
        train_tokenizer(texts, vocab_size=vocab_size),
        tokens_per_image=tokens,
        template="qa",
        max_length=256,
    )


def small_config(
    encoder: Path, processor: PolyptychProcessor, *, decoder_layers: int = 4
) -> dict[str, Any]:
    """Fields of a BLIP-2 config: trained encoder, random Q-Former and language model.

    The Q-Former keeps the published index rule (cross-attention in even layers, an even number of
    layers), so that every method meets the same limits as in its paper's model.
    """
    tokenizer = processor.tokenizer
    return {
        "vision_config": ResNetConfig.from_pretrained(encoder),
        "qformer_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 2 * WIDTH,
            "cross_attention_frequency": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 352,
            "num_hidden_layers": decoder_layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            # 0.02 is made for widths of thousands: at 128 the attention starts so flat that the
            # model finds no visual token within thousands of steps; 1 / sqrt(128) finds them soon.
            "initializer_range": WIDTH**-0.5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "instruction_aware": False,
    }


def load_encoder(model: PolyptychBlip2ForConditionalGeneration, encoder: Path) -> None:
    """Put the trained encoder into a model that was just built."""
    trained = ResNetModel.from_pretrained(encoder)
    model.vision_encoder.model.load_state_dict(trained.state_dict())
