"""ImageBind-huge (arXiv 2305.05665): the image and text towers, loading the published file.

Two pre-norm transformers, a ViT-H/14 and a causal text model, each ending in norm, one token,
linear, unit length. Code and weights were published by Meta for non-commercial use; this is an own
implementation, which comes without weights.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, normalize, scaled_dot_product_attention

from polyptych.errors import PolyptychError
from polyptych.retrieval.clip_tokenizer import ClipTokenizer
from polyptych.retrieval.protocol import Modality, fingerprint

LICENSE_NOTICE = (
    "ImageBind's weights are licensed CC BY-NC-SA 4.0: non-commercial use only, "
    "and an index made with them is an output of them."
)

NORM_EPS = 1e-6
MAX_LOGIT_SCALE = 100.0
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_OTHER_MODALITIES = ("audio", "depth", "thermal", "imu")
_OUR_NAMES = {
    "modality_preprocessors.vision.cls_token": "image.class_token",
    "modality_preprocessors.vision.rgbt_stem.proj.1.weight": "image.patch_kernel",
    "modality_preprocessors.vision.pos_embedding_helper.pos_embed": "image.positions",
    "modality_trunks.vision.pre_transformer_layer.0": "image.pre_norm",
    "modality_trunks.vision.blocks": "image.blocks",
    "modality_heads.vision.0": "image.head_norm",
    "modality_heads.vision.2": "image.projection",
    "modality_preprocessors.text.token_embedding": "text.token_embedding",
    "modality_preprocessors.text.pos_embed": "text.positions",
    "modality_trunks.text.blocks": "text.blocks",
    "modality_heads.text.proj.0": "text.head_norm",
    "modality_heads.text.proj.1": "text.projection",
    "modality_postprocessors.text.1.log_logit_scale": "text.log_logit_scale",
}
_MASK = "modality_preprocessors.text.mask"


@dataclass(frozen=True, slots=True)
class TowerSize:
    """One transformer."""

    width: int
    blocks: int
    heads: int


@dataclass(frozen=True, slots=True)
class ImageBindConfig:
    """Sizes; the defaults are ImageBind-huge."""

    image: TowerSize = TowerSize(1280, 32, 16)
    text: TowerSize = TowerSize(1024, 24, 16)
    image_size: int = 224
    patch_size: int = 14
    frames: int = 2
    """Temporal extent of the patch kernel."""
    vocab_size: int = 49_408
    context_length: int = 77
    out_dim: int = 1024


class Block(nn.Module):
    """``x + Attn(LN x)``, then ``x + MLP(LN x)``; exact GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = PackedAttention(width)
        self.norm_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(
        self, states: Float[Tensor, "n T D"], *, causal: bool
    ) -> tuple[Float[Tensor, "n T D"], Float[Tensor, "n T D"]]:
        """The block's output, and its attention's before it is added."""
        attended = self.attn(self.norm_1(states), self.heads, causal)
        states = states + attended
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm_2(states)))
        return states + self.mlp["fc2"](hidden), attended


class PackedAttention(nn.Module):
    """Self-attention with the parameters of ``nn.MultiheadAttention``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, states: Float[Tensor, "n T D"], heads: int, causal: bool
    ) -> Float[Tensor, "n T D"]:
        """Attend within each row."""
        packed = nn.functional.linear(states, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class ImageTower(nn.Module):
    """``(n, 3, S, S) -> (n, E)`` unit vectors."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        width = config.image.width
        patches = (config.image_size // config.patch_size) ** 2
        self.patch_size = config.patch_size
        kernel = (width, 3, config.frames, config.patch_size, config.patch_size)
        self.patch_kernel = nn.Parameter(torch.empty(kernel))
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        self.pre_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(width, config.image.heads) for _ in range(config.image.blocks)
        )
        self.head_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.projection = nn.Linear(width, config.out_dim, bias=False)

    def forward(self, pixel_values: Float[Tensor, "n 3 H W"]) -> dict[str, Tensor]:
        """Named intermediates; ``normalized`` is the embedding."""
        # A still image is a film of equal frames: the kernel is summed over time.
        kernel = self.patch_kernel.sum(dim=2)
        grid = conv2d(pixel_values, kernel, stride=self.patch_size)
        out = {"patch_tokens": grid.flatten(2).transpose(1, 2)}
        tokens = torch.cat([self.class_token.expand(len(grid), -1, -1), out["patch_tokens"]], dim=1)
        out["embedded"] = tokens + self._positions(grid.shape[-1])
        out["pre_norm"] = states = self.pre_norm(out["embedded"])
        for index, block in enumerate(self.blocks):
            states, out[f"block{index}.attn"] = block(states, causal=False)
            out[f"block{index}"] = states
        out["pooled"] = self.head_norm(states[:, 0])
        out["projected"] = self.projection(out["pooled"])
        out["normalized"] = normalize(out["projected"], dim=-1)
        return out

    def _positions(self, side: int) -> Tensor:
        """The table, interpolated for images of another size; the class token keeps its own."""
        table = self.positions
        native = round((table.shape[1] - 1) ** 0.5)
        if side == native:
            return table
        grid = table[:, 1:].unflatten(1, (native, native)).permute(0, 3, 1, 2)
        # As published: the factor, not the ratio of the sizes, enters the coordinates.
        grid = interpolate(grid.float(), scale_factor=side / native, mode="bicubic").to(table)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class TextTower(nn.Module):
    """``(n, L) ids -> (n, E)`` unit vectors; causal, read at the first largest id (the end)."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        width = config.text.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.empty(1, config.context_length, width))
        self.blocks = nn.ModuleList(
            Block(width, config.text.heads) for _ in range(config.text.blocks)
        )
        self.head_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.projection = nn.Linear(width, config.out_dim, bias=False)
        self.log_logit_scale = nn.Parameter(torch.empty(()))

    def forward(self, input_ids: Int[Tensor, "n L"]) -> dict[str, Tensor]:
        """Named intermediates; ``normalized`` is the embedding without the logit scale."""
        out = {"token_embeddings": self.token_embedding(input_ids)}
        out["embedded"] = states = out["token_embeddings"] + self.positions
        for index, block in enumerate(self.blocks):
            states, out[f"block{index}.attn"] = block(states, causal=True)
            out[f"block{index}"] = states
        out["pool_index"] = input_ids.argmax(dim=-1)
        out["selected"] = states[torch.arange(len(states)), out["pool_index"]]
        out["pooled"] = self.head_norm(out["selected"])
        out["projected"] = self.projection(out["pooled"])
        out["normalized"] = normalize(out["projected"], dim=-1)
        out["embedding"] = self.log_logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * out["normalized"]
        return out


class ImageBind(nn.Module):
    """Both towers."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config)
        self.text = TextTower(config)


def convert_published(weights: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The published key names to ours, the four other modalities left out.

    Args:
        weights: The published flat dictionary.
        source: Its file, for the error message.

    Raises:
        PolyptychError: For a key of no modality, or a text mask that is not the causal one.
    """
    ours = {}
    for key, value in weights.items():
        if key == _MASK:
            causal = torch.full_like(value, -torch.inf).triu(1)
            if not torch.equal(value, causal):
                raise PolyptychError(f"{source}: {key} is not the causal mask")
            continue
        if key.split(".")[1:2] and key.split(".")[1] in _OTHER_MODALITIES:
            continue
        prefix = next((p for p in _OUR_NAMES if key == p or key.startswith(p + ".")), None)
        if prefix is None:
            raise PolyptychError(f"{source}: unknown key {key}; not a file of ImageBind")
        ours[_OUR_NAMES[prefix] + key.removeprefix(prefix)] = value
    return ours


def build_imagebind(
    weights: Mapping[str, Tensor], config: ImageBindConfig, *, source: str
) -> ImageBind:
    """A model with published weights, strictly.

    Raises:
        PolyptychError: Naming what is missing, too much, or of another shape.
    """
    with torch.device("meta"):
        model = ImageBind(config)
    converted = convert_published(weights, source=source)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    for problem, keys in (
        ("missing", expected.keys() - converted.keys()),
        ("unknown", converted.keys() - expected.keys()),
        ("of another shape", {k for k in expected if converted[k].shape != expected[k]})
        if expected.keys() == converted.keys()
        else ("", set()),
    ):
        if keys:
            raise PolyptychError(
                f"{source}: {len(keys)} of {len(expected)} tensors {problem}: {sorted(keys)[0]} …"
            )
    model.load_state_dict(converted, assign=True)
    return model.eval().requires_grad_(False)


class ImageBindEncoder:
    """The encoder that CaMML's published data stores were made with.

    Args:
        model: The towers.
        tokenizer: CLIP's byte pairs.
        name: The weights' file.
        device: Where it computes.
        keep_end_token: Of a text over 75 ids, keep the end token behind what fits (ImageBind since
            November 2025). Without it, as in CaMML, every such text gets the same vector.
    """

    modalities: tuple[Modality, ...] = ("image", "text")

    def __init__(
        self,
        model: ImageBind,
        tokenizer: ClipTokenizer,
        *,
        name: str,
        device: str = "cpu",
        keep_end_token: bool = True,
    ) -> None:
        self.name, self.device, self.tokenizer = name, device, tokenizer
        self.dimension = model.config.out_dim
        self.keep_end_token = keep_end_token
        self.fingerprint = fingerprint(model, {"keep_end_token": keep_end_token})
        self.model = model.to(device)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Decoded RGB pictures to unit vectors (n, E)."""
        size = self.model.config.image_size
        pixels = torch.stack([preprocess(image, size) for image in images]).to(self.device)
        return self.model.image(pixels)["normalized"].float().cpu().numpy()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to unit vectors (n, E)."""
        length = self.model.config.context_length
        rows = [self.tokenizer.row(text, length, keep_end=self.keep_end_token) for text in texts]
        return self.model.text(torch.tensor(rows).to(self.device))["normalized"].cpu().numpy()


def load_imagebind(
    path: str | Path,
    *,
    device: str = "cpu",
    keep_end_token: bool = True,
    config: ImageBindConfig = ImageBindConfig(),
) -> ImageBindEncoder:
    """Load the published ``imagebind_huge.pth``, with CLIP's vocabulary file beside it.

    Prints the licence of the weights to stderr.

    Args:
        path: The file.
        device: Where it computes.
        keep_end_token: See :class:`ImageBindEncoder`.
        config: Sizes of a file that is not ImageBind-huge.

    Raises:
        PolyptychError: If a file is missing or is not what it should be.
    """
    path = Path(path)
    tokenizer = ClipTokenizer.beside(path)
    try:
        weights: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise PolyptychError(f"{path}: no weights here") from error
    except Exception as error:  # torch raises many types for a broken file
        reason = str(error).strip().splitlines()[0]
        raise PolyptychError(f"{path} cannot be read: {reason}") from error
    print(LICENSE_NOTICE, file=sys.stderr)
    model = build_imagebind(weights, config, source=str(path))
    return ImageBindEncoder(
        model.float(), tokenizer, name=str(path), device=device, keep_end_token=keep_end_token
    )


def preprocess(image: Image.Image, size: int) -> Float[Tensor, "3 S S"]:
    """Shorter side to ``size`` (bicubic), center crop, CLIP's mean and deviation."""
    width, height = image.size
    short = min(width, height)
    if short != size:
        wanted = (size * width // short, size * height // short)
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    # round() is half to even, as in the published crop; CLIP's processor floors.
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    return (values - mean) / std
