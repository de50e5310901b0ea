"""Judges that read nothing, to hold the critic against: chance, and the truth itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from polyptych.errors import PolyptychError
from polyptych.methods.sima.critic_rows import Contest
from polyptych.methods.sima.records import GREEDY, Comparison
from polyptych.methods.sima.truth import truth_of


class RandomJudge:
    """Prefers one or the other by chance: what pairs are worth without any critic.

    Args:
        seed: Another seed prefers others.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def run(self) -> dict[str, Any]:
        """The seed."""
        return {"judge": "random", "seed": self.seed}

    def compare(self, contests: Sequence[Contest]) -> list[tuple[Comparison | None, ...]]:
        """Margins from -1 to 1."""
        return [
            tuple(
                Comparison(place, (random.Random(f"{self.seed}/{c.id}/{place}").uniform(-1, 1),))
                for place in c.candidates
            )
            for c in contests
        ]


class TruthJudge:
    """Prefers what is truer, where the truth is known: what a critic could reach."""

    def run(self) -> dict[str, Any]:
        """Nothing but its name."""
        return {"judge": "truth"}

    def compare(self, contests: Sequence[Contest]) -> list[tuple[Comparison | None, ...]]:
        """Difference of the two answers' truth.

        Raises:
            PolyptychError: For a prompt whose truth is not known.
        """
        compared: list[tuple[Comparison | None, ...]] = []
        for contest in contests:
            values = truth_of(contest.responses)
            if values is None:
                raise PolyptychError(
                    f"id {contest.id!r}: the truth of its pictures is not known; it is for "
                    "Storybook's records"
                )
            compared.append(
                tuple(Comparison(p, (values[p] - values[GREEDY],)) for p in contest.candidates)
            )
        return compared
