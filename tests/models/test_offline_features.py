"""Features of a data set computed beforehand, in one process."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.models.image_features import cache_image_features
from polyptych.testing import tiny_examples, tiny_model, tiny_processor


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_features_of_a_set_go_on_and_serve_a_run(tmp_path: Path, model: str) -> None:
    examples = tiny_examples(6)
    cache_image_features(model, examples[:2], tmp_path / "cache")
    cache = cache_image_features(model, examples, tmp_path / "cache", batch_size=4)
    assert len(cache) == sum(len(example.images) for example in examples)
    features = cache.get(examples[1].images)
    encoder, processor = tiny_model().vision_encoder, tiny_processor()
    pictures = [Image.open(io.BytesIO(ref.data)) for ref in examples[1].images]
    np.testing.assert_allclose(
        features.numpy(), encoder(processor.pixels(pictures)).detach().numpy(), atol=2e-3
    )
