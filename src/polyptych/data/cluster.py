"""Heavy work over many items in numbered batches, on the processes of a Ray cluster.

What a batch holds, and so what it gives, is decided before anybody computes it; results come back
in the order of the batches. So the files of a stage are the same, byte for byte, as those of one
process, also when a worker dies and Ray has another one do its batches again.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polyptych.errors import PolyptychError

Batch = tuple[int, Sequence[Any]]
"""Number and items."""

Compute = Callable[[Sequence[Any]], Any]
"""What is done with the items of a batch; the result travels pickled."""

_BLOCKS_PER_WORKER = 64
"""Blocks that the batches are cut into; what a dead worker had of one is computed again."""

_ANSWERS_WITHIN = 10.0
"""Seconds for a cluster to take a connection; Ray itself would try on for a quarter of an hour."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the work is done."""

    address: str | None = None
    """Of a running cluster (``auto``, ``ray://host:10001``); None or ``local`` starts one here."""
    workers: int = 2
    """Processes; each has a GPU of its own where the cluster has enough of them."""


def on_ray(
    batches: Iterable[Batch], make: Callable[..., Compute], arguments: tuple[Any, ...], on: Cluster
) -> Iterator[tuple[int, Any]]:
    """Results of all batches, in order.

    Args:
        batches: Their items travel pickled; images that are paths are read by the workers, which
            have to see the same files.
        make: Called once in each worker; it loads what the work needs.
        arguments: For ``make``.
        on: The cluster; one that this process is connected to already is used.

    Raises:
        PolyptychError: If Ray is not installed or not reached, or with what a worker says.
    """
    rows = [{"number": number, "items": pickle.dumps(list(items))} for number, items in batches]
    if not rows:
        return
    data = _connect(on)
    gpus = int(data["gpus"] >= on.workers)
    ready = data["from_items"](
        rows, override_num_blocks=min(len(rows), _BLOCKS_PER_WORKER * on.workers)
    ).map(
        _Worker,
        fn_constructor_args=(make, arguments, torch.get_num_threads()),
        compute=data["pool"](size=on.workers),
        num_gpus=gpus or None,
    )
    waiting: dict[int, Any] = {}
    order = iter([row["number"] for row in rows])
    following = next(order, None)
    for row in ready.iter_rows():
        if row["error"]:
            raise PolyptychError(row["error"])
        waiting[int(row["number"])] = pickle.loads(row["result"])
        while following in waiting:
            yield following, waiting.pop(following)
            following = next(order, None)


def _connect(on: Cluster) -> dict[str, Any]:
    """Reach the cluster, or start one."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PolyptychError("several workers need Ray: pip install 'polyptych[scale]'") from error
    if not ray.is_initialized():
        address = None if on.address == "local" else on.address
        try:
            if address is None:
                ray.init(num_cpus=on.workers, include_dashboard=False, log_to_driver=False)
            else:
                _knock(address, ray.util.get_node_ip_address())
                ray.init(address=address, log_to_driver=False)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PolyptychError(f"Ray cluster {address!r} is not reached: {line}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return {
        "from_items": ray.data.from_items,
        "pool": ray.data.ActorPoolStrategy,
        "gpus": ray.cluster_resources().get("GPU", 0),
    }


def _knock(address: str, own: str) -> None:
    """Find out soon that nobody listens at ``host:port`` or ``ray://host:port``.

    Args:
        address: Other forms, as ``auto``, are left to Ray.
        own: Address of this machine in its network, which Ray listens at and takes for localhost.

    Raises:
        OSError: If there is no connection.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    host = host.strip("[]")
    if host in ("localhost", "127.0.0.1", "::1") and not address.startswith("ray://"):
        host = own
    socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN).close()


class _Worker:
    """One process of the pool; as many threads as at home, so that sums are added alike."""

    def __init__(
        self, make: Callable[..., Compute], arguments: tuple[Any, ...], threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self.error = ""
        self.compute: Compute | None = None
        try:
            self.compute = make(*arguments)
        except PolyptychError as error:
            self.error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result, said = None, self.error
        if self.compute is not None:
            try:
                result = self.compute(pickle.loads(row["items"]))
            except PolyptychError as error:
                said = str(error)
        return {"number": row["number"], "result": pickle.dumps(result), "error": said}
