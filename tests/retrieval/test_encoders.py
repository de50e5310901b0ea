"""Encoders of transformers and ImageBind behind one protocol, from tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from retrieval_toys import entry, square
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.protocol import Encoder
from polyptych.retrieval.retriever import Retriever

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "red", "ball", "a", "dog", "runs"]
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 6}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=6
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("encoders")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    crop = {"height": 16, "width": 16}
    clip_pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=crop)
    parts = {
        "clip": (
            CLIPModel(
                CLIPConfig(
                    text_config={**TEXT, **ids, "projection_dim": 12},
                    vision_config={**VISION, "projection_dim": 12},
                    projection_dim=12,
                )
            ),
            clip_pixels,
        ),
        "siglip": (
            SiglipModel(SiglipConfig(text_config={**TEXT, **ids}, vision_config=VISION)),
            SiglipImageProcessorPil(size=crop),
        ),
        "vision": (CLIPVisionModel(CLIPVisionConfig(**VISION)), clip_pixels),
        "sentence": (BertModel(BertConfig(**{**TEXT, "max_position_embeddings": 8})), None),
    }
    for name, (model, pixels) in parts.items():
        model.save_pretrained(base / name)
        if pixels is not None:
            pixels.save_pretrained(base / name)
        if name != "vision":
            save_tokenizer(base / name)
    return {name: base / name for name in parts}


def pictures() -> list[Image.Image]:
    return [load_image(square(number)).resize((20, 16 + number)) for number in range(3)]


TEXTS = ["a red ball", "dog", "a dog runs a red dog runs"]


@pytest.mark.parametrize(
    ("name", "modalities", "width"),
    [
        ("clip", ("image", "text"), 12),
        ("siglip", ("image", "text"), 16),
        ("vision", ("image",), 16),
        ("sentence", ("text",), 16),
    ],
)
def test_vectors_are_unit_and_do_not_depend_on_the_batch(
    folders: dict[str, Path], name: str, modalities: tuple[str, ...], width: int
) -> None:
    encoder = load_encoder(folders[name])
    assert (encoder.modalities, encoder.dimension) == (modalities, width)
    for modality, items in (("image", pictures()), ("text", TEXTS)):
        encode = encoder.encode_images if modality == "image" else encoder.encode_texts
        if modality not in modalities:
            with pytest.raises(PolyptychError, match=f"only, no {modality}s"):
                encode(items)  # type: ignore[operator]
            continue
        together = encode(items)  # type: ignore[operator]
        alone = np.concatenate([encode([item]) for item in items])  # type: ignore[operator]
        assert together.shape == (3, width)
        assert together.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(together, alone, atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 1e-3
    assert load_encoder(folders[name]).fingerprint == encoder.fingerprint


def test_clip_vectors_are_those_of_the_model(folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders["clip"])
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folders["clip"])(pictures(), return_tensors="pt")
    with torch.no_grad():
        both = model(input_ids=torch.tensor([[1, 6, 4, 5, 2]]), **pixels)
    np.testing.assert_allclose(encoder.encode_images(pictures()), both.image_embeds, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS[:1]), both.text_embeds, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "siglip", "sentence"])
def test_long_texts_keep_their_end_token_and_differ(folders: dict[str, Path], name: str) -> None:
    encoder = load_encoder(folders[name])
    one, other = encoder.encode_texts(["a dog runs a dog runs", "red ball a red ball a red"])
    assert np.abs(one - other).max() > 1e-3


def test_sentence_pooling_follows_the_saved_modules(folders: dict[str, Path]) -> None:
    folder = folders["sentence"]
    mean = load_encoder(folder)
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    settings = folder / "1_Pooling" / "config.json"
    settings.write_text(json.dumps({"pooling_mode_cls_token": True}))
    cls = load_encoder(folder)
    assert cls.fingerprint != mean.fingerprint
    assert np.abs(cls.encode_texts(TEXTS) - mean.encode_texts(TEXTS)).max() > 1e-3
    settings.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(PolyptychError, match="unknown pooling pooling_mode_max_tokens"):
        load_encoder(folder)
    modules.append({"path": "2", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(PolyptychError, match="unknown part Dense"):
        load_encoder(folder)
    (folder / "modules.json").unlink()


def test_text_finds_pictures_and_texts(folders: dict[str, Path], tmp_path: Path) -> None:
    entries = [entry(number) for number in range(5)]
    clip, sentence = load_encoder(folders["clip"]), load_encoder(folders["sentence"])
    for encoder, key in ((clip, "image"), (clip, "both"), (sentence, "text")):
        folder = tmp_path / f"{key}-{Path(encoder.name).name}"
        build_index(entries, folder, encoder, key=key)  # type: ignore[arg-type]
        retriever = Retriever(folder)
        assert retriever.default_query() == "text"
        vectors, _ = retriever.encode(entries, "text")
        (first, *_) = retriever.search(vectors, 5)
        truth = vectors[0] @ retriever.store.keys[0].T
        np.testing.assert_allclose([hit.score for hit in first], -np.sort(-truth), atol=1e-5)


def test_the_bundled_encoder_tells_drawn_pictures_apart() -> None:
    encoder: Encoder = load_encoder()
    vectors = encoder.encode_images(pictures())
    assert vectors.shape == (3, 128)
    assert (vectors @ vectors.T)[~np.eye(3, dtype=bool)].max() < 0.999


@pytest.mark.parametrize(
    ("name", "message"),
    [("no_such", "no encoder here"), ("./no/such/folder", "no encoder here")],
)
def test_no_encoder_of_that_name(name: str, message: str) -> None:
    with pytest.raises(PolyptychError, match=message):
        load_encoder(name)
