"""Features on disk: right order, nothing computed twice, and whole after a kill at any moment."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.images import image_hash, load_image
from polyptych.errors import PolyptychError
from polyptych.schema import ImageRef
from polyptych.testing import tiny_image
from polyptych.vision.encoder import VisionEncoder, hidden_state_choice
from polyptych.vision.feature_cache import FeatureCache, encoder_fingerprint

PATCHES, WIDTH = 3, 4


class Encoder:
    """Features that tell which image they come from, and a count of the images encoded."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        return pixels.mean((1, 2, 3))[:, None, None].expand(-1, PATCHES, WIDTH).contiguous()


def pixels(images: Sequence[Image.Image]) -> Tensor:
    data = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    return torch.stack([d.view(40, 40, 3).permute(2, 0, 1).float() / 255 for d in data])


def refs(*seeds: int) -> list[ImageRef]:
    return [tiny_image(seed) for seed in seeds]


def expected(images: Sequence[ImageRef]) -> Tensor:
    features = Encoder()(pixels([load_image(ref) for ref in images]))
    return features.half().float()


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    cache = FeatureCache(tmp_path / "cache", "abc")
    cache.fill(refs(0, 1, 2), Encoder(), pixels, batch_size=2)
    return cache


def test_features_come_in_the_order_asked_for(cache: FeatureCache) -> None:
    wanted = refs(2, 0, 0, 1)
    features = cache.get(wanted)
    assert features.dtype == torch.float32
    assert features.shape == (4, PATCHES, WIDTH)
    assert torch.equal(features, expected(wanted))
    assert len(features.unique()) == 3


def test_only_missing_images_are_encoded(cache: FeatureCache) -> None:
    encoder = Encoder()
    assert cache.fill(refs(1, 3, 3, 0, 4, 3), encoder, pixels) == 2
    assert encoder.images == 2
    assert cache.fill(refs(4), encoder, pixels) == 0
    assert len(cache) == 5
    assert torch.equal(cache.get(refs(4, 0)), expected(refs(4, 0)))


def test_equal_files_share_a_row(cache: FeatureCache, tmp_path: Path) -> None:
    path = tmp_path / "copy.png"
    path.write_bytes(refs(1)[0].data or b"")
    same = [ImageRef(path=str(path))]
    assert cache.fill(same, Encoder(), pixels) == 0
    assert torch.equal(cache.get(same), expected(refs(1)))


def test_opened_again_it_goes_on(cache: FeatureCache) -> None:
    again = FeatureCache(cache.folder, "abc")
    assert len(again) == 3
    assert torch.equal(again.get(refs(1, 2)), expected(refs(1, 2)))
    assert again.fill(refs(2, 5), Encoder(), pixels) == 1
    assert torch.equal(FeatureCache(cache.folder, "abc").get(refs(5, 0)), expected(refs(5, 0)))


@pytest.mark.parametrize("lost", [1, PATCHES * WIDTH * 2 - 1, PATCHES * WIDTH * 2])
def test_a_kill_while_features_were_written(cache: FeatureCache, lost: int) -> None:
    """Rows stand in the file, their hashes do not: they are written again, at the same place."""
    data, index = cache.folder / "features.bin", cache.folder / "index.txt"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:2]))
    data.write_bytes(data.read_bytes()[:-lost])
    again = FeatureCache(cache.folder, "abc")
    encoder = Encoder()
    assert again.fill(refs(0, 1, 2, 3), encoder, pixels) == 2
    assert torch.equal(again.get(refs(3, 2, 1, 0)), expected(refs(3, 2, 1, 0)))
    assert data.stat().st_size == 4 * PATCHES * WIDTH * 2


def test_a_kill_while_hashes_were_written(cache: FeatureCache) -> None:
    """The torn last hash does not count, and the next one starts on a line of its own."""
    index = cache.folder / "index.txt"
    index.write_text(index.read_text()[:-20])
    again = FeatureCache(cache.folder, "abc")
    assert len(again) == 2
    assert again.fill(refs(0, 1, 2, 3), Encoder(), pixels) == 2
    last = FeatureCache(cache.folder, "abc")
    assert len(last) == 4
    assert torch.equal(last.get(refs(3, 2, 1, 0)), expected(refs(3, 2, 1, 0)))


def test_a_kill_before_the_first_row(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "abc")
    cache.fill(refs(0), Encoder(), pixels)
    (tmp_path / "index.txt").unlink()
    (tmp_path / "features.bin").unlink()
    again = FeatureCache(tmp_path, "abc")
    assert len(again) == 0
    assert again.fill(refs(0), Encoder(), pixels) == 1
    assert torch.equal(again.get(refs(0)), expected(refs(0)))


def test_another_encoder_is_refused(cache: FeatureCache) -> None:
    with pytest.raises(PolyptychError, match=r"cache: features of encoder abc, not of xyz"):
        FeatureCache(cache.folder, "xyz")


def test_a_missing_image_is_named(cache: FeatureCache) -> None:
    (missing,) = refs(9)
    with pytest.raises(
        PolyptychError, match=f"cache: no features of image .*{image_hash(missing)}"
    ):
        cache.get([missing])


def test_an_empty_cache_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match="no features of image"):
        FeatureCache(tmp_path / "new", "abc").get(refs(0))


def test_workers_open_the_file_themselves(cache: FeatureCache) -> None:
    cache.get(refs(0))
    sent = pickle.dumps(cache)
    assert len(sent) < 2000, "the memory map does not travel"
    assert torch.equal(pickle.loads(sent).get(refs(2, 1)), expected(refs(2, 1)))


def test_the_fingerprint_follows_weights_preprocessing_and_layer() -> None:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, **sizes)
    encoder = VisionEncoder(config)
    processor = BlipImageProcessorPil(size={"height": 8, "width": 8})
    first = encoder_fingerprint(encoder, processor)
    assert encoder_fingerprint(encoder, processor) == first
    other = BlipImageProcessorPil(size={"height": 9, "width": 9})
    assert encoder_fingerprint(encoder, other) != first
    lower = VisionEncoder(config, hidden_state_choice(config, 0, keep_class_token=False))
    lower.load_state_dict(encoder.state_dict())
    assert encoder_fingerprint(lower, processor) != first
    with torch.no_grad():
        encoder.model.post_layernorm.bias[0] += 1
    assert encoder_fingerprint(encoder, processor) != first
