"""The SAM study: settings, data, judges, and its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from polyptych.data.records import read_records, write_records
from polyptych.evaluation.scorers import Scorer
from polyptych.evaluation.tasks.storybook import SCORERS
from polyptych.files import write_aside
from polyptych.methods.sam.model import PolyptychSamForConditionalGeneration
from polyptych.models.checkpoint import load_model
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.answers import (
    ANSWER_TOKENS,
    BATCH,
    answer_all,
    cache_features,
    feature_cache,
)
from polyptych.reproduce.base import FactReadout, pictures_of, teach_to_see
from polyptych.reproduce.recipes import sources, study_recipe
from polyptych.reproduce.runs import best_rates, execute_all, in_parallel
from polyptych.reproduce.sam.variants import VARIANTS, build_base, build_variant, connector_size
from polyptych.reproduce.sam.variety import regrouped, renamed
from polyptych.reproduce.small_models import build_processor
from polyptych.reproduce.workshop import GroupBy, Run, Workshop
from polyptych.schema import Example
from polyptych.storybook.generation import RECORDS_FILE, write_dataset
from polyptych.storybook.tasks.factors import FactorType
from polyptych.training.recipe import (
    DataRecipe,
    Recipe,
    ValidationRecipe,
)
from polyptych.training.run_folder import RunFolder
from polyptych.training.supervised import train
from polyptych.vision.feature_cache import FeatureCache


@dataclass(frozen=True, slots=True)
class Budget:
    """What a picture may say: visual tokens per picture, and numbers per token (None: all)."""

    tokens: int = 4
    width: int | None = None

    @property
    def name(self) -> str:
        """``q2`` or ``q1w12``."""
        return f"q{self.tokens}" + (f"w{self.width}" if self.width else "")


@dataclass(frozen=True, slots=True)
class Sweep:
    """All variants at another budget."""

    budget: Budget
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class StudySettings:
    """Everything that decides the study; saved with its results."""

    train: int = 10000
    """Training examples of each task."""
    singles: int = 8000
    """Single pictures with descriptions, for the base."""
    validation: int = 200
    """Validation examples of each task; they choose learning rates."""
    test: int = 400
    """Test examples of each task, never looked at before the end."""
    data_seed: int = 2025
    pictures: tuple[int, int] = (3, 5)
    """Least and greatest number of pictures in a group."""
    things: tuple[int, int] = (3, 5)
    """Least and greatest number of things in a picture."""
    factor_types: tuple[FactorType, ...] = ("kind", "colored_kind", "category", "place")
    """What groups may share: what a model of this size learns within the base's steps."""
    regrouped: int = 40000
    """More training groups, of the pictures of the drawn ones."""
    renamed: int = 4
    """Times that each training story comes again with other names."""
    seeing_steps: int = 6000
    """Steps of 64 pictures that teach the base's visual tokens what is in a picture."""
    base_steps: int = 10000
    """Steps of the base on the tasks, every picture read alone."""
    base_batch_size: int = 32
    base_learning_rate: float = 1e-3
    steps: int = 1500
    """Steps of every variant from the base."""
    grid_steps: int = 300
    """Steps of the shorter runs that choose a learning rate."""
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    budget: Budget = Budget()
    sweep: tuple[Sweep, ...] = (
        Sweep(Budget(1, 12)),
        Sweep(Budget(1), (0, 1, 2, 3, 4)),
    )
    """Other budgets: all seeds where pictures are shortest of tokens, else a look with one."""
    sweep_steps: int = 2000
    """Steps of a sweep's variants, which also teach the language model the other visual tokens."""

    def quick(self) -> StudySettings:
        """One seed, one budget, no grid: a look at everything in a fraction of the time."""
        return replace(self, seeds=self.seeds[:1], learning_rates=(1e-3,), sweep=())


@dataclass(frozen=True)
class SamWorkshop(Workshop):
    """The SAM study over Storybook."""

    settings: StudySettings
    variants: ClassVar[tuple[str, ...]] = VARIANTS

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is learned and tested, together in every run."""
        return ("group_captioning", "storytelling")

    @property
    def align_set(self) -> str:
        """Name of the set of single pictures."""
        return "description-train"

    @property
    def training_sets(self) -> tuple[str, ...]:
        """What every run learns from."""
        return (*(f"{task}-train" for task in self.tasks), "regrouped-train", "renamed-train")

    @property
    def base_sets(self) -> tuple[str, ...]:
        """What the base learns its language from: single pictures, too, so that words meet them."""
        return (*self.training_sets, self.align_set)

    @property
    def base_trainable(self) -> tuple[str, ...]:
        """What learns with the base's words.

        The connector has learned before; a language model that knows nothing yet would undo that.
        """
        return ("language_model",)

    def teach_to_see(
        self, model: PolyptychSamForConditionalGeneration, features: FeatureCache
    ) -> None:
        """Prepare a fresh base's connector; see :mod:`polyptych.reproduce.base`."""
        examples = [
            example
            for name in (self.align_set, *(f"{task}-train" for task in self.tasks))
            for example in read_records(self.data[name])
        ]
        pictures, steps = pictures_of(examples), self.settings.seeing_steps
        teach_to_see(model, pictures, features, FactReadout, steps=steps)

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """What judges each task."""
        return SCORERS

    @cached_property
    def data(self) -> dict[str, Path]:
        """Name of a set -> its JSONL file; drawn where it is not there yet."""
        settings = self.settings
        wanted = {self.align_set: settings.singles}
        for task in self.tasks:
            wanted[f"{task}-train"] = settings.train
            wanted[f"{task}-validation"] = settings.validation
            wanted[f"{task}-test"] = settings.test
        paths = {}
        for name, count in wanted.items():
            task, split = name.rsplit("-", 1)
            folder = self.root / "data" / name
            paths[name] = folder / RECORDS_FILE
            if not paths[name].exists():
                options: dict[str, Any] = {"things": settings.things}
                if task == "group_captioning":
                    options["pictures"] = settings.pictures
                    options["factor_types"] = settings.factor_types
                write_dataset(
                    task, folder, count=count, split=split, seed=settings.data_seed, **options
                )
        return {**paths, **self._varied(paths)}

    def _varied(self, drawn: Mapping[str, Path]) -> dict[str, Path]:
        """The sets that are made of drawn ones, over the same pictures."""
        settings = self.settings
        paths = {name: self.root / "data" / f"{name}.jsonl" for name in self.training_sets[-2:]}
        if not paths["regrouped-train"].exists():
            groups = regrouped(
                list(read_records(drawn["group_captioning-train"])),
                count=settings.regrouped,
                pictures=settings.pictures,
                factor_types=settings.factor_types,
            )
            write_records(paths["regrouped-train"], groups)
        if not paths["renamed-train"].exists():
            stories = list(read_records(drawn["storytelling-train"]))
            write_records(paths["renamed-train"], renamed(stories, copies=settings.renamed))
        return paths

    def base(self, budget: Budget) -> Path:
        """The aligned base of a budget."""
        return self.root / "bases" / budget.name / "final"

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""
        captions = ("cider[coco]", "rouge_l[coco]", "bleu_4[coco]")
        return {
            "group_captioning": (*captions, "factor_accuracy[storybook]"),
            "storytelling": (
                *captions,
                "name_accuracy[storybook]",
                "story_accuracy[storybook]",
            ),
        }

    def groups(self, task: str) -> dict[str, GroupBy]:
        """How a task's test results are broken down."""
        parts: dict[str, GroupBy] = {
            "by_pictures": lambda example: len(example.images),
            "by_things": things_per_picture,
        }
        if task == "group_captioning":
            parts["by_factor"] = lambda example: example.metadata["factor"]["type"]
        return parts

    def build(self, run: Run) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """The variant, computing what its base computes."""
        base, processor = load_model(self.base(run.condition))
        base = cast(PolyptychSamForConditionalGeneration, base)
        return build_variant(base, run.variant, run.seed), processor

    def sizes(self, model: PreTrainedModel) -> dict[str, int]:
        """Of the whole, and of the connector, in which variants differ."""
        sam = cast(PolyptychSamForConditionalGeneration, model)
        return {**super().sizes(model), "connector_parameters": connector_size(sam)}

    def recipe(self, run: Run) -> Recipe:
        """Connector and language model learn all tasks."""
        data = self.data
        return study_recipe(
            run.name,
            ("connector", "language_model"),
            DataRecipe(
                train=sources(data[name] for name in self.training_sets),
                validation=sources(data[f"{task}-validation"] for task in self.tasks),
                feature_cache=str(self.features),
            ),
            steps=run.steps,
            batch_size=self.settings.batch_size,
            learning_rate=run.learning_rate,
            seed=run.seed,
            validation=ValidationRecipe(batch_size=BATCH, max_new_tokens=ANSWER_TOKENS),
        )

    def merit(self, record: Mapping[str, Any]) -> float:
        """CIDEr on the validation sets."""
        return next(v for name, v in record["validation"].items() if name.startswith("cider"))


def things_per_picture(example: Example) -> str:
    """Mean number of things in the example's pictures, in three ranges."""
    mean = np.mean([len(scene["things"]) for scene in example.metadata["scenes"]])
    return "3-4.5" if mean < 4.5 else "4.5-6" if mean < 6 else "6-8"


def run_study(
    shop: SamWorkshop, results: Path, workers: int, rates: Mapping[str, float] | None = None
) -> Path:
    """All stages over one workshop, skipping what is done.

    ``rates`` gives each variant's learning rate; without them the grid is run.
    """
    settings = shop.settings
    model, processor = fresh_base(shop, settings.budget)
    cache_features(shop, model.eval(), processor, shop.data.values())
    align(shop, settings.budget)
    judge_base(shop, settings.budget)

    grid = [
        Run(variant, 0, rate, settings.grid_steps, settings.budget, "grid")
        for rate in settings.learning_rates
        for variant in VARIANTS
        if rates is None and len(settings.learning_rates) > 1
    ]
    execute_all(shop, grid, results, workers)
    rates = rates or best_rates(shop, results)
    rates = rates or dict.fromkeys(VARIANTS, settings.learning_rates[0])
    main_runs = [
        Run(variant, seed, rates[variant], settings.steps, settings.budget, "main")
        for seed in settings.seeds
        for variant in VARIANTS
    ]
    execute_all(shop, main_runs, results, workers)
    list(in_parallel(rebudget, [(shop, part.budget) for part in settings.sweep], workers))
    sweep = [
        Run(variant, seed, rates[variant], settings.sweep_steps, part.budget, "sweep")
        for part in settings.sweep
        for seed in part.seeds
        for variant in VARIANTS
    ]
    execute_all(shop, sweep, results, workers)
    return results


def fresh_base(
    shop: SamWorkshop, budget: Budget
) -> tuple[PolyptychSamForConditionalGeneration, PolyptychProcessor]:
    """A base before its first step."""
    torch.set_num_threads(1)
    sets = [path for name, path in shop.data.items() if name.endswith("-train")]
    processor = build_processor(shop.encoder, sets, budget.tokens)
    model = build_base(shop.encoder, processor, tokens=budget.tokens, width=budget.width, seed=0)
    return model, processor


def align(shop: SamWorkshop, budget: Budget) -> None:
    """A base that sees and speaks, reading every picture alone; what all variants start from."""
    settings, data = shop.settings, shop.data
    if shop.base(budget).exists():
        return
    model, processor = fresh_base(shop, budget)
    recipe = study_recipe(
        f"base-{budget.name}",
        shop.base_trainable,
        DataRecipe(
            train=sources(data[name] for name in shop.base_sets), feature_cache=str(shop.features)
        ),
        steps=settings.base_steps,
        batch_size=settings.base_batch_size,
        learning_rate=settings.base_learning_rate,
    )
    _see(shop, budget, model, processor)
    train(recipe, out=shop.base(budget).parent, model=model, processor=processor)


def rebudget(shop: SamWorkshop, budget: Budget) -> None:
    """A base of another budget: its own visual tokens, the main base's language model.

    The language model has not met these tokens. All variants teach it in their own steps, so none
    of them starts from words that have settled on pictures read alone.
    """
    if shop.base(budget).exists():
        return
    model, processor = fresh_base(shop, budget)
    _see(shop, budget, model, processor)
    spoken = cast(
        PolyptychSamForConditionalGeneration, load_model(shop.base(shop.settings.budget))[0]
    )
    model.language_model.load_state_dict(spoken.language_model.state_dict())
    folder = RunFolder(shop.base(budget).parent)
    folder.save_model(folder.final, model, processor, {"language_model": shop.settings.budget.name})


def judge_base(shop: SamWorkshop, budget: Budget) -> Path:
    """Answer the validation sets with the base: whether there is anything to compare variants on.

    Returns:
        ``validation.json`` beside the base: every metric by task and group.
    """
    path = shop.base(budget).parent / "validation.json"
    if not path.exists():
        torch.set_num_threads(1)
        model, processor = load_model(shop.base(budget))
        record, _ = answer_all(shop, model, processor, "validation")
        with write_aside(path) as file:
            json.dump(record, file, indent=1)
    return path


def _see(
    shop: SamWorkshop,
    budget: Budget,
    model: PolyptychSamForConditionalGeneration,
    processor: PolyptychProcessor,
) -> None:
    """The base's first stage; what it has learned is kept, so that a killed base goes on there."""
    seen = shop.root / "seen" / f"{budget.name}.safetensors"
    if not seen.exists():
        shop.teach_to_see(model, feature_cache(shop, model, processor))
        with write_aside(seen, binary=True) as file:
            file.write(save(model.connector.state_dict()))
    model.connector.load_state_dict(load_file(seen))
