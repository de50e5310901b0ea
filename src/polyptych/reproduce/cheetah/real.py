"""The Cheetah comparison on real pictures: NLVR's statements about three boxes.

Same variants, same steps and shares, same code as :mod:`polyptych.reproduce.cheetah.main`; learning
rates are those chosen there. Answers are true or false; the more frequent one makes up 55 % of the
development set and 56 % of the test set, so that is what a model that sees nothing can reach.

Command: ``polyptych reproduce cheetah --real DATA_DIR --out DIR``, with ``DATA_DIR/nlvr``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from polyptych.data.records import read_records, write_records
from polyptych.evaluation.scorers import Scorer, item_scorer
from polyptych.methods.cheetah.discriminative import SourcePicture
from polyptych.methods.cheetah.discriminative.detection import QFormerAttention
from polyptych.methods.cheetah.discriminative.filters import PixelChange
from polyptych.methods.cheetah.discriminative.steps import Steps
from polyptych.methods.cheetah.discriminative_data import (
    DiscriminativeSettings,
    build_discriminative_data,
)
from polyptych.models.checkpoint import load_model
from polyptych.reproduce.answers import cache_features
from polyptych.reproduce.base import Hints, Readout
from polyptych.reproduce.cheetah.nlvr_boxes import (
    KINDS,
    NUMBERS,
    RGB,
    SIZE_WORDS,
    BoxEditor,
    BoxEdits,
    BoxMasks,
    BoxTargets,
    Statements,
    box_from_json,
    largest,
)
from polyptych.reproduce.cheetah.salience import NAMED
from polyptych.reproduce.cheetah.study import EDITED, CheetahSettings, CheetahWorkshop
from polyptych.reproduce.controls import no_pictures, shuffled_pictures
from polyptych.reproduce.workshop import Change, GroupBy
from polyptych.schema import IGNORE_INDEX, Example, ImageRef
from polyptych.storybook.vocabulary import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

REAL_SETTINGS = replace(
    CheetahSettings(),
    captions=0,  # the sets are as large as they are
    changes=0,
    details=0,
    requestioned=0,
    recaptioned=0,
    edited=0,
    validation=0,
    test=0,
    seeing_steps=2000,
    base_steps=2000,
    learning_rates=(1e-3,),
    layers=(),
    shares=(),
)


def true_or_false(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether an answer is the right one of the two words and not both."""
    said = {word for word in ("true", "false") if word in text.lower()}
    return said == {metadata["answer"]}


class BoxReadout(Readout):
    """Asks what captions say: how many shapes, and the looks of the two largest."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        assert tokens == 1 + NAMED
        self.norm = nn.LayerNorm(width)
        self.number = nn.Linear(width, len(NUMBERS))
        answers = (len(KINDS) + 1, len(RGB), len(SIZE_WORDS))
        self.looks = nn.ModuleList(nn.Linear(width, n) for _ in range(NAMED) for n in answers)

    def loss(self, tokens: Float[Tensor, "n Q D_llm"], truths: Sequence[Any]) -> Tensor:
        """Cross-entropy of each part; truths are boxes as JSON."""
        tokens, boxes = self.norm(tokens), [box_from_json(box) for box in truths]
        numbers = torch.tensor([len(box) for box in boxes])
        parts = [cross_entropy(self.number(tokens[:, 0]), numbers, reduction="sum")]
        truth = torch.tensor(
            [[_looks(largest(box), rank) for rank in range(NAMED)] for box in boxes]
        ).flatten(1)
        for column, head in enumerate(self.looks):
            logits = head(tokens[:, 1 + column // (len(self.looks) // NAMED)])
            asked = truth[:, column]
            parts.append(cross_entropy(logits, asked, ignore_index=IGNORE_INDEX, reduction="sum"))
        return torch.stack(parts).sum() / len(boxes)


def _looks(shapes: Sequence[Any], rank: int) -> tuple[int, int, int]:
    """Classes of kind, color and size; the kind of a shape that is not there is one of its own."""
    if rank >= len(shapes):
        return len(KINDS), IGNORE_INDEX, IGNORE_INDEX
    shape = shapes[rank]
    sizes = list(SIZE_WORDS)
    return KINDS.index(shape.kind), list(RGB).index(shape.color), sizes.index(shape.size)


@dataclass(frozen=True)
class NlvrWorkshop(CheetahWorkshop):
    """The study over NLVR.

    Args:
        source: Folder of NLVR.
    """

    source: Path = Path()
    readout: ClassVar[type[Readout]] = BoxReadout
    hints: ClassVar[type[Hints] | None] = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """One."""
        return ("statements",)

    @cached_property
    def data(self) -> dict[str, Path]:
        """Native records, with the boxes cut out."""
        makers: dict[str, Callable[[], Iterator[Example]]] = {
            self.captioned: Statements(self.source, "train").captions
        }
        for split in SPLITS:
            makers[f"statements-{split}"] = Statements(self.source, split).examples
        paths = {name: self.root / "data" / name / "records.jsonl" for name in makers}
        for name, make in makers.items():
            if not paths[name].exists():
                write_records(paths[name], make())
        return paths

    @property
    def base_data(self) -> dict[str, Path]:
        """The sets as they are; nothing more can be asked of the boxes than their statements."""
        return {name: self.data[name] for name in self.drawn_sets}

    def pictures(self) -> list[tuple[ImageRef, Any]]:
        """The training boxes."""
        examples = read_records(self.data[self.captioned])
        return [(e.images[0], e.metadata["boxes"][0]) for e in examples]

    def edit(self, variant: str, number: int) -> Path:
        """Paint over shapes of the training boxes."""
        boxes = list(Statements(self.source, "train").boxes())
        truth = {identity: box for identity, box, _ in boxes}
        model, processor = load_model(self.base(number))
        steps = Steps(
            QFormerAttention(model, processor),
            BoxMasks(truth),
            BoxEdits(truth),
            BoxEditor(),
            PixelChange(),
            BoxTargets(),
        )
        path = self.edited(variant, number)
        build_discriminative_data(
            [SourcePicture(identity, image, "a box with shapes") for identity, _, image in boxes],
            path.parent,
            steps,
            settings=DiscriminativeSettings(
                selection=EDITED[variant],
                kinds=("modify", "delete"),
                seed=self.settings.data_seed,
            ),
            progress=False,
        )
        cache_features(self, model, processor, [path])
        return path

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """True or false."""
        return {"statements": (item_scorer("accuracy[nlvr]", true_or_false),)}

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metric of the table."""
        return {"statements": ("accuracy[nlvr]",)}

    def groups(self, task: str) -> dict[str, GroupBy]:
        """By the right answer: always saying the same shows here."""
        return {"by_answer": lambda example: example.metadata["answer"]}

    def controls(self, task: str) -> Mapping[str, Change]:
        """Statements without the right pictures; a model that reads them must do worse."""
        return {"shuffled_pictures": shuffled_pictures, "no_pictures": no_pictures}

    def merit(self, record: Mapping[str, Any]) -> float:
        """Accuracy."""
        return record["tasks"]["statements"]["accuracy[nlvr]"]
