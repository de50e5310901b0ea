"""A cluster that is missing is said in one line, and soon. What one computes: tests/test_ray.py."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from polyptych.data.cluster import Cluster, on_ray
from polyptych.errors import PolyptychError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'polyptych[scale]'"
)


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PolyptychError, match=r"need Ray: pip install 'polyptych\[scale\]'"):
        list(on_ray([(0, [1])], list, (), Cluster()))


@needs_ray
@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "ray://127.0.0.1:1", "127.0.0.1:99999"]
)
def test_a_cluster_that_is_not_there_is_one_line(address: str) -> None:
    with pytest.raises(PolyptychError, match=r"Ray cluster .* is not reached: .+") as error:
        list(on_ray([(0, [1])], list, (), Cluster(address)))
    assert repr(address) in str(error.value)
    assert "\n" not in str(error.value)
