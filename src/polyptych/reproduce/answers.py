"""Answering a set and judging the answers: every metric, its groups, and the items behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyptych.data.collation import Collator
from polyptych.data.records import read_records
from polyptych.evaluation.scorers import Scorer, estimate, measure
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.ranking import prefer
from polyptych.reproduce.workshop import ANSWER_TOKENS, GroupBy, Run, Workshop
from polyptych.schema import Example, Prediction
from polyptych.vision.feature_cache import FeatureCache, encoder_fingerprint

BATCH = 64

Items = dict[str, dict[str, float]]
"""Metric -> id -> value."""


def feature_cache(shop: Workshop, model: Any, processor: PolyptychProcessor) -> FeatureCache:
    """The workshop's cache, checked against the model's encoder."""
    fingerprint = encoder_fingerprint(model.vision_encoder, processor.image_processor)
    return FeatureCache(shop.features, fingerprint)


def cache_features(
    shop: Workshop, model: Any, processor: PolyptychProcessor, paths: Iterable[Path]
) -> None:
    """Encode every picture once, before several runs read the cache at the same time."""
    cache = feature_cache(shop, model, processor)
    for path in paths:
        refs = (ref for example in read_records(path) for ref in example.images)
        cache.fill(refs, model.vision_encoder, processor.pixels)


def answer_all(
    shop: Workshop,
    model: Any,
    processor: PolyptychProcessor,
    split: str,
    run: Run | None = None,
) -> tuple[dict[str, Any], dict[str, Items]]:
    """Answer one split of every task; returns what the record holds, and the items.

    Without a run, the tasks' own sets are answered.
    """
    # A processor that makes batches of its own, as of a base of transformers, reads pictures.
    own = hasattr(processor, "collate")
    features = None if own else feature_cache(shop, model, processor)
    record, items = {}, {}

    def respond(task: str, examples: Sequence[Example]) -> list[Prediction]:
        if task in shop.ranked:
            return prefer(model, processor, examples, features)
        return answer(model, processor, examples, features, shop.answer_tokens)

    for task in shop.tasks:
        examples = (
            shop.asked(run, task, split)
            if run is not None
            else list(read_records(shop.data[f"{task}-{split}"]))
        )
        judges = shop.scorers[task]
        said = respond(task, examples)
        record[task], items[task] = judge(examples, said, judges, shop.groups(task))
        record[task]["controls"] = {
            name: judge(changed, said, judges, {})[0]
            for name, change in shop.controls(task).items()
            for changed in [change(examples)]
            for said in [respond(task, changed)]
        }
    return record, items


def answer(
    model: Any,
    processor: PolyptychProcessor,
    examples: Sequence[Example],
    features: FeatureCache | None,
    max_new_tokens: int = ANSWER_TOKENS,
) -> list[Prediction]:
    """Greedy answers."""
    collate = Collator(processor, training=False, features=features)
    predictions = []
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        batch = collate(part)
        with torch.inference_mode():
            sequences = model.eval().generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=processor.pad_token_id,
            )
        texts = processor.decode_answers(sequences, batch["input_ids"].shape[1])
        predictions += [
            Prediction(e.id, text, e.references) for e, text in zip(part, texts, strict=True)
        ]
    return predictions


def judge(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    scorers: Sequence[Scorer],
    groups: Mapping[str, GroupBy],
) -> tuple[dict[str, Any], Items]:
    """Every metric over all examples and within groups, and each item's values."""
    scores = [estimate(m, resamples=200) for m in measure(scorers, examples, predictions)]
    items = {score.name: dict(score.per_item) for score in scores if score.per_item is not None}
    record: dict[str, Any] = {score.name: score.value for score in scores}
    record["examples"] = len(examples)
    for name, key in groups.items():
        record[name] = _by(examples, items, key)
    return record, items


def _by(examples: Sequence[Example], items: Items, key: GroupBy) -> dict[str, dict[str, float]]:
    """Means of every item metric within groups of examples."""
    groups = defaultdict(list)
    for example in examples:
        groups[str(key(example))].append(example.id)
    return {
        group: {"count": len(ids)}
        | {
            name: float(np.mean([values[i] for i in ids if i in values] or [np.nan]))
            for name, values in items.items()
        }
        for group, ids in sorted(groups.items())
    }
