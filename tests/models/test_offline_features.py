"""Features and vectors computed on a local Ray, a worker killed on the way: the same files."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.data.cluster import Cluster, on_ray
from polyptych.errors import PolyptychError
from polyptych.models.image_features import cache_image_features
from polyptych.schema import Example, ImageRef
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'polyptych[scale]'"
)
SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    import ray

    paths = [str(SOURCE), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine leaves them no time
    yield Cluster("local", workers=2)
    ray.shutdown()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Mortal:
    """Doubles numbers; the first worker that meets 13 is killed."""

    def __init__(self, flag: str) -> None:
        self.flag = Path(flag)

    def __call__(self, items: list[int]) -> tuple[np.ndarray, list[str]]:
        if 13 in items and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if -1 in items:
            raise PolyptychError("item -1 is no good")
        return np.array(items) * 2, [f"<{item}>" for item in items]


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path: Path, cluster: Cluster, model: str) -> None:
    batches = [(start, list(range(start, start + 3))) for start in range(0, 30, 3)]
    done = list(on_ray(batches, Mortal, (str(tmp_path / "flag"),), cluster))
    assert (tmp_path / "flag").exists(), "no worker was killed"
    assert [number for number, _ in done] == [number for number, _ in batches]
    for (_, items), (_, (doubled, texts)) in zip(batches, done, strict=True):
        assert doubled.tolist() == [2 * item for item in items]
        assert texts == [f"<{item}>" for item in items]
    with pytest.raises(PolyptychError, match="item -1 is no good"):
        list(on_ray([(0, [1]), (1, [-1])], Mortal, (str(tmp_path / "flag"),), cluster))

    examples = tiny_examples(9)
    cache_image_features(model, examples, tmp_path / "here", batch_size=4)
    cache_image_features(model, examples, tmp_path / "there", batch_size=4, cluster=cluster)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")

    missing = [Example("x", examples[0].messages, (ImageRef(path="/none.png"),))]
    with pytest.raises(PolyptychError, match=r"image /none\.png"):
        cache_image_features(model, missing, tmp_path / "there", cluster=cluster)


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


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PolyptychError, match=r"need Ray: pip install 'polyptych\[scale\]'"):
        list(on_ray([(0, [1])], Mortal, ("",), Cluster()))


@needs_ray
def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with pytest.raises(PolyptychError, match=r"Ray cluster '127.0.0.1:1' is not reached") as error:
        list(on_ray([(0, [1])], Mortal, ("",), Cluster("127.0.0.1:1")))
    assert "\n" not in str(error.value)
