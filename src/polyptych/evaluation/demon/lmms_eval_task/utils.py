"""What lmms-eval calls for the tasks of DEMON. Needs polyptych installed beside lmms-eval.

A document is a line of ``data/TASK.jsonl``: ``id``, ``task``, ``prompt`` (text with ``<image>``
where an image stands), ``images`` (paths in that order), ``answer`` and ``choices``.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from polyptych.evaluation.demon import fixed, released
from polyptych.evaluation.demon.catalog import DATASETS

IMAGE = "<image>"


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The images, in the order of their places in the prompt."""
    return [Image.open(path).convert("RGB") for path in doc["images"]]


def doc_to_text(
    doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None
) -> str:
    """The prompt, with ``<image>`` at each image's place."""
    return str(doc["prompt"])


def doc_to_messages(
    doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """One user message with texts and images in reading order, for chat models."""
    texts = doc["prompt"].split(IMAGE)
    content: list[dict[str, Any]] = []
    for text, image in zip(texts, [*doc_to_visual(doc), None], strict=True):
        if text:
            content.append({"type": "text", "text": text})
        if image is not None:
            content.append({"type": "image", "url": image})
    return [{"role": "user", "content": content}]


def doc_to_target(doc: dict[str, Any]) -> str:
    """The right answer."""
    return str(doc["answer"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Both flavours of one answer, in percent.

    An answer at which the published scorer would stop counts 0 in ``demon_released``.
    """
    dataset, answer = DATASETS[doc["task"]], results[0]
    try:
        as_released = released.score_item(
            dataset.released_rule, answer, doc["answer"], doc["choices"]
        )
    except released.ReleasedCrash:
        as_released = 0.0
    return {
        "demon_released": 100 * as_released,
        "demon_fixed": 100 * fixed.score_item(dataset.rule, answer, doc["answer"], doc["choices"]),
    }
