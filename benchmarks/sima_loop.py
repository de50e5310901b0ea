"""How fast SIMA's answers and verdicts are here: ``python benchmarks/sima_loop.py -h``.

Two things are measured on one thread, at the sizes of a toy and of a small model:

candidates  a greedy and a sampled answer of 32 tokens to each prompt with its image
verdicts    which of the two answers is better, with the full critic prompt and the image

by these variants:

published    the released loop, transcribed: prompts one by one, images and prompt read for each
             answer anew, answers written by transformers; the critic's prompt read anew for each
             pair, one order, and its verdict written in words (32 tokens here; the
             demonstrations' take about 50)
one by one   verdicts only: log-odds instead of words, in both orders, each row read alone
polyptych    batches of 16; one reading of image and prompt for both answers; the critic's fixed
             part read once, image and question once for both orders
+onednn      the same with linear layers multiplied by oneDNN (``polyptych.models.onednn``)

The last three must agree in every margin, and all in every greedy answer, before anything is timed.
All run in one process and take turns. The best turn is reported, in processor and in wall-clock
time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measuring import machine, measure, write_json, write_table
from polyptych.evaluation.local_model import model_inputs
from polyptych.methods.sima.critic import LikelihoodJudge
from polyptych.methods.sima.critic_rows import Contest, CriticRows
from polyptych.methods.sima.prompts import CriticFormat
from polyptych.methods.sima.records import Prompt, Responses, as_prompts
from polyptych.methods.sima.responses import SamplingSettings, draw_candidates
from polyptych.models import onednn
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.models.onednn import use_onednn
from polyptych.schema import Example
from polyptych.testing import tiny_examples, tiny_llava_processor

BATCH = 16
NEW_TOKENS = 32
ONE_BY_ONE = 4
"""Prompts that the slow variants handle; their rate does not depend on it."""
TOLERANCE = 1e-4
WANTED = 5.0
"""How many times faster than ``published`` both should be."""


@dataclass(frozen=True)
class Sizes:
    """A LLaVA of random weights."""

    vision: dict[str, int]
    language: dict[str, int]


SIZES = {
    "toy": Sizes(
        vision={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        language={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    ),
    "small": Sizes(
        vision={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": 112,
            "patch_size": 14,
        },
        language={
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
    ),
}


def build(sizes: Sizes) -> tuple[Any, Any]:
    """Model and processor; nothing ends an answer before its 32 tokens."""
    torch.manual_seed(0)
    side, patch = sizes.vision["image_size"], sizes.vision["patch_size"]
    processor = tiny_llava_processor(tokens_per_image=(side // patch) ** 2, max_length=None)
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    tokenizer = processor.tokenizer
    config = PolyptychLlavaConfig(
        vision_config={"model_type": "clip_vision_model", **sizes.vision},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "pad_token_id": tokenizer.pad_token_id,
            **sizes.language,
        },
        image_token_id=processor.image_token_id,
    )
    model = PolyptychLlavaForConditionalGeneration(config).eval()
    for part in (model, model.language_model):
        part.generation_config.eos_token_id = None
    return model, processor


class Loop:
    """Both kinds of work, by every variant, over the same prompts."""

    def __init__(self, sizes: Sizes, faster: bool = False) -> None:
        self.model, self.processor = build(sizes)
        if faster:
            use_onednn(self.model)
        examples = tiny_examples(BATCH, image_counts=(1,))
        self.prompts: list[Prompt] = list(as_prompts(examples))
        self.settings = SamplingSettings(samples=1, max_new_tokens=NEW_TOKENS)
        texts = ("a red ball. the dog sleeps under the tree.", "the ball runs. a tree.")
        self.contests = [Contest(Responses(p, texts, 0), (1,)) for p in self.prompts]
        rows = CriticRows(CriticFormat())
        self.judge = LikelihoodJudge(self.model, self.processor, rows)
        self.alone = LikelihoodJudge(self.model, self.processor, rows)
        released = CriticFormat(released_order=True)
        self.published_rows = CriticRows(released, both_orders=False)

    @torch.inference_mode()
    def _published_answer(self, example: Example, **settings: Any) -> str:
        """By transformers' ``generate`` of the language model, whose cache holds the images."""
        inputs, model = model_inputs(self.model, self.processor, [example]), self.model
        images = model.encode_images(inputs["pixel_values"], image_counts=inputs["image_counts"])
        visual = inputs["input_ids"] == model.config.image_token_id
        embeds = model._embed(inputs["input_ids"], visual)
        ids = model.language_model.generate(
            inputs_embeds=model._splice(embeds, visual, images, inputs["image_counts"]),
            attention_mask=inputs["attention_mask"],
            pad_token_id=self.processor.pad_token_id,
            suppress_tokens=model.generation_config.suppress_tokens,
            **settings,
        )
        return self.processor.decode_answers(ids, 0)[0]

    def published_candidates(self, prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
        """Two calls per prompt."""
        greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        sampled = {**greedy, "do_sample": True, "temperature": 0.8, "top_p": 0.9}
        return [
            (
                self._published_answer(p.example, **greedy),
                self._published_answer(p.example, **sampled),
            )
            for p in prompts
        ]

    def candidates(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
        """One batch."""
        examples = [prompt.example for prompt in prompts]
        return draw_candidates(
            self.model, self.processor, examples, range(len(prompts)), self.settings
        )

    def published_verdicts(self, contests: Sequence[Contest]) -> list[str]:
        """One text per pair."""
        rows = [self.published_rows.examples(contest, 1)[0] for contest in contests]
        return [
            self._published_answer(row, max_new_tokens=NEW_TOKENS, do_sample=False) for row in rows
        ]

    def verdicts_one_by_one(self, contests: Sequence[Contest]) -> list[float]:
        """Margins; every row is a batch of its own and nothing is kept."""
        margins = []
        for contest in contests:
            rows = self.alone.rows.examples(contest, 1)
            signed = [sign * self._log_odds(row) for row, sign in zip(rows, (1, -1), strict=True)]
            margins.append(sum(signed) / 2)
        return margins

    @torch.inference_mode()
    def _log_odds(self, example: Example) -> float:
        inputs = model_inputs(self.model, self.processor, [example])
        forced = torch.tensor([self.alone.forced])
        for name, more in (("input_ids", forced), ("attention_mask", torch.ones_like(forced))):
            inputs[name] = torch.cat([inputs[name], more], dim=1)
        first, second = self.alone.verdicts
        logits = self.model(**inputs, logits_to_keep=1).logits[0, -1]
        return float(logits[first] - logits[second])

    def verdicts(self, contests: Sequence[Contest]) -> list[float]:
        """Margins of one batch; the fixed part is known from the turn before."""
        found = self.judge.compare(contests)
        return [c.margin for (c,) in found if c is not None and c.margin is not None]


def check_equal(loop: Loop) -> float:
    """Largest difference of margins.

    Raises:
        SystemExit: If variants compute something else; there is nothing to compare then.
    """
    few = loop.prompts[:ONE_BY_ONE]
    greedy = [texts[0] for texts in loop.candidates(loop.prompts)][:ONE_BY_ONE]
    if greedy != [texts[0] for texts in loop.published_candidates(few)]:
        raise SystemExit("greedy answers differ")
    together = loop.verdicts(loop.contests)[:ONE_BY_ONE]
    alone = loop.verdicts_one_by_one(loop.contests[:ONE_BY_ONE])
    difference = max(abs(a - b) for a, b in zip(together, alone, strict=True))
    if not difference <= TOLERANCE:
        raise SystemExit(f"margins differ by {difference:.3g}")
    return difference


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, with the machine and the settings."""
    torch.set_num_threads(1)
    load, rows, differences = [os.getloadavg()[0]], [], {}
    for name in args.sizes:
        loop = Loop(SIZES[name])
        differences[name] = check_equal(loop)
        faster = Loop(SIZES[name], faster=True) if onednn.is_available() else None
        few_prompts, few_contests = loop.prompts[:ONE_BY_ONE], loop.contests[:ONE_BY_ONE]
        works: dict[str, dict[str, tuple[int, Callable[[], Any]]]] = {
            "candidates": {
                "published": (2 * ONE_BY_ONE, partial(loop.published_candidates, few_prompts)),
                "polyptych": (2 * BATCH, partial(loop.candidates, loop.prompts)),
            },
            "verdicts": {
                "published": (ONE_BY_ONE, partial(loop.published_verdicts, few_contests)),
                "one by one": (ONE_BY_ONE, partial(loop.verdicts_one_by_one, few_contests)),
                "polyptych": (BATCH, partial(loop.verdicts, loop.contests)),
            },
        }
        if faster is not None:
            check_equal(faster)
            works["candidates"]["polyptych+onednn"] = (
                2 * BATCH,
                partial(faster.candidates, faster.prompts),
            )
            works["verdicts"]["polyptych+onednn"] = (
                BATCH,
                partial(faster.verdicts, faster.contests),
            )
        for work, variants in works.items():
            tasks = {variant: task for variant, (_, task) in variants.items()}
            results = measure(tasks, args.repeats, args.seconds, summarize=min)
            load.append(os.getloadavg()[0])
            for variant, result in results.items():
                count = variants[variant][0]
                rates = {
                    f"per_{clock}_second": round(1e3 * count / result[f"{clock}_ms"], 2)
                    for clock in ("cpu", "wall")
                }
                rows.append(
                    {"size": name, "work": work, "variant": variant, "count": count}
                    | rates
                    | result
                )
                print(f"{name} {work} {variant}: {rates}", file=sys.stderr)
    return {
        "command": " ".join(["python benchmarks/sima_loop.py", *sys.argv[1:]]),
        "machine": machine("cpu", load),
        "settings": {
            "repeats": args.repeats,
            "batch": BATCH,
            "new_tokens": NEW_TOKENS,
            "differences": differences,
        },
        "rows": rows,
    }


def table(report: dict[str, Any]) -> str:
    """The results as Markdown: per second, and how many times as many as ``published``."""
    facts = report["machine"]
    low, high = facts["load_average_min_max"]
    lines = [
        f"`{report['command']}`, {facts['date']}: {facts['cpu']} ({facts['cores']} cores), load "
        f"average {low} to {high} while measuring; torch {facts['torch']}, transformers "
        f"{facts['transformers']}, float32, 1 thread; best of up to "
        f"{report['settings']['repeats']} turns; wanted: {WANTED:g}× published.",
        "",
        "| size | work | variant | per second of processor time | per second |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in report["rows"]:
        base = first.setdefault((row["size"], row["work"]), row)
        cells = [
            f"{row[clock]:.1f} ({row[clock] / base[clock]:.1f}×)"
            for clock in ("per_cpu_second", "per_wall_second")
        ]
        lines.append(f"| {row['size']} | {row['work']} | {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one comparison")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--docs", type=Path, help="rewrite the table of this document")
    args = parser.parse_args()
    report = run(args)
    text = table(report)
    print(text)
    if args.json:
        write_json(args.json, report)
    if args.docs:
        write_table(args.docs, "benchmark-sima-loop", text)


if __name__ == "__main__":
    main()
