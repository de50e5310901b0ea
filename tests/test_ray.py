"""Features and vectors computed on a local Ray, a worker killed on the way: the same files."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from polyptych.data.cluster import Batch, Cluster, Compute, on_ray
from polyptych.errors import PolyptychError
from polyptych.models import image_features
from polyptych.models.image_features import cache_image_features
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.inputs import Embedding
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'polyptych[scale]'"
)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers for all tests of this file: each start of Ray takes seconds."""
    import ray

    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_worker_niceness", "0")  # else a busy machine leaves them no time
        yield Cluster("local", workers=2)
        started = psutil.Process().children(recursive=True)
        ray.shutdown()
        _, left = psutil.wait_procs(started, timeout=20)
        assert not left, "Ray leaves processes behind"


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Mortal:
    """Does another's work; the worker that is the first to meet its second batch is killed."""

    def __init__(self, flag: str, make: Callable[..., Compute], arguments: tuple[Any, ...]) -> None:
        self.flag = Path(flag)
        self.compute = make(*arguments)
        self.met = 0

    def __call__(self, items: list[Any]) -> Any:
        self.met += 1
        if self.met == 2 and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.compute(items)


@needs_ray
def test_a_killed_worker_changes_no_byte_of_the_features(
    tmp_path: Path, cluster: Cluster, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []

    def on_mortals(
        batches: Iterator[Batch], make: Callable[..., Compute], arguments: tuple[Any, ...], on: Any
    ) -> Iterator[tuple[int, Any]]:
        listed = list(batches)
        assert len(listed) > 2, "one of two workers meets a second batch"
        for number, result in on_ray(listed, Mortal, (str(tmp_path / "flag"), make, arguments), on):
            numbers.append(number)
            yield number, result
        assert numbers == [number for number, _ in listed]

    examples = tiny_examples(9)
    cache_image_features(model, examples, tmp_path / "here", batch_size=3)
    monkeypatch.setattr(image_features, "on_ray", on_mortals)
    cache_image_features(model, examples, tmp_path / "there", batch_size=3, cluster=cluster)
    assert (tmp_path / "flag").exists(), "no worker was killed"
    assert numbers, "nothing went through Ray"
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


@needs_ray
def test_two_workers_give_the_index_of_one_process(tmp_path: Path, cluster: Cluster) -> None:
    examples = tiny_examples(10, image_counts=(1,))
    encoder = load_encoder()
    build_index(examples, tmp_path / "one", encoder, settings=Embedding(batch_size=3))
    settings = Embedding(batch_size=3, workers=cluster.workers, ray=cluster.address)
    build_index(examples, tmp_path / "two", encoder, settings=settings)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_without_ray_an_index_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(PolyptychError, match=r"need Ray: pip install 'polyptych\[scale\]'"):
        build_index(tiny_examples(1), tmp_path, load_encoder(), settings=Embedding(workers=2))


@needs_ray
def test_what_a_worker_finds_wrong_is_said_here(cluster: Cluster) -> None:
    def make() -> Compute:  # inside, so that a worker gets it without importing this module
        def compute(items: Sequence[int]) -> Sequence[int]:
            if -1 in items:
                raise PolyptychError("item -1 is no good")
            return items

        return compute

    with pytest.raises(PolyptychError, match="item -1 is no good"):
        list(on_ray([(0, [1]), (1, [-1])], make, (), Cluster(cluster.address, workers=1)))
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0", "Ray reports to its makers"
