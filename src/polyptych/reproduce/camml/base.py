"""The CaMML study's base: a small LLaVA that names what it sees and reads for an answer."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.records import read_records
from polyptych.evaluation.scorers import item_scorer
from polyptych.files import write_aside
from polyptych.language.tokenizer import train_tokenizer
from polyptych.models.checkpoint import load_model
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.answers import answer, feature_cache, judge
from polyptych.reproduce.camml.knowledge import PICTURE_SIZE, named_correct
from polyptych.reproduce.camml.study import CammlWorkshop
from polyptych.reproduce.encoder import PATCH_SIZE
from polyptych.reproduce.recipes import sources, study_recipe
from polyptych.reproduce.small_models import WIDTH
from polyptych.training.recipe import DataRecipe
from polyptych.training.supervised import train

_CONTEXT = 1024
"""Positions of the language model: ten shots in the prompt are some 700 tokens."""


def close_up_encoder(encoder: Path, out: Path) -> Path:
    """The bundled encoder for pictures of :data:`PICTURE_SIZE`: the same cells, fewer of them."""
    if not out.exists():
        work = out.with_name(f"{out.name}.partial")
        copytree(encoder, work, dirs_exist_ok=True)
        size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
        BlipImageProcessorPil.from_pretrained(encoder, size=size).save_pretrained(work)
        work.rename(out)
    return out


def fresh_base(
    shop: CammlWorkshop,
) -> tuple[PolyptychLlavaForConditionalGeneration, PolyptychProcessor]:
    """A base before its first step."""
    torch.set_num_threads(1)
    texts = (
        message.text
        for example in read_records(shop.data["base-train"])
        for message in example.messages
    )
    tokenizer = train_tokenizer(texts, vocab_size=1024)
    processor = PolyptychProcessor(
        BlipImageProcessorPil.from_pretrained(shop.encoder),
        tokenizer,
        tokens_per_image=(PICTURE_SIZE // PATCH_SIZE) ** 2,
        template="qa",
        context_template="brief",
        max_length=_CONTEXT,
    )
    torch.manual_seed(0)
    config = PolyptychLlavaConfig(
        vision_config=ResNetConfig.from_pretrained(shop.encoder),
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 352,
            "num_hidden_layers": shop.settings.decoder_layers,
            "num_attention_heads": 4,
            "max_position_embeddings": _CONTEXT,
            "tie_word_embeddings": True,
            "initializer_range": WIDTH**-0.5,  # see small_models.small_config
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=processor.image_token_id,
    )
    model = PolyptychLlavaForConditionalGeneration(config)
    trained = ResNetModel.from_pretrained(shop.encoder, dtype=torch.float32)
    model.vision_encoder.model.load_state_dict(trained.state_dict())
    for parameter in model.connector.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval(), processor


def train_base(shop: CammlWorkshop) -> Path:
    """Train the base unless it is there; returns ``validation.json`` beside it.

    It is judged on persons and things that it has not been trained on.
    """
    settings, judged = shop.settings, shop.base.parent / "validation.json"
    if judged.exists():
        return judged
    if not shop.base.exists():
        model, processor = fresh_base(shop)
        recipe = study_recipe(
            "base",
            ("connector", "language_model"),
            DataRecipe(train=sources([shop.data["base-train"]]), feature_cache=str(shop.features)),
            steps=settings.base_steps,
            batch_size=settings.base_batch,
            learning_rate=settings.base_learning_rate,
        )
        train(recipe, out=shop.base.parent, model=model, processor=processor)
    loaded, processor = load_model(shop.base)
    asked = list(read_records(shop.data["base-validation"]))
    answers = answer(loaded, processor, asked, feature_cache(shop, loaded, processor))
    right = item_scorer("accuracy[base]", named_correct)
    record, _ = judge(asked, answers, (right,), {"by_sort": lambda e: e.metadata["sort"]})
    with write_aside(judged) as file:
        json.dump(record, file, indent=1)
    return judged
