"""The vision encoder for NLVR's boxes: Storybook's, taught by asking each cell what covers it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.images import load_image
from polyptych.reproduce.encoder import PATCH_SIZE, PICTURE_SIZE
from polyptych.reproduce.nlvr_boxes import KINDS, RGB, SIDE, SIZE_WORDS, Box, Statements
from polyptych.schema import IGNORE_INDEX, ImageRef
from polyptych.vision.encoder import VisionEncoder

CELLS = PICTURE_SIZE // PATCH_SIZE
LOOKS = [None, *((kind, color) for kind in KINDS for color in RGB)]
"""What a cell shows; None is ground."""


def cell_labels(box: Box) -> np.ndarray:
    """(2, P): index into :data:`LOOKS` and of the size, of the shape over each cell's middle."""
    labels = np.zeros((2, CELLS, CELLS), dtype=np.int64)
    labels[1] = IGNORE_INDEX
    middle = (np.arange(CELLS) + 0.5) * SIDE / CELLS
    for shape in box:
        rows = (middle >= shape.y) & (middle < shape.y + shape.size)
        columns = (middle >= shape.x) & (middle < shape.x + shape.size)
        here = np.ix_(rows, columns)
        labels[0][here] = LOOKS.index((shape.kind, shape.color))
        labels[1][here] = list(SIZE_WORDS).index(shape.size)
    return labels.reshape(2, -1)


def train_box_encoder(
    source: Path, start: Path, out: Path, *, steps: int = 400, batch_size: int = 64, seed: int = 0
) -> dict[str, float]:
    """Go on from a trained encoder with the shapes of the training boxes.

    Returns:
        Accuracy on the cells of validation boxes that show a shape; also in ``out/accuracy.json``.
    """
    torch.manual_seed(seed)
    encoder = VisionEncoder(ResNetConfig.from_pretrained(start))
    encoder.model.load_state_dict(ResNetModel.from_pretrained(start).float().state_dict())
    processor = BlipImageProcessorPil.from_pretrained(start)
    heads = nn.ModuleList(nn.Linear(encoder.hidden_size, n) for n in (len(LOOKS), len(SIZE_WORDS)))
    pixels, truth = _tensors(Statements(source, "train"), processor)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(pixels), (batch_size,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder(pixels[rows])
            logits = [head(features).float().flatten(0, 1) for head in heads]
        loss = torch.stack(
            [
                cross_entropy(value, truth[rows, part].flatten(), ignore_index=IGNORE_INDEX)
                for part, value in enumerate(logits)
            ]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.model.half().save_pretrained(out)
    processor.save_pretrained(out)
    encoder.model.float().eval()
    pixels, truth = _tensors(Statements(source, "validation"), processor)
    with torch.inference_mode():
        features = encoder(pixels)
        right = [head(features).argmax(-1) == truth[:, part] for part, head in enumerate(heads)]
    shown = truth[:, 0] > 0
    result = {
        name: float(value[shown].float().mean())
        for name, value in zip(("kind and color", "size"), right, strict=True)
    }
    (out / "accuracy.json").write_text(json.dumps(result, indent=1))
    return result


def _tensors(statements: Statements, processor: BlipImageProcessorPil) -> tuple[Tensor, Tensor]:
    boxes: Sequence[tuple[str, Box, ImageRef]] = list(statements.boxes())
    images = [load_image(image) for _, _, image in boxes]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    return pixels, torch.from_numpy(np.stack([cell_labels(box) for _, box, _ in boxes]))
