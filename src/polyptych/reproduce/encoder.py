"""The small vision encoder of Storybook, trained from nothing on drawn truth.

A drawn picture knows which thing each pixel belongs to, so a patch can be asked directly: which
kind, color, size are you; whose hair, hat, clothes; what is this person doing. That dense signal
trains a small ResNet within an hour on one core. The heads are thrown away; the encoder is then
frozen and its features are cached on disk.

Command: ``python -m polyptych.reproduce.encoder --out DIR``.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import ResNetConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.schema import IGNORE_INDEX
from polyptych.storybook.rendering import draw_with_masks
from polyptych.storybook.scenes import Scene, Thing, sample_scene
from polyptych.storybook.vocabulary import (
    ACTS,
    CLOTHES,
    COLORS,
    HAIR,
    HAIR_COLORS,
    HATS,
    KINDS,
    PERSON,
    PLACES,
    SIZES,
    SKINS,
    Split,
)
from polyptych.vision.encoder import VisionEncoder

PICTURE_SIZE = 96
PATCH_SIZE = 8  # the encoder's stride: 144 cells, a small thing covers three or four
COVER = 0.25
"""Share of a patch that one thing must cover for the patch to be asked about it."""

ATTRIBUTES: dict[str, list[Any]] = {
    "kind": [None, PERSON, *KINDS],
    "color": list(COLORS),
    "size": list(SIZES),
    "hair": list(HAIR),
    "hair_color": list(HAIR_COLORS),
    "skin": list(SKINS),
    "hat": list(HATS),
    "clothes": list(CLOTHES),
    "clothes_color": list(COLORS),
    "glasses": [False, True],
    "act": list(ACTS),
}
"""What a patch is asked, and the possible answers; ``kind`` None is background."""


def encoder_config() -> ResNetConfig:
    """A ResNet of 0.7 M parameters: 12 x 12 cells of width 128 from a picture of 96 px."""
    return ResNetConfig(
        embedding_size=32,
        hidden_sizes=[64, 128],
        depths=[2, 2],
        layer_type="basic",
        hidden_act="relu",
    )


def image_processor() -> BlipImageProcessorPil:
    """Preprocessing saved beside the weights: the BLIP-2 family's, at 96 px."""
    return BlipImageProcessorPil(size={"height": PICTURE_SIZE, "width": PICTURE_SIZE})


def attribute_of(thing: Thing, name: str) -> Any:
    """The true answer, or a value outside the answers where the question makes no sense."""
    if name in ("kind", "size"):
        return getattr(thing, name)
    if thing.person is None:
        return thing.color if name == "color" else "no person"
    if name == "act":
        return thing.act
    return "no object" if name == "color" else getattr(thing.person, name)


def patch_labels(scene: Scene, owner: np.ndarray) -> dict[str, np.ndarray]:
    """Labels per patch from the map of which thing owns which pixel.

    Args:
        scene: The truth.
        owner: (H, W) index of the visible thing, -1 for background.

    Returns:
        For each attribute (P,) class indices, IGNORE_INDEX where the question makes no sense; and
        ``place`` (1,).
    """
    side = owner.shape[0] // PATCH_SIZE
    blocks = owner.reshape(side, PATCH_SIZE, side, PATCH_SIZE)
    cover = np.stack([(blocks == index).mean(axis=(1, 3)) for index in range(len(scene.things))])
    best = cover.argmax(axis=0)
    clear = cover.max(axis=0) >= COVER
    labels = {}
    for name, answers in ATTRIBUTES.items():
        classes = {answer: index for index, answer in enumerate(answers)}
        of_thing = np.array(
            [classes.get(attribute_of(thing, name), IGNORE_INDEX) for thing in scene.things]
        )
        background = 0 if name == "kind" else IGNORE_INDEX
        labels[name] = np.where(clear, of_thing[best], background).reshape(-1)
    labels["place"] = np.array([list(PLACES).index(scene.place)])
    return labels


class DrawnPictures(IterableDataset):
    """Endless fresh pictures with their patch labels, drawn in the worker."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}-{worker.id if worker else 0}")
        while True:
            scene = sample_scene(rng, split=self.split)
            image, owner = draw_with_masks(scene, PICTURE_SIZE)
            yield np.asarray(image), patch_labels(scene, owner)


class AttributeHeads(nn.Module):
    """Linear questions to every cell, and one about the place to their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {name: len(answers) for name, answers in ATTRIBUTES.items()}
        self.patch = nn.ModuleDict({name: nn.Linear(width, n) for name, n in sizes.items()})
        self.place = nn.Linear(width, len(PLACES))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """``features (I, P, D_v)`` -> logits (I, P, answers) by attribute; ``place`` has P = 1."""
        logits = {name: head(features) for name, head in self.patch.items()}
        return {**logits, "place": self.place(features.mean(dim=1, keepdim=True))}


def losses(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean cross-entropy of each question; one that nobody was asked counts zero."""
    return {
        name: cross_entropy(value.flatten(0, 1), labels[name].flatten(), ignore_index=IGNORE_INDEX)
        if bool((labels[name] != IGNORE_INDEX).any())
        else value.sum() * 0.0
        for name, value in logits.items()
    }


def accuracies(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Share of right answers by attribute; ``kind`` counts patches with a thing only."""
    result = {}
    for name, value in logits.items():
        asked = labels[name] > 0 if name == "kind" else labels[name] != IGNORE_INDEX
        right = (value.argmax(-1) == labels[name])[asked]
        result[name] = right.float().mean().item()
    return result


def train_encoder(
    out: Path, *, steps: int, batch_size: int = 64, learning_rate: float = 2e-3, seed: int = 0
) -> dict[str, float]:
    """Train, measure on fresh pictures of the validation split, save; returns accuracies.

    Writes ``out/encoder.safetensors``-style folder (``save_pretrained``), the image processor and
    ``log.jsonl``.
    """
    torch.manual_seed(seed)
    encoder = VisionEncoder(encoder_config())
    heads = AttributeHeads(encoder.hidden_size)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
    warmup = min(200, steps // 10 + 1)

    def schedule(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    mean, std = pixel_statistics()
    batches = iter(DataLoader(DrawnPictures("train", seed), batch_size, num_workers=1))
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open(out / "log.jsonl", "w") as log:
        for step in range(steps):
            pictures, labels = next(batches)
            with torch.autocast("cpu", torch.bfloat16):  # three times faster on current CPUs
                logits = heads(encoder(to_pixels(pictures, mean, std)))
            logits = {name: value.float() for name, value in logits.items()}
            parts = losses(logits, labels)
            loss = torch.stack(list(parts.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            if step % 100 == 99:
                seconds = time.perf_counter() - started
                line = {"step": step + 1, "seconds": round(seconds), "loss": loss.item()}
                line |= {name: round(v, 4) for name, v in accuracies(logits, labels).items()}
                log.write(json.dumps(line) + "\n")
                log.flush()
                encoder.model.save_pretrained(out)
    encoder.model.half().save_pretrained(out)  # what is bundled; half precision loses nothing here
    encoder.model.float()
    image_processor().save_pretrained(out)
    result = measure(encoder.eval(), heads.eval(), pictures=2048, seed=seed + 1)
    (out / "accuracy.json").write_text(json.dumps(result, indent=1))
    return result


@torch.inference_mode()
def measure(
    encoder: VisionEncoder, heads: AttributeHeads, pictures: int, seed: int
) -> dict[str, float]:
    """Accuracy by attribute on fresh validation pictures."""
    mean, std = pixel_statistics()
    batches = iter(DataLoader(DrawnPictures("validation", seed), 256))
    rounds = [next(batches) for _ in range(pictures // 256)]
    results = [
        accuracies(heads(encoder(to_pixels(batch, mean, std))), labels) for batch, labels in rounds
    ]
    return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


def pixel_statistics() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the image processor, shaped to broadcast."""
    processor = image_processor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def to_pixels(pictures: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (I, H, W, 3) -> the image processor's pixel values (I, 3, H, W)."""
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


def main() -> None:
    """Command line."""
    import argparse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(train_encoder(options.out, steps=options.steps, seed=options.seed), indent=1))


if __name__ == "__main__":
    main()
