"""Several sets as one, in fixed shares and an order that is drawn before the first step.

The order is a list of places in sets, the same wherever it is drawn. So whichever process computes
an item, however many there are, and wherever a killed run goes on: the item at a position of the
run is always the same, and nothing before it has to be read to get there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from polyptych.data.dataset import Examples
from polyptych.data.shards import ShardedExamples
from polyptych.errors import PolyptychError


class Mixture(Dataset[Any]):
    """Several sets as one; made by `mixture`.

    Args:
        datasets: What is mixed.
        items: (n, 2) whole numbers: set and place in it.
    """

    def __init__(self, datasets: Sequence[Examples], items: Any) -> None:
        self.datasets = list(datasets)
        self.items = np.asarray(items, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        source, item = self.items[index]
        return self.datasets[source][int(item)]


def mixture(
    datasets: Sequence[Examples],
    weights: Sequence[float],
    seed: int = 0,
    length: int | None = None,
    block: int | None = None,
    together: int = 1,
) -> Mixture:
    """Mix sets in exact shares; no item comes again before all of its set have come.

    A set that is kept in shards comes shard by shard (see
    :meth:`polyptych.data.shards.ShardedExamples.order`), any other in random order.

    Args:
        datasets: What to mix.
        weights: Share of each set, in any unit.
        seed: Decides the order; equal arguments give the equal mixture.
        length: Items of the mixture; by default as many as the sets have together.
        block: Every so many items hold the shares exactly, too (the examples of one step).
        together: In a block, so many items in a row are of one set where shares allow it (the
            examples of one pass: sets differ in length, and a pass is as long as its longest).

    Raises:
        PolyptychError: For weights that do not fit the sets, a weighted but empty set, or shares
            that are no whole numbers of a block.
    """
    if len(weights) != len(datasets):
        raise PolyptychError(f"{len(datasets)} dataset(s) but {len(weights)} weight(s)")
    if not datasets or min(weights) < 0 or sum(weights) <= 0:
        raise PolyptychError(f"weights must be positive, got {list(weights)}")
    sizes = [len(dataset) for dataset in datasets]
    rng = random.Random(f"mixture:{seed}")
    orders: list[np.ndarray] = []
    for place, count in enumerate(_shares(weights, sum(sizes) if length is None else length)):
        if count and not sizes[place]:
            raise PolyptychError(f"dataset {place + 1} of the mixture is empty")
        orders.append(_order(datasets[place], count, rng))
    # Shuffling the sources alone keeps each source's order, and with it the promise above.
    sources = [source for source, order in enumerate(orders) for _ in range(len(order))]
    if block is None:
        rng.shuffle(sources)
    else:
        sources = _blocks(weights, block, len(sources), together, rng)
    items = np.empty((len(sources), 2), dtype=np.int64)
    items[:, 0] = sources
    for source, order in enumerate(orders):
        items[items[:, 0] == source, 1] = order
    return Mixture(datasets, items)


def _order(examples: Examples, count: int, rng: random.Random) -> np.ndarray:
    """Places of ``count`` draws: every item once, then every item once more, and so on."""
    size = len(examples)
    order = np.empty(count, dtype=np.int64)
    for start in range(0, count, size or 1):
        once: Sequence[int] | np.ndarray = (
            examples.order(rng.getrandbits(64))
            if isinstance(examples, ShardedExamples)
            else rng.sample(range(size), size)
        )
        order[start : start + size] = once[: count - start]
    return order


def _blocks(
    weights: Sequence[float], block: int, total: int, together: int, rng: random.Random
) -> list[int]:
    """Sources in an order whose every ``block`` items hold each share exactly."""
    counts = [weight / sum(weights) * block for weight in weights]
    if total % block or any(abs(count - round(count)) > 1e-6 for count in counts):
        shares = ", ".join(f"{count:g}" for count in counts)
        raise PolyptychError(f"exact shares of {block} of {total} items would be {shares}")
    sources: list[int] = []
    for _ in range(total // block):
        part = [source for source, count in enumerate(counts) for _ in range(round(count))]
        # Passes are shuffled: with several processes, none gets the same set in every step.
        passes = [part[start : start + together] for start in range(0, block, together)]
        rng.shuffle(passes)
        sources += chain.from_iterable(passes)
    return sources


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to the weights that add up to ``total`` (largest remainders)."""
    exact = [weight / sum(weights) * total for weight in weights]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for index in by_rest[: total - sum(counts)]:
        counts[index] += 1
    return counts
