"""How fast SAM is here, next to its published order of work: ``python benchmarks/sam.py --help``.

Three things are measured for 1, 2, 4 and 8 images, at sizes that suit a CPU (``--preset small``):
the vision path (pixels to visual tokens), a training step (forward and backward of the six tensors
that the published setting trains) and the answer of a 5-beam search (32 new tokens). Variants:

published      :mod:`published_sam`: images one by one, W stream per image, eager attention, each
               beam reads the prompt
polyptych      this package as it is
polyptych+onednn   with its linear layers multiplied by oneDNN (``polyptych.models.onednn``)
...+features   the same with image features from a cache, as in every epoch but the first

All run in one process and take turns, so that other load on the machine hits them alike; medians
are reported. The numbers of all variants are equal, which ``tests/test_benchmarks.py`` checks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measuring import machine, measure, work_table, write_json, write_table
from polyptych.methods.sam.model import (
    PolyptychSamConfig,
    PolyptychSamForConditionalGeneration,
)
from polyptych.methods.sam.released import freeze_to_released
from polyptych.models.onednn import use_onednn
from polyptych.schema import IGNORE_INDEX
from published_sam import PublishedSam

ROOT = Path(__file__).resolve().parents[1]
WORK = ("vision path", "training step", "generation")
TARGETS = {
    ("vision path", ""): 1.5,
    ("training step", ""): 2.0,
    ("training step", "+features"): 5.0,
    ("generation", ""): 3.0,
}
"""How many times faster than ``published`` was wanted at 8 images on a CPU."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes and the lengths of its texts."""

    vision: dict[str, int]
    qformer: dict[str, int]
    language: dict[str, int]
    num_query_tokens: int = 32
    prompt_tokens: int = 22
    target_tokens: int = 10
    new_tokens: int = 32
    num_beams: int = 5


SMALL = Sizes(
    vision={
        "hidden_size": 256,
        "intermediate_size": 1117,  # int(256 * 4.3637), the ratio of the published encoder
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 224,
        "patch_size": 14,
    },
    qformer={
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "vocab_size": 512,
    },
    language={
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
    },
)
"""A CPU's share: about 20 M parameters. The vocabulary keeps the head's share of a 7B model."""

VICUNA_7B = Sizes(
    vision={
        "hidden_size": 1408,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    qformer={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 30523,
    },
    language={
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32001,
        "max_position_embeddings": 2048,
    },
)
"""The published model's sizes, for a GPU."""

PRESETS = {"small": SMALL, "7b": VICUNA_7B}


def build_model(
    sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> PolyptychSamForConditionalGeneration:
    """A model with random weights (exchange layers too) that trains what the paper trains."""
    torch.manual_seed(0)
    config = PolyptychSamConfig(
        guidance="released",
        vision_config={
            "model_type": "instructblip_vision_model",
            "initializer_range": 0.02,
            **sizes.vision,
        },
        qformer_config={
            "cross_attention_frequency": 2,
            "max_position_embeddings": 128,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            **sizes.qformer,
        },
        text_config={
            "model_type": "llama",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **sizes.language,
        },
        num_query_tokens=sizes.num_query_tokens,
    )
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = PolyptychSamForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(torch.float32)
    guidance = model.connector.guidance
    for layer in (guidance.query_to_w, guidance.w_to_query):
        torch.nn.init.normal_(layer.weight, std=0.05)
    freeze_to_released(model)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Inputs:
    """One example: pixels of its images, prompt and target."""

    pixel_values: Tensor  # (I, 3, H, W)
    prompt_ids: Tensor  # (1, prompt)
    target_ids: Tensor  # (1, target)


def make_inputs(sizes: Sizes, images: int, device: str, dtype: torch.dtype) -> Inputs:
    """Random pixels and ids."""
    generator = torch.Generator().manual_seed(images)
    side, vocab = sizes.vision["image_size"], sizes.language["vocab_size"]
    vocab = min(vocab, sizes.qformer["vocab_size"])
    pixels = torch.randn(images, 3, side, side, generator=generator)

    def ids(length: int) -> Tensor:
        return torch.randint(3, vocab, (1, length), generator=generator).to(device)

    return Inputs(pixels.to(device, dtype), ids(sizes.prompt_tokens), ids(sizes.target_tokens))


class Published:
    """The transcription's three tasks."""

    def __init__(self, model: PolyptychSamForConditionalGeneration, sizes: Sizes) -> None:
        self.model, self.sizes, self.sam = model, sizes, PublishedSam(model)

    def visual_tokens(self, inputs: Inputs) -> Tensor:
        """``(N, D_llm)``."""
        features = self.sam.image_features(inputs.pixel_values.transpose(0, 1)[None])
        return self.sam.visual_tokens(features, inputs.prompt_ids)[0]

    def vision_path(self, inputs: Inputs) -> Tensor:
        """Pixels to visual tokens, without a graph."""
        with torch.no_grad():
            return self.visual_tokens(inputs)

    def training_step(self, inputs: Inputs) -> Tensor:
        """The loss, with its gradients in the model."""
        self.model.zero_grad()
        text = torch.cat([inputs.prompt_ids, inputs.target_ids], dim=1)
        loss = self.sam.loss(self.visual_tokens(inputs)[None], text, self.sizes.target_tokens)
        loss.backward()
        return loss.detach()

    def generation(self, inputs: Inputs) -> Tensor:
        """Ids of the answer (1, new tokens)."""
        tokens = self.vision_path(inputs)[None]
        return self.sam.generate(tokens, inputs.prompt_ids, **search(self.sizes))


class Ours:
    """This package's three tasks; with ``cached`` features the encoder does not run."""

    def __init__(
        self, model: PolyptychSamForConditionalGeneration, sizes: Sizes, cached: bool = False
    ) -> None:
        self.model, self.sizes, self.cached = model, sizes, cached
        self.features: dict[int, Tensor] = {}

    def batch(self, inputs: Inputs, *text: Tensor) -> dict[str, Tensor]:
        """The batch that a collator would make of the example."""
        images = len(inputs.pixel_values)
        places = inputs.prompt_ids.new_full(
            (1, images * self.sizes.num_query_tokens), self.model.config.image_token_id
        )
        ids = torch.cat([places, *text], dim=1)
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "image_counts": torch.tensor([images], device=ids.device),
            "qformer_input_ids": inputs.prompt_ids,
            "qformer_attention_mask": torch.ones_like(inputs.prompt_ids),
        }
        if not self.cached:
            return batch | {"pixel_values": inputs.pixel_values}
        if images not in self.features:
            with torch.no_grad():
                self.features[images] = self.model.vision_encoder(inputs.pixel_values)
        return batch | {"image_features": self.features[images]}

    def vision_path(self, inputs: Inputs) -> Tensor:
        """Pixels to visual tokens, without a graph."""
        batch = self.batch(inputs)
        del batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            return self.model.encode_images(**batch).visual_tokens

    def training_step(self, inputs: Inputs) -> Tensor:
        """The loss, with its gradients in the model."""
        self.model.zero_grad()
        batch = self.batch(inputs, inputs.prompt_ids, inputs.target_ids)
        labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
        labels[:, -self.sizes.target_tokens :] = inputs.target_ids
        loss = self.model(**batch, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def generation(self, inputs: Inputs) -> Tensor:
        """Ids of the answer (1, new tokens)."""
        batch = self.batch(inputs, inputs.prompt_ids)
        ids = self.model.generate(**batch, **search(self.sizes))
        return ids[:, batch["input_ids"].shape[1] :]


def search(sizes: Sizes) -> dict[str, Any]:
    """Settings of the beam search; its length is fixed, so that all do equal work."""
    return {
        "num_beams": sizes.num_beams,
        "max_new_tokens": sizes.new_tokens,
        "min_new_tokens": sizes.new_tokens,
        "do_sample": False,
    }


def build_variants(
    sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Published | Ours]:
    """All variants over equal weights; those without oneDNN share one model."""
    model = build_model(sizes, device, dtype)
    variants: dict[str, Published | Ours] = {
        "published": Published(model, sizes),
        "polyptych": Ours(model, sizes),
        "polyptych+features": Ours(model, sizes, cached=True),
    }
    if device == "cpu":
        other = build_model(sizes, device, dtype)
        if use_onednn(other):
            variants["polyptych+onednn"] = Ours(other, sizes)
            variants["polyptych+onednn+features"] = Ours(other, sizes, cached=True)
    return variants


def task_of(variant: Published | Ours, work: str) -> Callable[[Inputs], Tensor]:
    """The method that does ``work``, e.g. ``"training step"``."""
    return getattr(variant, work.replace(" ", "_"))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, with the machine and the settings."""
    sizes, dtype = PRESETS[args.preset], torch.float32
    if args.device != "cpu":
        dtype = torch.bfloat16
    variants = build_variants(sizes, args.device, dtype)
    rows = []
    load = [os.getloadavg()[0]]
    for threads in args.threads:
        torch.set_num_threads(threads)
        for images in args.images:
            inputs = make_inputs(sizes, images, args.device, dtype)
            for work in WORK:
                tasks = {
                    name: partial(task_of(variant, work), inputs)
                    for name, variant in variants.items()
                    if work != "vision path" or not name.endswith("+features")
                }
                results = measure(tasks, args.repeats, args.seconds, args.device)
                load.append(os.getloadavg()[0])
                for name, result in results.items():
                    row = {"work": work, "images": images, "threads": threads, "variant": name}
                    rows.append(row | rates(result, work, images, sizes))
                times = ", ".join(f"{name} {r['wall_ms']:.0f}" for name, r in results.items())
                print(f"{threads} threads, {images} images, {work}: {times} ms", file=sys.stderr)
    return {
        "command": " ".join(["python benchmarks/sam.py", *sys.argv[1:]]),
        "machine": machine(args.device, load),
        "settings": {"preset": args.preset, "dtype": str(dtype), "repeats": args.repeats},
        "sizes": asdict(sizes),
        "rows": rows,
    }


def rates(result: dict[str, Any], work: str, images: int, sizes: Sizes) -> dict[str, Any]:
    """``result`` with images (and, for answers, new tokens) per second of wall time."""
    seconds = result["wall_ms"] / 1e3
    result["images_per_s"] = round(images / seconds, 2)
    if work == "generation":
        result["tokens_per_s"] = round(sizes.new_tokens / seconds, 2)
    return result


def table(report: dict[str, Any]) -> str:
    """The results as Markdown: milliseconds, and how many times faster than ``published``."""
    facts, rows = report["machine"], report["rows"]
    low, high = facts["load_average_min_max"]
    lines = [
        f"`{report['command']}`, {facts['date']}: {facts['cpu']} ({facts['cpu_capability']}, "
        f"{facts['cores']} cores), load average {low} to {high} while measuring; torch "
        f"{facts['torch']}, transformers {facts['transformers']}, {report['settings']['dtype']}; "
        f"medians of up to {report['settings']['repeats']} turns.",
    ]
    for threads in sorted({row["threads"] for row in rows}):
        clock = "cpu_ms" if threads == 1 and "gpu" not in facts else "wall_ms"
        words = "processor time" if clock == "cpu_ms" else "wall-clock time"
        lines += ["", f"**{threads} thread{'s' * (threads > 1)}, {words} in ms**"]
        for work in WORK:
            lines += ["", *work_table(rows, work, threads, clock)]
        lines += _target_table(rows, threads, clock)
    return "\n".join(lines)


def _target_table(rows: list[dict[str, Any]], threads: int, clock: str) -> list[str]:
    """What was wanted and what is reached; nothing where 8 images were not measured on a CPU."""
    times = {
        (row["work"], row["variant"]): row[clock]
        for row in rows
        if row["images"] == 8 and row["threads"] == threads
    }
    lines = []
    for (work, features), wanted in TARGETS.items():
        names = [f"polyptych{features}", f"polyptych+onednn{features}"]
        if not all((work, name) in times for name in names):
            continue
        base = times[work, "published"]
        reached = " | ".join(f"{base / times[work, name]:.2f}×" for name in names)
        cached = ", cached features" if features else ""
        lines.append(f"| {work}{cached} | {wanted:g}× | {reached} |")
    header = ["", "| at 8 images | wanted | polyptych | +onednn |", "| --- | ---: | ---: | ---: |"]
    return header + lines if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=12.0, help="limit of one comparison")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (bfloat16)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--docs", type=Path, help="rewrite the table of this document")
    args = parser.parse_args()
    report = run(args)
    text = table(report)
    print(text)
    if args.json:
        write_json(args.json, report)
    if args.docs:
        write_table(args.docs, "benchmark", text)


if __name__ == "__main__":
    main()
