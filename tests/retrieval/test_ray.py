"""Embedding on several processes gives what one process gives."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from retrieval_toys import entry

from polyptych.errors import PolyptychError
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.inputs import Embedding
from polyptych.retrieval.store import Store


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'polyptych[scale]'"
)
def test_two_workers_give_the_index_of_one_process(tmp_path: Path) -> None:
    import ray

    entries = [entry(number) for number in range(10)]
    encoder = load_encoder()
    build_index(entries, tmp_path / "one", encoder, settings=Embedding(batch_size=3))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        settings = Embedding(batch_size=3, workers=2)
        build_index(entries, tmp_path / "two", encoder, settings=settings)
    finally:
        ray.shutdown()
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    np.testing.assert_allclose(one.keys[0], two.keys[0], atol=1e-6)
    assert one.info.segments[0].entries == two.info.segments[0].entries


def test_without_ray_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(PolyptychError, match=r"need Ray: pip install 'polyptych\[scale\]'"):
        build_index([entry(1)], tmp_path, load_encoder(), settings=Embedding(workers=2))
