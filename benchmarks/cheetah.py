"""How fast VPG-C is here, next to its published order of work: ``python benchmarks/cheetah.py -h``.

Five things are measured on one thread, at sizes that suit a CPU (15.2 M parameters):

prefill        reading a prompt whose images are encoded, VPG-C included, to the first new logits
end to end     pixels to 32 greedy tokens
next turn      a conversation that has been read and goes on with 20 tokens, to the first new logits
training step  loss of one example and gradients of VPG-C's five tensors
batch          eight prompts with 1 to 8 images each, pixels to 32 greedy tokens of each

by these variants:

published        :mod:`published_cheetah`: images one by one in both looks, keys and values twice,
                 attention written out, all logits, all of it in every training step and for
                 every turn; prompts one by one, since those of a batch need equal numbers of images
polyptych        this package as it is
...+cached       image features and the states that enter layer k were computed before, as in every
                 epoch but the first
...+batch        the eight prompts together
...+onednn       linear layers multiplied by oneDNN (``polyptych.models.onednn``)

All run in one process and take turns, so that other load on the machine hits them alike. The best
turn is reported, in processor and in wall-clock time. Before anything is timed, all variants must
agree in logits, loss, gradients and generated ids.
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
from polyptych.connectors.connector import ConnectorOutput
from polyptych.methods.cheetah.model import (
    PolyptychCheetahConfig,
    PolyptychCheetahForConditionalGeneration,
)
from polyptych.models.incremental import PromptMemory
from polyptych.models.onednn import use_onednn
from polyptych.schema import IGNORE_INDEX
from published_cheetah import Prompt, PublishedCheetah

TOLERANCE = 1e-4
"""Largest absolute difference between variants that are said to compute the same."""
MIXED = (1, 2, 3, 4, 2, 3, 5, 8)
"""Images of the eight prompts of a batch; 3.5 on average, as in the benchmark of the paper."""
ONE_BY_ONE = ("prefill", "end to end", "next turn", "training step")
TARGETS = {
    ("prefill", ""): 1.5,
    ("end to end", ""): 1.5,
    ("training step", "+cached"): 3.0,
    ("batch", "+batch"): 2.0,
}
"""How many times faster than ``published`` was wanted at 8 images, or for the mixed batch."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes and the lengths of its texts."""

    vision: dict[str, int]
    qformer: dict[str, int]
    language: dict[str, int]
    injection_layer: int
    num_query_tokens: int = 32
    outer_piece: int = 27
    """Tokens before the first image, and after the last."""
    inner_piece: int = 7
    """Tokens between two images."""
    answer_tokens: int = 20
    """Of the answer to learn, or of what the next turn adds."""
    new_tokens: int = 32


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
    },
    language={
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 2000,
        "max_position_embeddings": 1024,
    },
    injection_layer=2,
)
"""Those at which the published code was timed: 359 positions for 8 images."""


def build_model(sizes: Sizes) -> PolyptychCheetahForConditionalGeneration:
    """A model with random weights (VPG-C's linears too) that trains what the paper trains."""
    torch.manual_seed(0)
    model = PolyptychCheetahForConditionalGeneration(
        PolyptychCheetahConfig(
            vision_config={
                "model_type": "instructblip_vision_model",
                "initializer_range": 0.02,
                **sizes.vision,
            },
            qformer_config={
                "cross_attention_frequency": 2,
                "vocab_size": 2,
                "max_position_embeddings": 2,
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
            instruction_aware=False,
            injection_layer=sizes.injection_layer,
        )
    )
    for layer in (model.vpgc.guidance_projection, model.vpgc.residual_projection):
        torch.nn.init.normal_(layer.weight, std=0.05)
    model.requires_grad_(False)
    model.vpgc.requires_grad_(True)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Inputs:
    """One example: pixels of its images, the text around them, and how it goes on."""

    pixel_values: Tensor  # (I, 3, S, S)
    pieces: list[Tensor]  # I + 1 of (1, length)
    answer_ids: Tensor  # (1, answer_tokens)


def make_inputs(sizes: Sizes, images: int) -> Inputs:
    """Random pixels and ids."""
    generator = torch.Generator().manual_seed(images)
    side, vocab = sizes.vision["image_size"], sizes.language["vocab_size"]

    def ids(length: int) -> Tensor:
        return torch.randint(3, vocab, (1, length), generator=generator)

    lengths = [sizes.outer_piece, *[sizes.inner_piece] * (images - 1), sizes.outer_piece]
    pixels = torch.randn(images, 3, side, side, generator=generator)
    return Inputs(pixels, [ids(length) for length in lengths], ids(sizes.answer_tokens))


class Published:
    """The transcription's tasks."""

    def __init__(self, model: PolyptychCheetahForConditionalGeneration, sizes: Sizes) -> None:
        self.model, self.sizes, self.cheetah = model, sizes, PublishedCheetah(model)
        self.encoded: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """Visual prompts and features of each image."""
        return self.cheetah.encode_images(inputs.pixel_values.transpose(0, 1)[None])

    def prompt(self, inputs: Inputs) -> Prompt:
        """Pixels to a spliced prompt."""
        return self.cheetah.splice(inputs.pieces, *self.encode(inputs))

    @torch.no_grad()
    def read(self, prompt: Prompt) -> Tensor:
        """Logits of the last position (1, V)."""
        embeddings = prompt.embeddings
        return self.cheetah.read(embeddings, [], prompt, embeddings.shape[1] - 1)[:, -1]

    def prefill(self, inputs: Inputs) -> Tensor:
        """Logits of the last position (1, V)."""
        images = len(inputs.pixel_values)
        if images not in self.encoded:
            self.encoded[images] = self.encode(inputs)
        return self.read(self.cheetah.splice(inputs.pieces, *self.encoded[images]))

    def next_turn(self, inputs: Inputs) -> Tensor:
        """Logits of the last position (1, V): everything is encoded and read again."""
        *pieces, last = inputs.pieces
        longer = [*pieces, torch.cat([last, inputs.answer_ids], dim=1)]
        return self.read(self.cheetah.splice(longer, *self.encode(inputs)))

    def end_to_end(self, inputs: Inputs) -> Tensor:
        """Ids of the answer (1, new tokens)."""
        return self.cheetah.generate(self.prompt(inputs), self.sizes.new_tokens, None)

    def training_step(self, inputs: Inputs) -> Tensor:
        """The loss, with its gradients in the model."""
        self.model.zero_grad()
        loss = self.cheetah.loss(self.prompt(inputs), inputs.answer_ids)
        loss.backward()
        return loss.detach()

    def batch(self, examples: list[Inputs]) -> Tensor:
        """Ids of the answers (B, new tokens)."""
        return torch.cat([self.end_to_end(inputs) for inputs in examples])


class Ours:
    """This package's tasks.

    ``cached`` trains from the states that enter layer k; ``together`` answers a batch at once.
    """

    def __init__(
        self,
        model: PolyptychCheetahForConditionalGeneration,
        sizes: Sizes,
        cached: bool = False,
        together: bool = False,
    ) -> None:
        self.model, self.sizes, self.cached, self.together = model, sizes, cached, together
        self.encoded: dict[int, ConnectorOutput] = {}
        self.lower: dict[int, dict[str, Tensor]] = {}
        self.heard: dict[int, PromptMemory] = {}

    def row(self, inputs: Inputs, *after: Tensor) -> Tensor:
        """Ids with placeholders (1, T)."""
        image = inputs.answer_ids.new_full(
            (1, self.sizes.num_query_tokens), self.model.config.image_token_id
        )
        parts = [part for piece in inputs.pieces for part in (piece, image)][:-1]
        return torch.cat([*parts, *after], dim=1)

    def collate(self, examples: list[Inputs]) -> dict[str, Tensor]:
        """Prompts padded on the left, images flat."""
        rows = [self.row(inputs)[0] for inputs in examples]
        width = max(map(len, rows))
        ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, width - len(row) :], mask[index, width - len(row) :] = row, 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "last_prompt": torch.full((len(rows),), width - 1),
            "image_counts": torch.tensor([len(inputs.pixel_values) for inputs in examples]),
            "pixel_values": torch.cat([inputs.pixel_values for inputs in examples]),
        }

    @torch.inference_mode()
    def prefill(self, inputs: Inputs) -> Tensor:
        """Logits of the last position (1, V)."""
        images = len(inputs.pixel_values)
        if images not in self.encoded:
            self.encoded[images] = self.model.encode_images(
                inputs.pixel_values, image_counts=torch.tensor([images])
            )
        return self.read(PromptMemory(images=self.encoded[images]), self.row(inputs))[0]

    def read(self, memory: PromptMemory, row: Tensor) -> tuple[Tensor, PromptMemory]:
        """Logits of the last position (1, V), and what to remember."""
        last = torch.tensor([row.shape[1] - 1])
        output, memory = self.model.read_more(memory, row, last)
        return output.logits[:, -1], memory

    @torch.inference_mode()
    def next_turn(self, inputs: Inputs) -> Tensor:
        """Logits of the last position (1, V), from what is remembered of the first turn."""
        images = len(inputs.pixel_values)
        if images not in self.heard:
            self.prefill(inputs)
            first = PromptMemory(images=self.encoded[images])
            self.heard[images] = self.read(first, self.row(inputs))[1]
        return self.read(self.heard[images], self.row(inputs, inputs.answer_ids))[0]

    def end_to_end(self, inputs: Inputs) -> Tensor:
        """Ids of the answer (1, new tokens)."""
        return self.generate([inputs])

    def generate(self, examples: list[Inputs]) -> Tensor:
        """Ids of the answers; their length is fixed, so that all do equal work."""
        batch = self.collate(examples)
        ids = self.model.generate(
            **batch,
            max_new_tokens=self.sizes.new_tokens,
            min_new_tokens=self.sizes.new_tokens,
            do_sample=False,
        )
        return ids[:, batch["input_ids"].shape[1] :]

    def training_step(self, inputs: Inputs) -> Tensor:
        """The loss, with its gradients in the model."""
        self.model.zero_grad()
        row = self.row(inputs, inputs.answer_ids)
        prompt = row.shape[1] - inputs.answer_ids.shape[1]
        labels = row.clone()
        labels[:, :prompt] = IGNORE_INDEX
        images = torch.tensor([len(inputs.pixel_values)])
        batch = {
            "input_ids": row,
            "image_counts": images,
            "last_prompt": torch.tensor([prompt - 1]),
        }
        batch |= (
            self.stored(inputs, batch) if self.cached else {"pixel_values": inputs.pixel_values}
        )
        loss = self.model(**batch, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def stored(self, inputs: Inputs, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a cache on disk would give."""
        images = len(inputs.pixel_values)
        if images not in self.lower:
            features = self.model.vision_encoder(inputs.pixel_values)
            lower = self.model.lower_states(**batch, image_features=features)
            self.lower[images] = {"image_features": features, "lower_states": lower.clone()}
        return self.lower[images]

    def batch(self, examples: list[Inputs]) -> Tensor:
        """Ids of the answers (B, new tokens)."""
        if self.together:
            return self.generate(examples)
        return torch.cat([self.generate([inputs]) for inputs in examples])


def build_variants(sizes: Sizes) -> dict[str, Published | Ours]:
    """All variants over equal weights; those without oneDNN share one model."""
    model = build_model(sizes)
    variants: dict[str, Published | Ours] = {"published": Published(model, sizes)}
    other = build_model(sizes)
    models = {"polyptych": model, "polyptych+onednn": other if use_onednn(other) else None}
    for name, weights in models.items():
        if weights is not None:
            variants[name] = Ours(weights, sizes)
            variants[f"{name}+cached"] = Ours(weights, sizes, cached=True)
            variants[f"{name}+batch"] = Ours(weights, sizes, together=True)
    return variants


def task_of(variant: Published | Ours, work: str) -> Callable[[Any], Tensor]:
    """The method that does ``work``, e.g. ``"training step"``."""
    return getattr(variant, work.replace(" ", "_"))


def concerned(variants: dict[str, Published | Ours], work: str) -> dict[str, Published | Ours]:
    """The variants that differ in this work."""
    suffix = {"training step": "+cached", "batch": "+batch"}.get(work, "")
    others = {"+cached", "+batch"} - {suffix}
    return {name: v for name, v in variants.items() if not name.endswith(tuple(others))}


def check_equal(
    variants: dict[str, Published | Ours], sizes: Sizes, images: list[int]
) -> dict[str, float]:
    """Largest differences from ``published``, by work; ids must be equal.

    Raises:
        SystemExit: If a variant computes something else; there is nothing to compare then.
    """
    largest: dict[str, float] = {}

    def compare(work: str, name: str, ours: Tensor, published: Tensor) -> None:
        difference = float((ours - published).abs().max())
        largest[work] = max(largest.get(work, 0.0), difference)
        if not difference <= TOLERANCE:
            raise SystemExit(f"{work}: {name} differs from published by {difference:.3g}")

    for count in images:
        inputs = make_inputs(sizes, count)
        for work in ONE_BY_ONE:
            expected: dict[str, Tensor] = {}
            for name, variant in concerned(variants, work).items():
                values = {work: task_of(variant, work)(inputs)}
                if work == "training step":
                    values["gradients"] = gradients(variant)
                for what, value in values.items():
                    compare(what, name, value, expected.setdefault(what, value))
    examples = [make_inputs(sizes, count) for count in MIXED]
    answers = {name: v.batch(examples) for name, v in concerned(variants, "batch").items()}
    for name, ids in answers.items():
        compare("batch", name, ids, answers["published"])
    return largest


def gradients(variant: Published | Ours) -> Tensor:
    """All gradients as one row."""
    tensors = [parameter.grad for parameter in variant.model.vpgc.parameters()]
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, with the machine and the settings."""
    torch.set_num_threads(1)
    sizes = SMALL
    variants = build_variants(sizes)
    differences = check_equal(variants, sizes, args.images)
    shown = ", ".join(f"{work} {difference:.2g}" for work, difference in differences.items())
    print(f"largest differences from published: {shown}", file=sys.stderr)
    load, rows = [os.getloadavg()[0]], []
    jobs: list[tuple[str, int, Any]] = [
        (work, count, make_inputs(sizes, count)) for count in args.images for work in ONE_BY_ONE
    ]
    jobs.append(("batch", sum(MIXED), [make_inputs(sizes, count) for count in MIXED]))
    for work, images, inputs in jobs:
        tasks = {
            name: partial(task_of(variant, work), inputs)
            for name, variant in concerned(variants, work).items()
        }
        results = measure(tasks, args.repeats, args.seconds, summarize=min)
        load.append(os.getloadavg()[0])
        for name, result in results.items():
            rows.append({"work": work, "images": images, "threads": 1, "variant": name} | result)
        times = ", ".join(f"{name} {result['cpu_ms']:.0f}" for name, result in results.items())
        print(f"{work}, {images} images: {times} ms", file=sys.stderr)
    return {
        "command": " ".join(["python benchmarks/cheetah.py", *sys.argv[1:]]),
        "machine": machine("cpu", load),
        "settings": {"repeats": args.repeats, "mixed": MIXED, "differences": differences},
        "sizes": asdict(sizes),
        "rows": rows,
    }


def table(report: dict[str, Any]) -> str:
    """The results as Markdown: milliseconds, and how many times faster than ``published``."""
    facts, rows = report["machine"], report["rows"]
    low, high = facts["load_average_min_max"]
    lines = [
        f"`{report['command']}`, {facts['date']}: {facts['cpu']} ({facts['cpu_capability']}, "
        f"{facts['cores']} cores), load average {low} to {high} while measuring; torch "
        f"{facts['torch']}, transformers {facts['transformers']}, float32, 1 thread; best of up "
        f"to {report['settings']['repeats']} turns.",
    ]
    for clock, words in (("cpu_ms", "processor time"), ("wall_ms", "wall-clock time")):
        lines += ["", f"**{words.capitalize()} in ms**"]
        for work in (*ONE_BY_ONE, "batch"):
            lines += ["", *work_table(rows, work, 1, clock)]
    return "\n".join([*lines, *_target_table(rows)])


def _target_table(rows: list[dict[str, Any]]) -> list[str]:
    """What was wanted and what is reached, in processor and wall-clock time."""
    lines = []
    for (work, suffix), wanted in TARGETS.items():
        images = sum(MIXED) if work == "batch" else 8
        times = {
            row["variant"]: row for row in rows if row["work"] == work and row["images"] == images
        }
        names = [f"polyptych{suffix}", f"polyptych+onednn{suffix}"]
        if not all(name in times for name in names):
            continue
        base = times["published"]
        cells = [
            f"{base[clock] / times[name][clock]:.2f}×"
            for name in names
            for clock in ("cpu_ms", "wall_ms")
        ]
        what = {"+cached": ", cached", "+batch": " of 8 mixed prompts"}.get(suffix, "")
        lines.append(f"| {work}{what} | {wanted:g}× | " + " | ".join(cells) + " |")
    header = [
        "",
        "| at 8 images | wanted | processor time | wall-clock | +onednn, proc. | +onednn, wall |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    return header + lines if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="limit of one comparison")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--docs", type=Path, help="rewrite the tables of this document")
    args = parser.parse_args()
    report = run(args)
    text = table(report)
    print(text)
    if args.json:
        write_json(args.json, report)
    if args.docs:
        write_table(args.docs, "benchmark-cheetah", text)


if __name__ == "__main__":
    main()
