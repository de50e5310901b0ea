"""Multimodal language models that read several images together.

Public names are imported on first use: ``import polyptych`` loads neither torch nor transformers.
The models are known to transformers' Auto classes all the same (see
:mod:`polyptych._registration`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from polyptych import _registration

__version__ = "0.1.0"

if TYPE_CHECKING:
    from polyptych.adapters.adapt import adapt
    from polyptych.adapters.camml import Camml
    from polyptych.adapters.sam import Sam
    from polyptych.adapters.vpgc import VpgC
    from polyptych.data.collation import Collator
    from polyptych.data.records import read_records, write_records
    from polyptych.errors import PolyptychError
    from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
    from polyptych.models.blip2 import PolyptychBlip2Config, PolyptychBlip2ForConditionalGeneration
    from polyptych.models.checkpoint import load_model
    from polyptych.models.llava import PolyptychLlavaConfig, PolyptychLlavaForConditionalGeneration
    from polyptych.models.processor import PolyptychProcessor
    from polyptych.schema import (
        Batch,
        Example,
        ImageBlock,
        ImageRef,
        Message,
        Prediction,
        PreferencePair,
        Score,
        TextBlock,
    )

_HOMES = {
    "Batch": "schema",
    "Camml": "adapters.camml",
    "Collator": "data.collation",
    "Example": "schema",
    "ImageBlock": "schema",
    "ImageRef": "schema",
    "Message": "schema",
    "PolyptychBlip2Config": "models.blip2",
    "PolyptychBlip2ForConditionalGeneration": "models.blip2",
    "PolyptychError": "errors",
    "PolyptychLlavaConfig": "models.llava",
    "PolyptychLlavaForConditionalGeneration": "models.llava",
    "PolyptychProcessor": "models.processor",
    "PolyptychSamConfig": "methods.sam.model",
    "PolyptychSamForConditionalGeneration": "methods.sam.model",
    "Prediction": "schema",
    "PreferencePair": "schema",
    "Sam": "adapters.sam",
    "Score": "schema",
    "TextBlock": "schema",
    "VpgC": "adapters.vpgc",
    "adapt": "adapters.adapt",
    "load_model": "models.checkpoint",
    "read_records": "data.records",
    "write_records": "data.records",
}

__all__ = [
    "Batch",
    "Camml",
    "Collator",
    "Example",
    "ImageBlock",
    "ImageRef",
    "Message",
    "PolyptychBlip2Config",
    "PolyptychBlip2ForConditionalGeneration",
    "PolyptychError",
    "PolyptychLlavaConfig",
    "PolyptychLlavaForConditionalGeneration",
    "PolyptychProcessor",
    "PolyptychSamConfig",
    "PolyptychSamForConditionalGeneration",
    "Prediction",
    "PreferencePair",
    "Sam",
    "Score",
    "TextBlock",
    "VpgC",
    "adapt",
    "load_model",
    "read_records",
    "write_records",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_registration.install()
