"""AMBER's formulas for a caption's objects (Wang et al. 2023): what is told, what is invented.

With R the objects of a caption, each once, A those of the image and H those that annotators expect
to be imagined there:

    chair = 1 - |R and A| / |R|    cover = |R and A| / |A|
    hal = chair > 0                cog = |R and H| / |R|

Numbers are means over captions; a caption counts where its denominator is not zero. Objects are
found as :mod:`polyptych.evaluation.scoring.chair` finds them, with any list. The benchmark's own
files and counts are in :mod:`polyptych.evaluation.scoring.amber_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from polyptych.evaluation.scorers import Measurement, Scorer, mean_of
from polyptych.evaluation.scoring.chair import Flavor, ObjectFinder, ObjectWords, objects_of
from polyptych.schema import Example, Prediction


class Amber(NamedTuple):
    """Measures of one caption; None where there is nothing to divide by."""

    chair: float | None
    cover: float | None
    hal: float
    cog: float | None


def amber(
    said: AbstractSet[str], truth: AbstractSet[str], likely: AbstractSet[str] = frozenset()
) -> Amber:
    """Judge the objects of one caption.

    Args:
        said: Objects of the caption.
        truth: Objects of the image.
        likely: Objects that people expect there, although they are not.
    """
    right = len(said & truth)
    chair = 1 - right / len(said) if said else None
    return Amber(
        chair=chair,
        cover=right / len(truth) if truth else None,
        hal=float(bool(chair)),
        cog=len(said & likely) / len(said) if said else None,
    )


def amber_scorer(words: ObjectWords, flavor: Flavor = "fixed") -> Scorer:
    """``amber_chair``, ``amber_cover``, ``amber_hal`` and, where known, ``amber_cog``.

    An example has ``objects`` in its metadata, and ``likely`` for the last of them; both are words
    of the list. What its references mention is true, too.

    Args:
        words: The list of objects.
        flavor: How captions are read.
    """
    finder = ObjectFinder(words, flavor)

    def score(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measurement]:
        judged = []
        for example, prediction in zip(examples, predictions, strict=True):
            said = {mention.name for mention in finder.find(prediction.text)[1]}
            truth = finder.truth(objects_of(example), example.references)
            likely = finder.truth(example.metadata.get("likely", ()))
            judged.append(amber(said, truth, likely - truth))
        fields = ["chair", "cover", "hal"]
        if any("likely" in example.metadata for example in examples):
            fields.append("cog")
        ids = [example.id for example in examples]
        return [
            mean_of(f"amber_{name}[{flavor}]", ids, [getattr(item, name) for item in judged])
            for name in fields
        ]

    return score
