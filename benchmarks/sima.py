"""How fast and how large a tuning step of SIMA is: ``python benchmarks/sima.py -h``.

Gradients of the adapters for one batch of pairs, on one thread, by

published  :mod:`published_sima`: four passes over two rows a pair, images eight times, all logits
trl        TRL's own DPOTrainer over transformers' LLaVA of the same weights: two passes over two
           rows a pair, images twice in each
polyptych  this package's trainer: one pass over one row a pair, images once, logits where labels
           are, the reference read from memory (computed once for all epochs; its time is given)

at the toy sizes that the published loop was timed at, at moderate sizes, and with rows of 1,024
positions. All take turns in one process, so that other load hits them alike; the best turn counts.
Memory is what the CPU allocator hands out in one step beyond weights and batch, at its peak. Before
anything is timed, all must agree in loss and gradients. The loop before the tuning is measured by
``sima_loop.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration
from trl import DPOConfig, DPOTrainer

from measuring import machine, measure, peak_bytes, write_json, write_table
from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
from polyptych.schema import IGNORE_INDEX
from polyptych.testing import tiny_llava_processor
from polyptych.training.preference_data import PairAnswers, PreferenceCollator, branching_rows
from polyptych.training.preference_settings import PreferenceSettings
from polyptych.training.preference_trainer import PreferenceTracker, PreferenceTrainer
from polyptych.training.run_folder import RunFolder
from published_sima import PublishedTrainer

TOLERANCE = 1e-4
"""Largest difference of loss, and of gradients as a share of the largest one."""

TARGETS = {"published": 2.0, "trl": 1.3}
"""How many times faster than these a step was wanted."""

MEMORY_TARGET = 0.7
"""Share of TRL's peak that a step with rows of 1,024 positions was to stay under."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes and a batch of pairs."""

    vision: dict[str, int]
    language: dict[str, int]
    pairs: int
    prompt: int
    """Words of the prompt, beside the image."""
    answer: int
    """Tokens of each answer."""

    @property
    def patches(self) -> int:
        """Visual tokens of the one image of a pair."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2

    @property
    def row(self) -> int:
        """Positions of a prompt with one answer."""
        return self.patches + self.prompt + self.answer


def _vision(width: int, layers: int, side: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": 14,
    }


def _language(width: int, layers: int, words: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "vocab_size": words,
        "max_position_embeddings": 2048,
    }


SIZES = {
    "toy": Sizes(_vision(32, 3, 28), _language(64, 2, 45), pairs=4, prompt=12, answer=8),
    "moderate": Sizes(_vision(256, 6, 224), _language(256, 4, 8000), pairs=2, prompt=44, answer=60),
    "1,024 positions": Sizes(
        _vision(64, 2, 336), _language(256, 4, 8000), pairs=1, prompt=288, answer=160
    ),
}
"""``toy`` is the published loop's at which TRL was timed, too; the last has 576 visual tokens."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One batch: prompts with one image each, and two answers behind them."""

    prompt_ids: Tensor  # (B, patches + prompt)
    chosen: Tensor  # (B, answer)
    rejected: Tensor
    pixel_values: Tensor  # (B, 3, S, S)


def make_inputs(sizes: Sizes, image_token_id: int) -> Inputs:
    """Random pixels and ids."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> Tensor:
        words = sizes.language["vocab_size"] - 1
        return torch.randint(3, words, (sizes.pairs, length), generator=generator)

    side = sizes.vision["image_size"]
    image = torch.full((sizes.pairs, sizes.patches), image_token_id)
    prompt = ids(sizes.prompt)
    return Inputs(
        torch.cat([prompt[:, :4], image, prompt[:, 4:]], dim=1),
        ids(sizes.answer),
        ids(sizes.answer),
        torch.randn(sizes.pairs, 3, side, side, generator=generator),
    )


def build_models(sizes: Sizes) -> tuple[Any, Any]:
    """Our LLaVA with random weights, and transformers' with the same."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"model_type": "clip_vision_model", **sizes.vision}
    language = {"model_type": "llama", **ids, **sizes.language}
    image_token_id = sizes.language["vocab_size"] - 1
    ours = PolyptychLlavaForConditionalGeneration(
        PolyptychLlavaConfig(vision, language, image_token_id=image_token_id)
    )
    theirs = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=language, image_token_id=image_token_id)
    )
    names = (
        ("vision_encoder.model.", "model.vision_tower."),
        ("connector.layers.0.", "model.multi_modal_projector.linear_1."),
        ("connector.layers.2.", "model.multi_modal_projector.linear_2."),
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
    )
    weights = {}
    for name, value in ours.state_dict().items():
        old, new = next((o, n) for o, n in names if name.startswith(o))
        weights[new + name.removeprefix(old)] = value.clone()
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    # Transformers' tower keeps what comes behind the layer that is read.
    assert not unexpected and all(name.startswith("model.vision_tower.") for name in missing)
    return ours.eval(), theirs.eval()


class Ours:
    """This package's trainer."""

    def __init__(self, model: Any, inputs: Inputs, folder: Path) -> None:
        settings = PreferenceSettings(lora_rank=8, lora_alpha=16, steps=1)
        processor = tiny_llava_processor()
        self.trainer = PreferenceTrainer(
            settings,
            model,
            processor,
            PreferenceCollator(processor, []),
            [0],
            RunFolder(folder),
            PreferenceTracker(folder / "metrics.jsonl", steps=1, flush_at=()),
            DPOConfig(**_arguments(folder)),
        )
        self.learner: PeftModel = self.trainer.learner
        _draw_adapters(self.learner)
        prompts = {
            "input_ids": inputs.prompt_ids,
            "attention_mask": torch.ones_like(inputs.prompt_ids),
            "pixel_values": inputs.pixel_values,
            "image_counts": torch.ones(len(inputs.prompt_ids), dtype=torch.long),
        }
        answers = [
            PairAnswers(chosen.tolist(), rejected.tolist())
            for chosen, rejected in zip(inputs.chosen, inputs.rejected, strict=True)
        ]
        self.batch = branching_rows(prompts, answers, 0)
        self.batch["pair"] = torch.zeros(len(answers), dtype=torch.long)
        begin = time.process_time()
        with torch.no_grad(), self.learner.disable_adapter():
            reference = self.trainer.log_probs(self.learner, self.batch)
        self.reference_ms = 1e3 * (time.process_time() - begin)
        self.batch["reference_log_probs"] = torch.stack(reference, dim=1)

    def step(self) -> Tensor:
        """The loss, with its gradients in the adapters."""
        self.learner.zero_grad()
        loss = self.trainer.compute_loss(self.learner, self.batch)
        loss.backward()
        return loss.detach()


class Published:
    """The transcription, on the adapters of ours."""

    def __init__(self, learner: PeftModel, inputs: Inputs) -> None:
        self.learner, self.trainer = learner, PublishedTrainer(learner)
        self.pixels = inputs.pixel_values
        self.rows = {}
        for side in ("chosen", "rejected"):
            answer = getattr(inputs, side)
            prompt = torch.full_like(inputs.prompt_ids, IGNORE_INDEX)
            self.rows[side] = {
                "input_ids": torch.cat([inputs.prompt_ids, answer], dim=1),
                "labels": torch.cat([prompt, answer], dim=1),
            }

    def step(self) -> Tensor:
        """The loss, with its gradients in the adapters."""
        self.learner.zero_grad()
        loss = self.trainer.loss(self.rows, self.pixels)
        loss.backward()
        return loss.detach()


class Trl:
    """TRL's own trainer, with the adapters of ours copied."""

    def __init__(self, model: Any, inputs: Inputs, ours: Any, folder: Path) -> None:
        text = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}  # stands for a data set
        target = LoraConfig(
            r=8, lora_alpha=16, target_modules=f".*{ours.peft_config['default'].target_modules}"
        )
        self.trainer = DPOTrainer(
            model,
            args=DPOConfig(**_arguments(folder)),
            train_dataset=Dataset.from_dict(text),
            processing_class=tiny_llava_processor().tokenizer,
            peft_config=target,
        )
        self.learner = self.trainer.model
        adapters = {_bare(n): p for n, p in ours.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in self.learner.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(adapters.pop(_bare(name)))
        assert not adapters
        both = [
            torch.cat([inputs.prompt_ids, answer], 1) for answer in (inputs.chosen, inputs.rejected)
        ]
        ids = torch.cat(both)
        completion = torch.zeros_like(ids)
        completion[:, inputs.prompt_ids.shape[1] :] = 1
        self.batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "completion_mask": completion,
            "pixel_values": inputs.pixel_values.repeat(2, 1, 1, 1),
        }

    def step(self) -> Tensor:
        """The loss, with its gradients in the adapters."""
        self.learner.zero_grad()
        loss = self.trainer.compute_loss(self.learner, dict(self.batch))
        loss.backward()
        return loss.detach()


def _arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }


def _draw_adapters(model: PeftModel) -> None:
    """Random ones, so that policy and reference differ and every gradient says something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)


def _bare(name: str) -> str:
    """A parameter's name from its decoder layer on: the same in both models."""
    return name[name.index("layers.") :]


def _gradients(model: Any) -> dict[str, Tensor]:
    found = ((_bare(n), p.grad) for n, p in model.named_parameters() if p.requires_grad)
    return {name: grad.clone() for name, grad in found if grad is not None}


def check_agreement(variants: dict[str, Any]) -> dict[str, float]:
    """Loss and gradients of all against those of ours, which is last; the largest differences."""
    seen = {name: (each.step(), _gradients(each.learner)) for name, each in variants.items()}
    loss, gradients = seen["polyptych"]
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    worst = {}
    for name, (other, others) in seen.items():
        assert others.keys() == gradients.keys()
        apart = max(float((others[n] - g).abs().max()) / scale for n, g in gradients.items())
        worst[name] = max(apart, float((other - loss).abs()))
        if worst[name] > TOLERANCE:
            raise SystemExit(f"{name} and polyptych differ by {worst[name]:.1e}")
    return worst


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    torch.set_num_threads(1)
    load, rows = [os.getloadavg()[0]], []
    for name in args.sizes:
        sizes = SIZES[name]
        own, theirs = build_models(sizes)
        inputs = make_inputs(sizes, own.config.image_token_id)
        with tempfile.TemporaryDirectory() as folder:
            ours = Ours(own, inputs, Path(folder))
            variants: dict[str, Any] = {
                "published": Published(ours.learner, inputs),
                "trl": Trl(theirs, inputs, ours.learner, Path(folder)),
                "polyptych": ours,
            }
            worst = check_agreement(variants)
            tasks = {variant: each.step for variant, each in variants.items()}
            times = measure(tasks, args.repeats, args.seconds, summarize=min)
            for variant, each in variants.items():
                each.learner.zero_grad()
                row = {"sizes": name, "variant": variant, "positions": sizes.row, **times[variant]}
                row |= {"peak_mib": round(peak_bytes(each.step) / 2**20, 2)}
                row |= {"difference": worst[variant]}
                if variant == "polyptych":
                    row["reference_ms"] = round(ours.reference_ms, 2)
                rows.append(row)
        load.append(os.getloadavg()[0])
    command = " ".join(["python", "benchmarks/sima.py", *sys.argv[1:]])
    settings = {"repeats": args.repeats, "sizes": {n: asdict(SIZES[n]) for n in args.sizes}}
    return {"command": command, "machine": machine("cpu", load), "settings": settings, "rows": rows}


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    facts = report["machine"]
    low, high = facts["load_average_min_max"]
    lines = [
        f"`{report['command']}`, {facts['date']}: {facts['cpu']} ({facts['cpu_capability']}, "
        f"{facts['cores']} cores), load average {low} to {high} while measuring; torch "
        f"{facts['torch']}, transformers {facts['transformers']}, float32, 1 thread; best of up to "
        f"{report['settings']['repeats']} turns.",
        "",
        "| sizes | step | processor ms | wall ms | faster (proc.) | (wall) | peak MiB | of it |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        ours = next(
            r for r in report["rows"] if (r["sizes"], r["variant"]) == (row["sizes"], "polyptych")
        )
        cells = [
            row["sizes"],
            row["variant"],
            f"{row['cpu_ms']:.1f}",
            f"{row['wall_ms']:.1f}",
            *(f"{row[clock] / ours[clock]:.2f}×" for clock in ("cpu_ms", "wall_ms")),
            f"{row['peak_mib']:.1f}",
            f"{ours['peak_mib'] / row['peak_mib']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    wanted = ", ".join(f"{factor:g}× {name}" for name, factor in TARGETS.items())
    lines += [
        "",
        f"“Faster”: how many times polyptych is faster than the row; “of it”: polyptych's peak as "
        f"a share of the row's. Wanted: {wanted}, and at most {MEMORY_TARGET:.0%} of TRL's peak at "
        "1,024 positions.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=40.0, help="limit of one comparison")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--docs", type=Path, help="rewrite the table of this document")
    args = parser.parse_args()
    report = run(args)
    text = table(report)
    print(text)
    if args.json:
        write_json(args.json, report)
    if args.docs:
        write_table(args.docs, "benchmark-sima", text)


if __name__ == "__main__":
    main()
