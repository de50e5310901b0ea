"""Is our ImageBind equal to the published code? One line per golden tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from polyptych.parity import ParityReport, Values, compare, dump, no_case
from polyptych.retrieval.imagebind import (
    MAX_LOGIT_SCALE,
    ImageBind,
    ImageBindConfig,
    TowerSize,
    build_imagebind,
    preprocess,
)

NOT_COMPARED = {"extra.frames.embedding": "a film of different frames; we read still pictures"}


def run(
    directory: str | Path, case: str, dump_to: str | Path | None = None, tolerance: float = 1e-4
) -> ParityReport:
    """Compare our code with the golden data of one case.

    Args:
        directory: The golden folder of ImageBind.
        case: ``a``.
        dump_to: Where to write our values under the golden names (safetensors).
        tolerance: Largest absolute difference that passes; indices have to be equal.

    Raises:
        PolyptychError: If the folder or case does not exist or is incomplete.
    """
    folder = Path(directory, case)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        inputs, golden, weights = (
            load_file(folder / f"{name}.safetensors")
            for name in ("inputs", "outputs", "state_dict")
        )
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise no_case(Path(directory), case, "ImageBind", error) from error
    model = build_imagebind(weights, _our_config(config), source=f"case {case}")
    ours = _towers(model, inputs)
    ours |= _extras(model, inputs, ours, config)
    for name in ("image0", "image1"):
        picture = Image.fromarray(inputs[f"{name}.uint8_hwc"].numpy())
        ours[f"{name}.pixel_values"] = preprocess(picture, config["preprocess"]["size"])
    if dump_to is not None:
        dump(ours, dump_to)
    return compare(golden, ours, tolerance=tolerance, not_compared=NOT_COMPARED)


def _our_config(golden: dict[str, Any]) -> ImageBindConfig:
    vision, text = golden["vision"], golden["text"]
    return ImageBindConfig(
        image=TowerSize(vision["width"], vision["blocks"], vision["heads"]),
        text=TowerSize(text["width"], text["blocks"], text["heads"]),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        frames=vision["temporal_kernel"],
        vocab_size=text["vocab_size"],
        context_length=text["context_length"],
        out_dim=golden["out_dim"],
    )


@torch.no_grad()
def _towers(model: ImageBind, inputs: dict[str, Tensor]) -> Values:
    image, text = model.image(inputs["pixel_values"]), model.text(inputs["input_ids"])
    image["embedding"] = image["normalized"]
    text["unit"] = normalize(text["embedding"], dim=-1)
    return {
        **{f"vision.{name}": value for name, value in image.items()},
        **{f"text.{name}": value for name, value in text.items()},
        "similarity": image["embedding"] @ text["embedding"].T,
    }


@torch.no_grad()
def _extras(
    model: ImageBind, inputs: dict[str, Tensor], towers: Values, config: dict[str, Any]
) -> Values:
    """Another image size, several pictures of one sample, and a logit scale beyond its limit."""
    other = model.image(inputs["extra.pixel_values_other_size"])
    clips = inputs["extra.pixel_values_clips"]
    vectors = model.image(clips.flatten(0, 1))["normalized"].unflatten(0, clips.shape[:2])
    scale = torch.tensor(config["extra_other_log_logit_scale"]).exp().clamp(max=MAX_LOGIT_SCALE)
    return {
        "extra.other_size.embedded": other["embedded"],
        "extra.other_size.embedding": other["normalized"],
        "extra.clips.embedding": vectors.mean(dim=1),
        "extra.text.embedding_other_scale": scale * towers["text.normalized"],
    }
