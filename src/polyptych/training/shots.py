"""Random numbers of shots: what a model learns from has few of them at one time, many at another.

CaMML is trained with 1 to N shots (arXiv 2401.03149, ``random_shots_training``). The released code
draws one number for each step and process from Python's own source of chance; here each place of a
run's fixed order has its own number, so that a resumed run, another micro batch size or more
processes see the same.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset


class RandomShots(Dataset[Any]):
    """A run's examples in their order, each with its first 1 to ``most`` shots.

    Args:
        examples: In the order of the run; an example may come several times.
        most: Greatest number of shots; one that has fewer keeps at most these.
        seed: Another seed draws other numbers.
    """

    def __init__(self, examples: Any, most: int, seed: int) -> None:
        self.examples, self.most, self.seed = examples, most, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        example = self.examples[index]
        if not example.shots:
            return example
        count = random.Random(f"shots:{self.seed}:{index}").randint(1, self.most)
        return replace(example, shots=example.shots[:count])
