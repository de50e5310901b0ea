"""Encoders behind one protocol: pictures and texts to unit vectors whose inner product is cosine.

CLIP and SigLIP (both sides), sentence encoders (text only) and plain vision encoders (pictures
only, pooled over their patches) are unmodified models of transformers; ImageBind is
:mod:`polyptych.retrieval.imagebind`. An index remembers the fingerprint of the encoder that made
its keys, because vectors of different encoders mean nothing to each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from polyptych.errors import PolyptychError
from polyptych.retrieval.imagebind import load_imagebind
from polyptych.retrieval.protocol import Encoder, Modality, fingerprint, require
from polyptych.vision.encoder import VisionEncoder, feature_choice
from polyptych.vision.feature_cache import encoder_fingerprint

DEFAULT_ENCODER = "storybook-encoder"
"""What encodes where nothing else is named: comes with the package, sees drawn pictures only."""

_ASSETS = Path(__file__).parents[1] / "assets"
_TWO_SIDED = ("clip", "siglip", "siglip2")


def load_encoder(name: str | Path = DEFAULT_ENCODER, *, device: str = "cpu") -> Encoder:
    """Load an encoder by what its config says it is.

    Args:
        name: A bundled name, a folder or hub name of transformers, or ImageBind's ``.pth`` file.
        device: Where it computes.

    Raises:
        PolyptychError: If there is none of this name, or it is of no supported kind.
    """
    name = str(name)
    if name.endswith(".pth"):
        return load_imagebind(name, device=device)
    bundled = _ASSETS / name
    path = str(bundled) if (bundled / "config.json").exists() else name
    if not Path(path, "config.json").exists() and (Path(path).exists() or path.count("/") != 1):
        raise PolyptychError(
            f"{name}: no encoder here (no config.json, no .pth file); bundled: {DEFAULT_ENCODER}"
        )
    config = AutoConfig.from_pretrained(path)
    if config.model_type in _TWO_SIDED:
        return TwoSidedEncoder(name, path, device)
    try:
        feature_choice(config)
    except ValueError:
        return SentenceEncoder(name, path, device)
    return PictureEncoder(name, path, device)


class _Loaded:
    """What the encoders of transformers share: name, device, one call under inference mode."""

    modalities: tuple[Modality, ...]
    dimension: int
    fingerprint: str

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Decoded RGB pictures to unit vectors (n, D)."""
        require(self, "image")
        return self._run(self._embed_images, images)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to unit vectors (n, D)."""
        require(self, "text")
        return self._run(self._embed_texts, texts)

    @torch.inference_mode()
    def _run(self, embed: Any, items: Sequence[Any]) -> np.ndarray:
        return normalize(embed(list(items)).float(), dim=-1).cpu().numpy()

    def _embed_images(self, images: list[Image.Image]) -> Tensor:
        raise NotImplementedError

    def _embed_texts(self, texts: list[str]) -> Tensor:
        raise NotImplementedError


class PictureEncoder(_Loaded):
    """A vision encoder alone: the mean over a ViT's patches, the maximum over a convolutional map.

    A map's channel answers to one thing at one place, which the mean over all places drowns: of 300
    Storybook facts, the one about a picture's subject is among the first ten for 13 % of the
    questions with the mean and for 56 % with the maximum.

    Args:
        name: For messages and to load it again.
        path: Folder or hub name.
        device: Where it computes.
    """

    modalities: tuple[Modality, ...] = ("image",)

    def __init__(self, name: str, path: str, device: str) -> None:
        super().__init__(name, device)
        config = AutoConfig.from_pretrained(path)
        self.encoder = VisionEncoder(config).eval()
        self.encoder.model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = AutoImageProcessor.from_pretrained(path)
        self.dimension = self.encoder.hidden_size
        self.pooling = "max" if self.encoder.choice.is_map else "mean"
        self.fingerprint = f"{self.pooling}-{encoder_fingerprint(self.encoder, self.processor)}"
        self.encoder.to(device)

    def _embed_images(self, images: list[Image.Image]) -> Tensor:
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        if self.pooling == "mean":
            return self.encoder(pixels.to(self.device)).mean(dim=1)
        # The map itself: the encoder's features carry grid positions, too.
        return self.encoder.model(pixels.to(self.device)).last_hidden_state.amax(dim=(2, 3))


class TwoSidedEncoder(_Loaded):
    """CLIP or SigLIP: pictures and texts in one space.

    A text longer than the context is cut by the tokenizer, which keeps the end token.
    """

    modalities: tuple[Modality, ...] = ("image", "text")

    def __init__(self, name: str, path: str, device: str) -> None:
        super().__init__(name, device)
        self.model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = AutoImageProcessor.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        text = self.model.config.text_config
        self.context = text.max_position_embeddings
        # CLIP masks its padding; SigLIP was trained with full rows and without a mask.
        self.full_rows = self.model.config.model_type != "clip"
        self.dimension = getattr(self.model.config, "projection_dim", None) or text.hidden_size
        self.fingerprint = fingerprint(self.model, self.processor.to_dict())
        self.model.to(device)

    def _embed_images(self, images: list[Image.Image]) -> Tensor:
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output

    def _embed_texts(self, texts: list[str]) -> Tensor:
        rows = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.context,
            padding="max_length" if self.full_rows else True,
            return_tensors="pt",
        )
        fields = {"input_ids": rows["input_ids"].to(self.device)}
        if not self.full_rows:
            fields["attention_mask"] = rows["attention_mask"].to(self.device)
        return self.model.get_text_features(**fields).pooler_output


class SentenceEncoder(_Loaded):
    """Any text encoder of transformers, pooled as its sentence-transformers files say, else mean.

    Raises:
        PolyptychError: For files that ask for more than pooling and unit length.
    """

    modalities: tuple[Modality, ...] = ("text",)

    def __init__(self, name: str, path: str, device: str) -> None:
        super().__init__(name, device)
        self.pooling = _sentence_pooling(path)
        self.model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        self.context = min(positions or 512, self.tokenizer.model_max_length)
        self.dimension = self.model.config.hidden_size
        self.fingerprint = fingerprint(self.model, {"pooling": self.pooling})
        self.model.to(device)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        rows = self.tokenizer(
            texts, truncation=True, max_length=self.context, padding=True, return_tensors="pt"
        ).to(self.device)
        states = self.model(**rows).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        mask = rows["attention_mask"][..., None].to(states)
        return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _sentence_pooling(path: str) -> Literal["mean", "cls"]:
    modules = Path(path, "modules.json")
    if not modules.exists():
        return "mean"
    kinds = {
        part["type"].rsplit(".", 1)[-1]: part["path"] for part in json.loads(modules.read_text())
    }
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise PolyptychError(f"{path}: sentence encoder with unknown part {', '.join(unknown)}")
    settings = json.loads(Path(path, kinds["Pooling"], "config.json").read_text())
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode") and value]
    known: dict[str, Literal["mean", "cls"]] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
    }
    if len(asked) != 1 or asked[0] not in known:
        raise PolyptychError(f"{path}: unknown pooling {', '.join(asked)}")
    return known[asked[0]]
