"""What training costs: by processes, by images, and by method.

    python benchmarks/training.py --json docs/results/benchmark_training.json

1. Processes: the same steps by one process and by two (torchrun, gloo, one thread each). Efficiency
   is the time of one divided by twice the time of two, by the clock and by processor time (which a
   busy machine does not change). Two runs of different length are subtracted, so that neither start
   nor end is counted.
2. Images: one training step against the number of images of its example. The exponent is that of
   the power law between the two largest numbers: 1 is linear.
3. Methods: a training step with the method over one without, equal weights otherwise.
4. Adapters: the same on a base of LLaVA's shape with LoRA, at 4 images of 576 visual tokens, in
   time and bytes; their modules alone by images; what they add at the shape of a 7B, counted.
5. On paper: a 7B on 8 and 64 GPUs (``scale.py``).
6. Steps in bfloat16 on a CPU: logits where a token is labelled, attention in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import adapter_costs
import scale
import step_costs
from measuring import keep_freed_memory, machine, measure, write_json, write_table
from polyptych.data.collation import Collator
from polyptych.methods.cheetah.model import (
    PolyptychCheetahConfig,
    PolyptychCheetahForConditionalGeneration,
)
from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
from polyptych.schema import ImageBlock, Message, TextBlock
from polyptych.testing import tiny_examples, tiny_processor
from polyptych.training.freezing import select_trainable
from polyptych.training.recipe import Recipe
from polyptych.training.supervised import train

SIDE, PATCH, QUERIES = 112, 14, 16
"""Pixels of an image's side and of a patch's; visual tokens per image."""

PROCESSOR = tiny_processor(
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    tokens_per_image=QUERIES,
    max_length=None,
)

Build = Callable[[int], nn.Module]
"""A model of the given width, with what it trains chosen."""


def parts(width: int) -> dict[str, Any]:
    """Config of a base: 4 layers in each part."""
    tokenizer = PROCESSOR.tokenizer
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    special = {n: getattr(tokenizer, n) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "vision_config": {
            "model_type": "instructblip_vision_model",
            "image_size": SIDE,
            "patch_size": PATCH,
            **sizes,
        },
        "qformer_config": {
            "vocab_size": len(tokenizer),
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            **sizes,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            **special,
            **sizes,
        },
        "num_query_tokens": QUERIES,
        "image_token_id": PROCESSOR.image_token_id,
    }


def sam(guidance: Any, width: int) -> nn.Module:
    """A base whose connector is trained, with or without SAM's guidance."""
    torch.manual_seed(0)
    config = PolyptychSamConfig(guidance=guidance, **parts(width))
    model = PolyptychSamForConditionalGeneration(config).eval()
    select_trainable(model, ("connector",))
    return model


def cheetah(width: int) -> nn.Module:
    """A base whose connector is trained, with VPG-C."""
    torch.manual_seed(0)
    config = PolyptychCheetahConfig(**{**parts(width), "instruction_aware": False})
    model = PolyptychCheetahForConditionalGeneration(config).eval()
    select_trainable(model, ("connector", "vpgc"))
    return model


def plain(width: int) -> nn.Module:
    """Cheetah's base without VPG-C."""
    model: Any = cheetah(width)
    model.vpgc_enabled = False
    model.vpgc.requires_grad_(False)
    return model


VARIANTS: dict[str, Build] = {
    "base": partial(sam, "off"),
    "SAM, released": partial(sam, "released"),
    "SAM, paper": partial(sam, "paper"),
    "VPG-C": cheetah,
}
"""What is measured against the number of images."""

OVERHEADS: dict[str, tuple[Build, Build]] = {
    "SAM, released": (partial(sam, "off"), partial(sam, "released")),
    "SAM, paper": (partial(sam, "off"), partial(sam, "paper")),
    "VPG-C": (plain, cheetah),
}
"""Method -> model without it, model with it. An adapter on another base is one more line here."""


def step(model: Any, batch: dict[str, Any]) -> None:
    """Forward and backward."""
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()


def batch_of(images: int) -> dict[str, Any]:
    """One example: its images and a question whose length does not depend on them."""
    drawn = tiny_examples(1, (images,))[0]
    question = Message("user", (*[ImageBlock()] * images, TextBlock("what is in every picture?")))
    example = replace(drawn, messages=(question, drawn.messages[-1]))
    return dict(Collator(PROCESSOR, training=True)([example]))


def cost_of_images(counts: Sequence[int], width: int, repeats: int) -> list[dict[str, Any]]:
    """Processor time of a step by variant and number of images."""
    models = {name: build(width) for name, build in VARIANTS.items()}
    rows = []
    for images in counts:
        batch = batch_of(images)
        tasks = {name: partial(step, model, batch) for name, model in models.items()}
        for name, result in measure(tasks, repeats, 60.0, summarize=min).items():
            rows.append({"variant": name, "images": images, **result})
    return rows


def exponent(rows: Sequence[dict[str, Any]], variant: str) -> float:
    """The x of time = c * images ** x, between the two largest numbers of images."""
    times = {row["images"]: row["cpu_ms"] for row in rows if row["variant"] == variant}
    few, many = sorted(times)[-2:]
    return math.log(times[many] / times[few]) / math.log(many / few)


def pair(name: str, width: int) -> dict[str, nn.Module]:
    """A method's base and the method on it, with the same weights in what both have."""
    without, method = (build(width) for build in OVERHEADS[name])
    method.load_state_dict(without.state_dict(), strict=False)
    return {"without": without, "with": method}


def overheads(width: int, images: int, repeats: int) -> list[dict[str, Any]]:
    """Processor time with the method over that without."""
    batch, rows = batch_of(images), []
    for name in OVERHEADS:
        models = pair(name, width)
        tasks = {side: partial(step, model, batch) for side, model in models.items()}
        result = measure(tasks, repeats, 60.0, summarize=min)
        times = {side: result[side]["cpu_ms"] for side in models}
        rows.append({"method": name, "images": images, **times})
    return rows


def recipe(steps: int) -> Recipe:
    """Steps of 8 examples."""
    return Recipe(
        trainable=("connector", "language_model"),
        steps=steps,
        global_batch_size=8,
        log_every=steps,
        threads=1,
        tensorboard=False,
    )


def timed(out: Path, steps: int, width: int) -> tuple[float, float]:
    """Seconds by the clock and of this process's processor time."""
    start, start_cpu = time.perf_counter(), time.process_time()
    train(
        recipe(steps),
        out=out,
        model=sam("released", width),
        processor=PROCESSOR,
        train_examples=tiny_examples(32, (4,)),
    )
    return time.perf_counter() - start, time.process_time() - start_cpu


def work(folder: Path, steps: int, width: int) -> None:
    """What each process of :func:`by_processes` does: a short and a long run, subtracted."""
    rank = int(os.environ.get("RANK", "0"))
    timed(folder / "warm", 1, width)
    short, long = timed(folder / "short", 2, width), timed(folder / "long", 2 + steps, width)
    wall, cpu = (b - a for a, b in zip(short, long, strict=True))
    last = json.loads((folder / "long" / "metrics.jsonl").read_text().splitlines()[-1])
    waited = last["waiting_for_data"]
    write_json(folder / f"{rank}.json", {"wall_s": wall, "cpu_s": cpu, "waiting_for_data": waited})


def by_processes(processes: int, steps: int, width: int) -> dict[str, Any]:
    """Time of the same steps, by so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", __file__, "--worker", folder]
        command += ["--steps", str(steps), "--width", str(width)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        each = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]
    return {
        "processes": processes,
        "steps": steps,
        "wall_s": round(max(one["wall_s"] for one in each), 3),
        "cpu_s": round(max(one["cpu_s"] for one in each), 3),
        "waiting_for_data": each[0]["waiting_for_data"],
    }


def adapters(images: Sequence[int], repeats: int) -> dict[str, Any]:
    """All that is measured and counted of the adapters."""
    return {
        "step": adapter_costs.measured(4, repeats),
        "alone": adapter_costs.by_images(images, repeats),
        "7b": adapter_costs.share_of_7b(4),
    }


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "processes": lambda args: [by_processes(n, args.steps, args.width) for n in (1, 2)],
    "images": lambda args: cost_of_images(args.images, args.width, args.repeats),
    "overheads": lambda args: overheads(args.width, 4, args.repeats),
    "adapters": lambda args: adapters(args.images, args.repeats),
    "paper": lambda args: asdict(adapter_costs.counted(scale.Load())),
    "steps": lambda args: step_costs.measured(4, 8, args.repeats),
}
"""What is measured, by the name that ``--parts`` calls it."""


def table(report: dict[str, Any]) -> str:
    """The report in Markdown; only of the parts that it has."""
    said = report["machine"]
    low, high = said["load_average_min_max"]
    lines = [
        f"`{report['command']}`, {said['date']}: {said['cpu']} ({said['cores']} cores), "
        f"load average {low} to {high}; torch {said['torch']}."
    ]
    for part, section in SECTIONS.items():
        if part in report:
            lines += ["", *section(report[part])]
    return "\n".join(lines)


def _process_table(each: Sequence[dict[str, Any]]) -> list[str]:
    one, two = each
    lines = [
        f"| {one['steps']} steps | seconds | processor seconds of a process | waiting for data |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in (one, two):
        name = "1 process" if row["processes"] == 1 else f"{row['processes']} processes"
        lines.append(
            f"| {name} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} | {row['waiting_for_data']:.1%} |"
        )
    cells = [one[clock] / (2 * two[clock]) for clock in ("wall_s", "cpu_s")]
    return [*lines, f"| efficiency | {cells[0]:.0%} | {cells[1]:.0%} | |"]


def _image_table(rows: Sequence[dict[str, Any]], what: str = "ms by images") -> list[str]:
    counts = sorted({row["images"] for row in rows})
    lines = [f"| {what} | {' | '.join(map(str, counts))} | exponent |"]
    lines.append("| --- " + "| ---: " * (len(counts) + 1) + "|")
    for name in dict.fromkeys(row["variant"] for row in rows):
        times = [f"{r['cpu_ms']:.0f}" for r in rows if r["variant"] == name]
        lines.append(f"| {name} | {' | '.join(times)} | {exponent(rows, name):.2f} |")
    return lines


def _overhead_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| method, 4 images | without | with | more |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        more = row["with"] / row["without"] - 1
        lines.append(
            f"| {row['method']} | {row['without']:.0f} ms | {row['with']:.0f} ms | {more:+.1%} |"
        )
    return lines


def _adapter_table(found: dict[str, Any]) -> list[str]:
    without, both = found["step"]
    what = f"a step, {both['images']} × 576 visual tokens"
    lines = [f"| {what} | LoRA alone | with SAM and VPG-C | more |", "| --- | ---: | ---: | ---: |"]
    for name, field in (("processor ms", "cpu_ms"), ("MiB at its peak", "mib")):
        more = both[field] / without[field] - 1
        lines.append(f"| {name} | {without[field]:.0f} | {both[field]:.0f} | {more:+.1%} |")
    share = found["7b"]
    lines.append(f"| FLOPs at 7B, counted | | | {share['flops']:+.2%} |")
    lines.append(f"| bytes at 7B, on paper | | | {share['bytes']:+.1%} |")
    lines.append(f"| the same, layers computed twice | | | {share['bytes_checkpointing']:+.1%} |")
    lines += ["", *_image_table(found["alone"], "the module alone, ms by images"), ""]
    kept = [{**row, "cpu_ms": row["kept_mib"]} for row in found["alone"]]
    return lines + _image_table(kept, "MiB kept for the backward pass, by images")


def _step_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    size = rows[0]
    what = f"{size['rows']} × {size['positions']} positions, vocabulary {size['vocabulary']:,}"
    lines = [f"| {what} | processor ms | MiB beside weights |", "| --- | ---: | ---: |"]
    return lines + [f"| {r['variant']} | {r['cpu_ms']:.0f} | {r['mib']:.0f} |" for r in rows]


SECTIONS: dict[str, Callable[[Any], list[str]]] = {
    "processes": _process_table,
    "images": _image_table,
    "overheads": _overhead_table,
    "adapters": _adapter_table,
    "paper": lambda found: scale.table(scale.Adapters(**found)),
    "steps": _step_table,
}
"""A part's table."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--steps", type=int, default=12, help="that are timed, of 8 examples")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--docs", type=Path, help="rewrite the table of this document")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.worker:
        return work(args.worker, args.steps, args.width)
    keep_freed_memory()
    load = [os.getloadavg()[0]]
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/training.py", *sys.argv[1:]]),
        "settings": {"width": args.width, "image": SIDE, "patch": PATCH, "queries": QUERIES},
        **{part: PARTS[part](args) for part in args.parts},
    }
    report["machine"] = machine("cpu", [*load, os.getloadavg()[0]])
    text = table(report)
    print(text)
    if args.json:
        write_json(args.json, report)
    if args.docs:
        write_table(args.docs, "benchmark-training", text)
    return None


if __name__ == "__main__":
    main()
