"""The Cheetah study: settings, the task-agnostic backbone, and the variants that start from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from polyptych.data.records import read_records, write_records
from polyptych.evaluation.scorers import Scorer, caption_scorer, item_scorer
from polyptych.methods.cheetah.discriminative.detection import Selection
from polyptych.methods.cheetah.discriminative.running import RECORDS_FILE
from polyptych.methods.cheetah.model import (
    PolyptychCheetahConfig,
    PolyptychCheetahForConditionalGeneration,
)
from polyptych.models.checkpoint import load_model
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.answers import cache_features
from polyptych.reproduce.base import Hints, Readout, pictures_of
from polyptych.reproduce.cheetah.detail_questions import detail_correct
from polyptych.reproduce.cheetah.new_questions import changed_back, recaptioned, requestioned
from polyptych.reproduce.cheetah.salience import CaptionReadout, ThingHints
from polyptych.reproduce.cheetah.sets import asks_for_named, draw_set, edit_pictures
from polyptych.reproduce.recipes import study_recipe
from polyptych.reproduce.workshop import GroupBy, Run, Workshop
from polyptych.schema import Example, ImageRef
from polyptych.storybook import scoring
from polyptych.storybook.vocabulary import Split
from polyptych.training.freezing import select_trainable
from polyptych.training.recipe import DataRecipe, DataSource, Recipe

CHANGES = "change_captioning-train"

VARIANTS = ("backbone", "captions", "random", "discriminative")

ALSO = {"random": ("captions",), "discriminative": ("captions", "random")}
"""Rows 3 and 4 of the paper's table are compared with each other, too, and with the control."""

EDITED: dict[str, Selection] = {"random": "random", "discriminative": "least_attended"}
"""Variants that learn from edited pictures -> which objects are edited."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where VPG-C acts and how much of the edited pictures it learns from."""

    layer: int = 3
    """Decoder layer k."""
    share: float = 1.0
    """Of the edited pictures."""

    @property
    def name(self) -> str:
        """``k3`` or ``k3d0.25``."""
        return f"k{self.layer}" + (f"d{self.share:g}" if self.share < 1 else "")


@dataclass(frozen=True, slots=True)
class CheetahSettings:
    """Everything that decides the study; saved with its results."""

    captions: int = 6000
    """Training pictures with captions."""
    changes: int = 20000
    """Training pairs of pictures with a change, for the backbone only."""
    details: int = 8000
    """Training questions about details, for the backbone only."""
    requestioned: int = 60000
    """More of these about the pictures that are there."""
    recaptioned: int = 20000
    """More captions of the pictures that are there, for the backbone only."""
    edited: int = 4000
    """Pictures to edit for the discriminative data."""
    validation: int = 200
    """Validation examples of each task; they choose learning rates."""
    test: int = 600
    """Test examples of each task, never looked at before the end."""
    data_seed: int = 2308
    things: tuple[int, int] = (3, 5)
    """Least and greatest number of things in a picture."""
    decoder_layers: int = 6
    bases: int = 1
    """Backbones, each trained from another seed; the runs of seed s start from s modulo this."""
    seeing_steps: int = 4000
    """Steps of 64 pictures that teach the Q-Former what captions say."""
    base_steps: int = 8000
    """Steps of the language model on captions and tasks, the Q-Former frozen."""
    base_learning_rate: float = 1e-3
    base_batch: int = 32
    steps: int = 1200
    """Steps of every variant from its backbone."""
    grid_steps: int = 400
    """Steps of the shorter runs that choose a learning rate."""
    edited_per_step: int = 24
    captions_per_step: int = 64
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    placement: Placement = Placement()
    layers: tuple[int, ...] = (1, 2, 4, 5)
    """Other layers k, with the sweep's seeds."""
    shares: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Smaller sets of edited pictures, with the sweep's seeds."""
    sweep_seeds: tuple[int, ...] = (0,)

    def quick(self) -> CheetahSettings:
        """One seed, no grid, no sweep: a look at everything in a fraction of the time."""
        return replace(
            self, seeds=self.seeds[:1], learning_rates=(1e-2,), bases=1, layers=(), shares=()
        )


@dataclass(frozen=True)
class CheetahWorkshop(Workshop):
    """The Cheetah study over Storybook."""

    settings: CheetahSettings
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    also: ClassVar[Mapping[str, tuple[str, ...]]] = ALSO
    readout: ClassVar[type[Readout]] = CaptionReadout
    """What the task-agnostic Q-Former is asked."""
    hints: ClassVar[type[Hints] | None] = ThingHints
    """What makes it able to look for other things, of which nobody tells it."""
    captioned: ClassVar[str] = "captions-train"
    """Single pictures with captions; VPG-C learns from them, too."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Both compare pictures or ask for one of several; neither is what VPG-C is trained on."""
        return ("change_captioning", "detail_questions")

    @cached_property
    def data(self) -> dict[str, Path]:
        """Drawn sets; those of edited pictures need a backbone, see :meth:`edited`."""
        settings, paths = self.settings, {}
        wanted: list[tuple[str, Split, int]] = [
            ("captions", "train", settings.captions),
            ("change_captioning", "train", settings.changes),
            ("detail_questions", "train", settings.details),
        ]
        for task in self.tasks:
            wanted += [(task, "validation", settings.validation), (task, "test", settings.test)]
        for name, split, count in wanted:
            path = self.root / "data" / f"{name}-{split}" / "records.jsonl"
            paths[f"{name}-{split}"] = path
            if not path.exists():
                seed = settings.data_seed
                draw_set(path, name, split, count=count, seed=seed, things=settings.things)
        return paths

    @property
    def drawn_sets(self) -> tuple[str, ...]:
        """Drawn for the backbone."""
        return (self.captioned, *(f"{task}-train" for task in self.tasks))

    @cached_property
    def base_data(self) -> dict[str, Path]:
        """What the backbone's language model learns from: what is drawn, and the same anew."""
        settings, paths = self.settings, {name: self.data[name] for name in self.drawn_sets}
        makers: dict[str, Callable[[], Iterator[Example]]] = {
            "recaptioned": lambda: recaptioned(self.pictures(), count=settings.recaptioned),
            "changed-back": lambda: changed_back(list(read_records(self.data[CHANGES]))),
            "requestioned": lambda: requestioned(self.pictures(), count=settings.requestioned),
        }
        for name, make in makers.items():
            paths[name] = self.root / "data" / name / RECORDS_FILE
            if not paths[name].exists():
                write_records(paths[name], make())
        return paths

    def pictures(self) -> list[tuple[ImageRef, Any]]:
        """What the Q-Former learns to see, with the truth that is asked for."""
        return pictures_of([e for name in self.drawn_sets for e in read_records(self.data[name])])

    def edit(self, variant: str, number: int) -> Path:
        """Edit pictures for a variant by what a backbone overlooks."""
        settings = self.settings
        path = self.edited(variant, number)
        model, processor = load_model(self.base(number))
        edit_pictures(
            path.parent,
            model,
            processor,
            EDITED[variant],
            count=settings.edited,
            seed=settings.data_seed + 1,
            things=settings.things,
        )
        cache_features(self, model, processor, [path])
        return path

    def base_of(self, seed: int) -> int:
        """Number of the backbone that runs of a seed start from."""
        return seed % self.settings.bases

    def base(self, number: int) -> Path:
        """A backbone's folder."""
        return self.root / "bases" / f"seed{number}" / "final"

    def edited(self, variant: str, number: int) -> Path:
        """Discriminative data of a variant and a backbone."""
        return self.root / "data" / f"{variant}-of-seed{number}" / RECORDS_FILE

    def states(self, number: int, layer: int) -> Path:
        """What enters layer k of a backbone, for everything that VPG-C learns from."""
        return self.root / "states" / f"seed{number}-k{layer}"

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """Captions by words and by truth, details by truth; named and unnamed things apart."""
        return {
            "change_captioning": (
                caption_scorer("cider", "rouge_l"),
                item_scorer("change_accuracy[storybook]", scoring.change_correct),
            ),
            "detail_questions": (
                item_scorer("accuracy[detail]", detail_correct),
                item_scorer(
                    "named_accuracy[detail]",
                    lambda text, truth: detail_correct(text, truth) if truth["named"] else None,
                ),
                item_scorer(
                    "unnamed_accuracy[detail]",
                    lambda text, truth: None if truth["named"] else detail_correct(text, truth),
                ),
            ),
        }

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""
        return {
            "change_captioning": ("cider[coco]", "rouge_l[coco]", "change_accuracy[storybook]"),
            "detail_questions": (
                "accuracy[detail]",
                "named_accuracy[detail]",
                "unnamed_accuracy[detail]",
            ),
        }

    def groups(self, task: str) -> dict[str, GroupBy]:
        """Named or not, and by the type of change or question."""
        named: GroupBy = lambda e: "named" if asks_for_named(e) else "unnamed"  # noqa: E731
        if task == "change_captioning":
            return {"by_salience": named, "by_change": lambda e: e.metadata["change"]["type"]}
        return {"by_salience": named, "by_question": lambda e: e.metadata["question"]}

    def answered(self, run: Run) -> str:
        """A learning rate is chosen by answers, too."""
        return "validation" if run.purpose == "grid" else "test"

    def merit(self, record: Mapping[str, Any]) -> float:
        """ROUGE-L of changes on validation pairs: the paper's ablation, too, compares pictures."""
        return record["tasks"]["change_captioning"]["rouge_l[coco]"]

    def build(self, run: Run) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """The backbone with VPG-C that changes nothing yet."""
        return self.with_vpgc(self.base_of(run.seed), run.condition.layer)

    def with_vpgc(
        self, number: int, layer: int
    ) -> tuple[PolyptychCheetahForConditionalGeneration, PolyptychProcessor]:
        """A backbone with VPG-C before layer k, only which learns."""
        base, processor = load_model(self.base(number))
        fields = base.config.to_dict()
        fields.pop("model_type")
        torch.manual_seed(number)
        model = PolyptychCheetahForConditionalGeneration(
            PolyptychCheetahConfig(**fields, injection_layer=layer)
        )
        missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
        assert not unexpected and all(name.startswith("vpgc.") for name in missing)
        model.copy_queries_to_vpgc()
        select_trainable(model, ("vpgc",))
        return model.eval(), processor

    def recipe(self, run: Run) -> Recipe:
        """24 edited pairs and 64 captions in every step, or as many examples of captions only."""
        settings, number = self.settings, self.base_of(run.seed)
        captions = DataSource(
            path=str(self.data[self.captioned]), weight=settings.captions_per_step
        )
        sources: tuple[DataSource, ...] = (captions,)
        if run.variant in EDITED:
            path = self.edited(run.variant, number)
            sources = (
                DataSource(
                    path=str(path),
                    weight=settings.edited_per_step,
                    limit=round(run.condition.share * count_lines(path)),
                ),
                captions,
            )
        return study_recipe(
            run.name,
            ("vpgc",),
            DataRecipe(
                train=sources,
                feature_cache=str(self.features),
                state_cache=str(self.states(number, run.condition.layer)),
                exact_shares=True,
            ),
            steps=run.steps,
            batch_size=settings.edited_per_step + settings.captions_per_step,
            learning_rate=run.learning_rate,
            seed=run.seed,
            save_every=200,
        )


def count_lines(path: Path) -> int:
    """Records of a JSONL file."""
    with open(path, "rb") as file:
        return sum(1 for _ in file)
