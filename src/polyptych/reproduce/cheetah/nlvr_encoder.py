"""The vision encoder for NLVR's boxes: Storybook's, taught by asking each cell what covers it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.images import load_image
from polyptych.reproduce.cheetah.nlvr_boxes import KINDS, RGB, SIDE, SIZE_WORDS, Box, Statements
from polyptych.reproduce.encoder import PATCH_SIZE, PICTURE_SIZE
from polyptych.reproduce.encoder_finetuning import fit, open_encoder, save_encoder
from polyptych.schema import IGNORE_INDEX, ImageRef

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
    encoder, processor = open_encoder(start)
    heads = nn.ModuleList(nn.Linear(encoder.hidden_size, n) for n in (len(LOOKS), len(SIZE_WORDS)))
    pixels, truth = _tensors(Statements(source, "train"), processor)
    generator = torch.Generator().manual_seed(seed)

    def loss(_step: int) -> Tensor:
        rows = torch.randint(len(pixels), (batch_size,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder(pixels[rows])
            logits = [head(features).float().flatten(0, 1) for head in heads]
        parts = [
            cross_entropy(value, truth[rows, part].flatten(), ignore_index=IGNORE_INDEX)
            for part, value in enumerate(logits)
        ]
        return torch.stack(parts).sum()

    fit((encoder, heads), loss, steps)
    encoder.eval()
    pixels, truth = _tensors(Statements(source, "validation"), processor)
    with torch.inference_mode():
        features = encoder(pixels)
        right = [head(features).argmax(-1) == truth[:, part] for part, head in enumerate(heads)]
    shown = truth[:, 0] > 0
    result = {
        name: float(value[shown].float().mean())
        for name, value in zip(("kind and color", "size"), right, strict=True)
    }
    save_encoder(encoder, processor, out, result)
    return result


def _tensors(statements: Statements, processor: BlipImageProcessorPil) -> tuple[Tensor, Tensor]:
    boxes: Sequence[tuple[str, Box, ImageRef]] = list(statements.boxes())
    images = [load_image(image) for _, _, image in boxes]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    return pixels, torch.from_numpy(np.stack([cell_labels(box) for _, box, _ in boxes]))
