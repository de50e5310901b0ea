"""How fast CaMML is here, next to its published order of work: ``python benchmarks/camml.py -h``.

Two things are measured on one thread, batch 1, for several numbers of shots:

forward     pixels and words of a question and its shots to the logits that come next
generation  the same, to 32 greedy tokens

by these variants:

published     :mod:`published_camml`: shot by shot, attention written out, nothing kept
polyptych     this package as it is: shots in one batch, one look of the context perceiver, nothing
              computed that is not read
...+cached    the shots were encoded before (``ShotCache``), as the entries of a datastore are
...+onednn    linear layers multiplied by oneDNN (``polyptych.models.onednn``)

All run in one process and take turns, so that other load on the machine hits them alike. The best
turn is reported, in processor and in wall-clock time. Before anything is timed, all variants must
agree in logits and generated ids.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measuring import machine, measure, write_json, write_table
from polyptych.methods.camml.model import (
    PolyptychCammlConfig,
    PolyptychCammlForConditionalGeneration,
)
from polyptych.methods.camml.shots import ShotTokens
from polyptych.models.onednn import use_onednn
from published_camml import PublishedCamml, Question

TOLERANCE = 1e-4
"""Largest absolute difference of logits between variants that are said to compute the same."""

TARGETS = {
    ("forward", 3, ""): 1.5,
    ("forward", 3, "+cached"): 3.0,
    ("generation", 3, ""): 5.0,
}
"""How many times faster than ``published`` was wanted."""

FLAT = 1.15
"""With the datastore encoded, a forward pass of the most shots may cost so many times one shot's:
the context perceiver still reads them all."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes and the lengths of its texts."""

    vision: dict[str, int]
    perceiver: dict[str, int]
    language: dict[str, int]
    num_query_tokens: int = 64
    shot_words: int = 100
    question_words: tuple[int, int, int] = (40, 18, 20)
    """Before the context, between context and image, after the image."""
    new_tokens: int = 32


SMALL = Sizes(
    vision={
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 224,
        "patch_size": 14,
    },
    perceiver={
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    },
    language={
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 2000,
        "max_position_embeddings": 1024,
    },
)
"""Those at which the published code was timed: 462 positions whatever the number of shots."""


def build_model(sizes: Sizes) -> PolyptychCammlForConditionalGeneration:
    """A model with random weights."""
    torch.manual_seed(0)
    model = PolyptychCammlForConditionalGeneration(
        PolyptychCammlConfig(
            vision_config={"model_type": "clip_vision_model", **sizes.vision},
            text_config={
                "model_type": "llama",
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
                **sizes.language,
            },
            perceiver_config={
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                **sizes.perceiver,
            },
            num_query_tokens=sizes.num_query_tokens,
        )
    )
    return model.eval()


def make_question(sizes: Sizes, shots: int) -> Question:
    """Random pixels and words."""
    generator = torch.Generator().manual_seed(shots)
    side, vocab = sizes.vision["image_size"], sizes.language["vocab_size"]

    def words(length: int) -> Tensor:
        return torch.randint(3, vocab, (1, length), generator=generator)

    before, between, after = map(words, sizes.question_words)
    return Question(
        before,
        between,
        after,
        torch.randn(1, 3, side, side, generator=generator),
        torch.randn(shots, 3, side, side, generator=generator),
        [words(sizes.shot_words) for _ in range(shots)],
    )


class Published:
    """The transcription's tasks."""

    def __init__(self, model: PolyptychCammlForConditionalGeneration, sizes: Sizes) -> None:
        self.sizes, self.camml = sizes, PublishedCamml(model)

    def forward(self, question: Question) -> Tensor:
        """Logits of the last position (1, V)."""
        return self.camml.forward(question)[:, -1]

    def generation(self, question: Question) -> Tensor:
        """Ids of the answer (1, new tokens)."""
        return self.camml.generate(question, self.sizes.new_tokens)


class Ours:
    """This package's tasks; ``cached`` finds the shots encoded."""

    def __init__(
        self, model: PolyptychCammlForConditionalGeneration, sizes: Sizes, cached: bool = False
    ) -> None:
        self.model, self.sizes, self.cached = model, sizes, cached
        self.encoded: dict[int, ShotTokens] = {}

    def batch(self, question: Question) -> dict[str, Tensor]:
        """What a collator makes of the question."""
        config, count = self.model.config, len(question.shot_texts)
        patches = config.tokens_per_image
        row = torch.cat(
            [
                question.before,
                torch.full((1, config.context_tokens), config.context_token_id),
                question.between,
                torch.full((1, patches), config.image_token_id),
                question.after,
            ],
            dim=1,
        )
        shots: dict[str, Any] = {
            "shot_input_ids": torch.cat(list(question.shot_texts)),
            "shot_attention_mask": torch.ones(count, self.sizes.shot_words, dtype=torch.long),
            "shot_image_counts": torch.ones(count, dtype=torch.long),
            "shot_pixel_values": question.shot_images,
        }
        if self.cached:
            if count not in self.encoded:
                self.encoded[count] = self.model.encode_shots(**shots)
            shots = dict(self.encoded[count].as_inputs())
        return {
            "input_ids": row,
            "attention_mask": torch.ones_like(row),
            "image_counts": torch.ones(1, dtype=torch.long),
            "last_prompt": torch.tensor([row.shape[1] - 1]),
            "pixel_values": question.image,
            "shot_counts": torch.tensor([count]),
            **shots,
        }

    @torch.inference_mode()
    def forward(self, question: Question) -> Tensor:
        """Logits of the last position (1, V)."""
        batch: dict[str, Any] = dict(self.batch(question))
        return self.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1]

    @torch.inference_mode()
    def generation(self, question: Question) -> Tensor:
        """Ids of the answer (1, new tokens); their number is fixed, so that all do equal work."""
        batch: dict[str, Any] = dict(self.batch(question))
        count = self.sizes.new_tokens
        ids = self.model.generate(
            **batch, max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
        )
        return ids[:, batch["input_ids"].shape[1] :]


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
    return variants


def check_equal(
    variants: dict[str, Published | Ours], sizes: Sizes, shots: list[int]
) -> dict[str, float]:
    """Largest differences from ``published``, by work; ids must be equal.

    Raises:
        SystemExit: If a variant computes something else; there is nothing to compare then.
    """
    largest = {"forward": 0.0, "generation": 0.0}
    short = replace(sizes, new_tokens=4)
    for count in shots:
        question = make_question(sizes, count)
        for work in largest:
            expected: Tensor | None = None
            for name, variant in variants.items():
                variant.sizes = short
                value = getattr(variant, work)(question)
                variant.sizes = sizes
                expected = value if expected is None else expected
                difference = float((value - expected).abs().max())
                largest[work] = max(largest[work], difference)
                if not difference <= TOLERANCE:
                    raise SystemExit(f"{work}: {name} differs from published by {difference:.3g}")
    return largest


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, with the machine and the settings."""
    torch.set_num_threads(1)
    sizes = SMALL
    variants = build_variants(sizes)
    differences = check_equal(variants, sizes, [min(args.shots), 3])
    print(f"largest differences from published: {differences}", file=sys.stderr)
    load, rows = [os.getloadavg()[0]], []
    jobs = [("forward", count) for count in args.shots] + [("generation", 3)]
    for work, count in jobs:
        question = make_question(sizes, count)
        tasks: dict[str, Callable[[], Any]] = {
            name: partial(getattr(variant, work), question) for name, variant in variants.items()
        }
        results = measure(tasks, args.repeats, args.seconds, summarize=min)
        load.append(os.getloadavg()[0])
        for name, result in results.items():
            rows.append({"work": work, "shots": count, "variant": name} | result)
        times = ", ".join(f"{name} {result['cpu_ms']:.0f}" for name, result in results.items())
        print(f"{work}, {count} shots: {times} ms", file=sys.stderr)
    return {
        "command": " ".join(["python benchmarks/camml.py", *sys.argv[1:]]),
        "machine": machine("cpu", load),
        "settings": {"repeats": args.repeats, "differences": differences},
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
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    for clock, words in (("cpu_ms", "processor time"), ("wall_ms", "wall-clock time")):
        lines += ["", f"**{words.capitalize()} in ms**", ""]
        lines.append("| work | shots | " + " | ".join(variants) + " |")
        lines.append("| --- " + "| ---: " * (len(variants) + 1) + "|")
        for (work, shots), times in _by_job(rows, clock).items():
            base = times[variants[0]]
            cells = [f"{base:.0f}"]
            cells += [f"{times[name]:.0f} ({base / times[name]:.2f}×)" for name in variants[1:]]
            lines.append(f"| {work} | {shots} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_target_table(rows)])


def _by_job(rows: list[dict[str, Any]], clock: str) -> dict[tuple[str, int], dict[str, float]]:
    jobs: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        jobs.setdefault((row["work"], row["shots"]), {})[row["variant"]] = row[clock]
    return jobs


def _target_table(rows: list[dict[str, Any]]) -> list[str]:
    """What was wanted and what is reached, in processor time."""
    jobs = _by_job(rows, "cpu_ms")
    lines = ["| | wanted | reached | +onednn |", "| --- | ---: | ---: | ---: |"]
    for (work, shots, suffix), wanted in TARGETS.items():
        times = jobs[work, shots]
        reached = [
            f"{times['published'] / times[name]:.2f}×" if name in times else "–"
            for name in (f"polyptych{suffix}", f"polyptych+onednn{suffix}")
        ]
        what = f"{work}, {shots} shots{', datastore encoded' if suffix else ''}"
        lines.append(f"| {what} | {wanted:g}× | " + " | ".join(reached) + " |")
    counts = sorted(shots for work, shots in jobs if work == "forward")
    first, last = jobs["forward", counts[0]], jobs["forward", counts[-1]]
    growth = [
        f"{last[name] / first[name]:.2f}" if name in last else "–"
        for name in ("polyptych+cached", "polyptych+onednn+cached")
    ]
    lines.append(
        f"| {counts[-1]} shots over {counts[0]}, datastore encoded | at most {FLAT:g} | "
        + " | ".join(growth)
        + " |"
    )
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 3, 5, 10])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60, help="at most, for each row")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--table", type=Path, help="document with camml:begin and camml:end")
    args = parser.parse_args()
    report = run(args)
    print(table(report))
    if args.json:
        write_json(args.json, report)
    if args.table:
        write_table(args.table, "camml", table(report))


if __name__ == "__main__":
    main()
