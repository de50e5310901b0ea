"""Pairs, a saved model and short tunings that the tests of preference tuning share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyptych.schema import PreferencePair
from polyptych.testing import tiny_examples, tiny_llava, tiny_llava_processor
from polyptych.training.preference import tune
from polyptych.training.preference_settings import PreferenceSettings

ANSWERS = ("a red ball.", "the dog sleeps under the tree.", "mia runs.", "a tree.")


def pairs_of(examples: Any) -> list[PreferencePair]:
    """Two different answers to each example's question."""
    return [
        PreferencePair(
            e.id, e.prompt, ANSWERS[i % 4], ANSWERS[(i + 1) % 4], e.images, shots=e.shots
        )
        for i, e in enumerate(examples)
    ]


def small_settings(**changes: Any) -> PreferenceSettings:
    """Three pairs a step, six steps, a rate that is felt, every step logged."""
    values: dict[str, Any] = {
        "learning_rate": 1e-2,
        "schedule": "constant",
        "warmup_share": 0.0,
        "lora_rank": 4,
        "lora_alpha": 8,
        "global_batch_size": 3,
        "steps": 6,
        "log_every": 1,
        "save_every": None,
    }
    return PreferenceSettings(**{**values, **changes})


def saved_llava(folder: Path, **config: Any) -> Path:
    """A tiny LLaVA on disk."""
    tiny_llava(**config).save_pretrained(folder)
    tiny_llava_processor().save_pretrained(folder)
    return folder


def run(model: Path, out: Path, settings: PreferenceSettings | None = None, **kwargs: Any) -> Path:
    """Tune on seven pairs with 1 to 3 images, or none."""
    pairs = kwargs.pop("pairs", None) or pairs_of(tiny_examples(7))
    return tune(pairs, model, out, settings or small_settings(), **kwargs)


def logged(out: Path, name: str = "loss") -> list[float]:
    """One number of every line."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines]
