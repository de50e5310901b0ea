"""Fixtures and settings for all tests: one thread, no network, the shared development data."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)

# Shapes and types in the annotations of these modules are checked at every call, in tests only.
# Has to stand before anything imports them.
install_import_hook(
    [
        "polyptych.connectors",
        "polyptych.language.splicing",
        "polyptych.methods",
        "polyptych.models.blip2",
        "polyptych.models.llava",
        "polyptych.models.vision_language",
        "polyptych.vision",
    ],
    "shape_checks.check",
)


def pytest_collection_finish() -> None:
    """Leave out of every later collection what the imports made: it lives to the end anyway.

    Each training has two of them; they took a sixth of a second more.
    """
    gc.collect()
    gc.freeze()


SHARED = Path(os.environ.get("POLYPTYCH_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the development data; tests that ask for it are marked ``shared_data``."""
    if not SHARED.is_dir():
        pytest.skip(f"no development data at {SHARED}")
    return SHARED
