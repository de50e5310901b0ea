"""The families of transformers' vision-language models that methods can ride on: a line each.

What a family does not say here, its config and its classes say: the decoder's layers, the table of
embeddings and the finished visual tokens are reached by the same expressions in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyptych.errors import PolyptychError

Grouping = Literal["entry", "run", "marker"]


@dataclass(frozen=True, slots=True)
class Family:
    """What has to be known of a family beyond its config."""

    grouping: Grouping
    """Which visual tokens are one image: an ``entry`` of the vision output, an unbroken ``run`` of
    placeholders (all tiles of the image), or all runs up to one behind a ``marker``."""
    processor: str
    """Its processor class in transformers."""
    prompt_end: str
    """What the chat template ends a prompt with: there the model begins to answer."""
    end_marker: str | None = None
    """Token before an image's last run, where ``grouping`` is ``marker``."""
    depth: float = 0.5
    """Share of the decoder's layers below the default layer k of VPG-C."""


_CHATML = "<|im_start|>assistant\n"

FAMILIES: dict[str, Family] = {
    "llava": Family("entry", "LlavaProcessor", "ASSISTANT:"),
    "llava_onevision": Family("entry", "LlavaOnevisionProcessor", _CHATML),
    "qwen2_vl": Family("entry", "Qwen2VLProcessor", _CHATML),
    "qwen2_5_vl": Family("entry", "Qwen2_5_VLProcessor", _CHATML),
    "qwen3_vl": Family("entry", "Qwen3VLProcessor", _CHATML),
    "internvl": Family("run", "InternVLProcessor", _CHATML),
    "idefics3": Family("marker", "Idefics3Processor", "Assistant:", "<global-img>"),
    "smolvlm": Family("marker", "SmolVLMProcessor", "Assistant:", "<global-img>"),
    "gemma3": Family("run", "Gemma3Processor", "<start_of_turn>model\n"),
}
"""By ``model_type``. Entry and run differ where two images stand side by side."""


def family_of(model_type: str | None) -> Family:
    """The family of a model's ``model_type``.

    Raises:
        PolyptychError: If it is not known; says what would have to be added.
    """
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise PolyptychError(
            f"a base of type {model_type!r} is not known; known: {', '.join(FAMILIES)}. To "
            "add it: one Family(grouping, processor, prompt_end) in polyptych.adapters.families"
        )
    return family
