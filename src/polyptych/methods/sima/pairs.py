"""From verdicts to preference pairs (section 3.3 of the paper), with every loss counted.

With one sample per prompt the pair is the sampled and the greedy answer; with several, the best
against the worst of all answers, the greedy one standing at margin 0.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyptych.data.preferences import write_pairs
from polyptych.errors import PolyptychError
from polyptych.files import write_aside
from polyptych.methods.sima.critic import IDENTICAL
from polyptych.methods.sima.records import GREEDY, Verdict, write_lines
from polyptych.methods.sima.truth import agreement
from polyptych.schema import PreferencePair

NO_VERDICT = "no verdict"
"""Of a critic whose words held none."""
UNDECIDED = "margin too small"

PAIRS_FILE, DROPS_FILE, SUMMARY_FILE = "pairs.jsonl", "drops.jsonl", "pairs.json"


@dataclass(frozen=True, slots=True)
class Drop:
    """A prompt that gives no pair."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs, and what became of the other prompts."""

    pairs: tuple[PreferencePair, ...]
    drops: tuple[Drop, ...]
    answers_dropped: dict[str, int]
    """Reason -> answers that were never compared."""
    agreement: dict[str, Any] | None
    """The critic's with the truth, where it is known; see
    :func:`polyptych.methods.sima.truth.agreement`."""

    @property
    def summary(self) -> dict[str, Any]:
        """All counts."""
        return {
            "prompts": len(self.pairs) + len(self.drops),
            "pairs": len(self.pairs),
            "dropped": dict(Counter(drop.reason for drop in self.drops).most_common()),
            "answers_dropped": self.answers_dropped,
            "critic_agrees_with_truth": self.agreement,
        }

    def told(self) -> list[str]:
        """The counts in words, a line each."""
        lines = [f"{len(self.pairs)} pairs of {len(self.pairs) + len(self.drops)} prompts"]
        counts = Counter(drop.reason for drop in self.drops)
        lines += [f"dropped {count}: {reason}" for reason, count in counts.most_common()]
        if self.agreement is not None:
            low, high = self.agreement["interval"]
            lines.append(
                f"the critic agrees with the truth in {100 * self.agreement['share']:.1f} % "
                f"[{100 * low:.1f}, {100 * high:.1f}] of {self.agreement['count']} comparisons"
            )
        return lines


def build_pairs(verdicts: Sequence[Verdict], *, min_margin: float = 0.0) -> PairSet:
    """Choose the better and the worse answer of each prompt.

    Args:
        verdicts: What :func:`polyptych.methods.sima.critic.self_critic` gave.
        min_margin: Pairs need a margin above this: log-odds in nats of a likelihood critic, from 0
            to 2 of one that writes.

    Returns:
        Pairs in the order of the verdicts; ids are the prompts'.
    """
    pairs: list[PreferencePair] = []
    drops: list[Drop] = []
    answers: Counter[str] = Counter()
    for verdict in verdicts:
        answers.update(verdict.dropped)
        found = _pair_of(verdict, min_margin)
        if isinstance(found, Drop):
            drops.append(found)
        else:
            pairs.append(found)
    return PairSet(tuple(pairs), tuple(drops), dict(answers.most_common()), agreement(verdicts))


def _pair_of(verdict: Verdict, min_margin: float) -> PreferencePair | Drop:
    if not verdict.comparisons:
        reasons = Counter(verdict.dropped)
        reason = reasons.most_common(1)[0][0] if reasons else IDENTICAL
        return Drop(verdict.id, reason)
    margins = {c.candidate: c.margin for c in verdict.comparisons if c.margin is not None}
    if not margins:
        return Drop(verdict.id, NO_VERDICT)
    margins = {GREEDY: 0.0, **margins}
    best, worst = max(margins, key=margins.__getitem__), min(margins, key=margins.__getitem__)
    margin = margins[best] - margins[worst]
    if margin <= min_margin:
        return Drop(verdict.id, UNDECIDED, f"{margin:.4g}, wanted above {min_margin:g}")
    answers, example = verdict.responses.answers, verdict.responses.prompt.example
    metadata = {"margin": margin, "chosen_answer": best, "rejected_answer": worst}
    return PreferencePair(
        id=verdict.id,
        prompt=example.prompt,
        chosen=answers[best],
        rejected=answers[worst],
        images=example.images,
        shots=example.shots,
        metadata=metadata,
    )


def write_pair_files(found: PairSet, out: str | Path, **run: Any) -> None:
    """Write ``pairs.jsonl``, ``drops.jsonl`` and the counts, ``pairs.json``, into a folder."""
    out = Path(out)
    write_pairs(out / PAIRS_FILE, found.pairs)
    write_lines(
        out / DROPS_FILE,
        ({"id": d.id, "reason": d.reason, "detail": d.detail} for d in found.drops),
    )
    with write_aside(out / SUMMARY_FILE) as file:
        json.dump({**found.summary, **run}, file, indent=1, ensure_ascii=False)


def require_pairs(found: PairSet) -> None:
    """Refuse to train on nothing.

    Raises:
        PolyptychError: With the count of every reason, if there are no pairs.
    """
    if not found.pairs:
        summary = found.summary
        counts = {**summary["dropped"]}
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "no prompts"
        raise PolyptychError(
            f"0 pairs of {summary['prompts']} prompts ({told}); there is nothing to tune on"
        )
