"""Storybook's vision encoder learns on, from pictures of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.images import load_image
from polyptych.files import write_aside
from polyptych.schema import ImageRef
from polyptych.vision.encoder import VisionEncoder

Labelled = Sequence[tuple[ImageRef, str]]
"""Pictures and what they are."""

Pool = Callable[[Float[Tensor, "n P D_v"]], Float[Tensor, "n D_v"]]
"""From cells to a picture."""


def open_encoder(folder: Path) -> tuple[VisionEncoder, BlipImageProcessorPil]:
    """A trained encoder in float32, and how it wants its pictures."""
    encoder = VisionEncoder(ResNetConfig.from_pretrained(folder))
    trained = ResNetModel.from_pretrained(folder, dtype=torch.float32)
    encoder.model.load_state_dict(trained.state_dict())
    return encoder, BlipImageProcessorPil.from_pretrained(folder)


def save_encoder(
    encoder: VisionEncoder,
    processor: BlipImageProcessorPil,
    out: Path,
    accuracy: Mapping[str, float],
) -> None:
    """Half precision, the processor, and then ``accuracy.json``: where it is, all is there."""
    encoder.model.half().save_pretrained(out)
    encoder.model.float()
    processor.save_pretrained(out)
    with write_aside(out / "accuracy.json") as file:
        json.dump(accuracy, file, indent=1)


def fit(modules: Iterable[nn.Module], loss: Callable[[int], Tensor], steps: int) -> None:
    """AdamW over all parameters of the modules, in one cycle; ``loss`` is given the step."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()


def learn_labels(
    start: Path,
    out: Path,
    answers: Mapping[str, Sequence[str]],
    train: Mapping[str, Labelled],
    validation: Mapping[str, Labelled],
    *,
    pool: Pool,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Go on with what the pictures of several sets are, the sets in turns.

    Args:
        start: Folder of a trained encoder.
        out: Folder for the new one.
        answers: Set -> all its labels.
        train: Set -> pictures that are learned.
        validation: Set -> pictures that are judged; those of other labels are left out.
        pool: What a label is read from.
        steps: Optimizer steps.
        batch_size: Pictures of a step, all of one set.
        seed: Of heads, order and augmentation.

    Returns:
        Accuracy on validation pictures, by set; also in ``out/accuracy.json``.
    """
    torch.manual_seed(seed)
    encoder, processor = open_encoder(start)
    heads = nn.ModuleDict({k: nn.Linear(encoder.hidden_size, len(a)) for k, a in answers.items()})
    sets = [(name, *_tensors(train[name], answers[name], processor)) for name in answers]
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        name, pixels, target = sets[step % len(sets)]
        rows = torch.randint(len(pixels), (batch_size,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            features = pool(encoder(augmented(pixels[rows], generator)))
            return cross_entropy(heads[name](features).float(), target[rows])

    fit((encoder, heads), loss, steps)
    encoder.eval()
    accuracy = {}
    for name in answers:
        pixels, target = _tensors(validation[name], answers[name], processor)
        with torch.inference_mode():
            guess = heads[name](pool(encoder(pixels))).argmax(-1)
        accuracy[name] = float((guess == target).float().mean())
    save_encoder(encoder, processor, out, accuracy)
    return accuracy


def augmented(
    pixels: Float[Tensor, "n 3 H W"], generator: torch.Generator
) -> Float[Tensor, "n 3 H W"]:
    """Each picture shifted by up to 8 pixels and mirrored by chance."""
    size = pixels.shape[-1]
    padded = nn.functional.pad(pixels, (8, 8, 8, 8), mode="replicate")
    shifts = torch.randint(17, (len(pixels), 2), generator=generator).tolist()
    flips = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.stack(
        [
            view.flip(-1) if flip else view
            for image, (y, x), flip in zip(padded, shifts, flips, strict=True)
            for view in [image[:, y : y + size, x : x + size]]
        ]
    )


def _tensors(
    pictures: Labelled, answers: Sequence[str], processor: BlipImageProcessorPil
) -> tuple[Float[Tensor, "n 3 H W"], Int[Tensor, " n"]]:
    """Pixels and label numbers of the pictures with one of these labels."""
    known = [(ref, answers.index(label)) for ref, label in pictures if label in answers]
    images = [load_image(ref) for ref, _ in known]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor([number for _, number in known])
