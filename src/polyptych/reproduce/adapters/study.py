"""The study of adapters: bases of transformers in the small, and four variants of equal size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyptych.adapters.adapt import adapt
from polyptych.adapters.method import BaseSizes, Method
from polyptych.adapters.numbering import FlatPrefill
from polyptych.adapters.sam import CrossImageGuidance, Sam
from polyptych.adapters.tiny import TinySizes, tiny_family, tiny_family_tokenizer
from polyptych.adapters.vpgc import Reattention, VpgC
from polyptych.data.records import read_records
from polyptych.reproduce.answers import ANSWER_TOKENS, BATCH
from polyptych.reproduce.recipes import sources, study_recipe
from polyptych.reproduce.sam.study import SamWorkshop, StudySettings
from polyptych.reproduce.workshop import Run
from polyptych.storybook.tasks.factors import FactorType
from polyptych.training.recipe import (
    DataRecipe,
    Recipe,
    ValidationRecipe,
)
from polyptych.training.supervised import train

VARIANTS = ("plain", "sam", "vpgc", "both")

ALSO = {"both": ("sam", "vpgc")}
"""Whether two methods together do more than each alone."""

_FIGURE_SIDE = 96


@dataclass(frozen=True, slots=True)
class SmallBase:
    """A base of a family, and what a picture may say to it."""

    family: str = "llava"
    grid: int = 4
    """Visual tokens a side: a picture of 96 pixels has ``grid`` x ``grid``."""

    @property
    def name(self) -> str:
        """``llava16``: the family and its visual tokens per picture."""
        return f"{self.family}{self.grid**2}"

    @property
    def sizes(self) -> TinySizes:
        """Of the model; families of Qwen's kind merge 2 x 2 patches."""
        merged = 1 if self.family == "llava" else 2
        return TinySizes(
            side=_FIGURE_SIDE,
            patch=_FIGURE_SIDE // (self.grid * merged),
            vision_width=96,
            vision_layers=3,
            width=128,
            layers=4,
            heads=4,
            positions=512,
        )


@dataclass(frozen=True, slots=True)
class AdaptersSettings:
    """Everything that decides the study; saved with its results."""

    train: int = 10000
    """Training examples of each task."""
    singles: int = 8000
    """Single pictures with descriptions, for the base."""
    validation: int = 200
    """Validation examples of each task; they choose learning rates."""
    test: int = 300
    """Test examples of each task, never looked at before the end."""
    data_seed: int = 2711
    pictures: tuple[int, int] = (3, 5)
    things: tuple[int, int] = (2, 3)
    factor_types: tuple[FactorType, ...] = StudySettings().factor_types
    regrouped: int = 40000
    renamed: int = 4
    seeing_steps: int = 2500
    """Steps of the base on single pictures, which teach it to see."""
    base_steps: int = 3000
    """Steps of the base on the tasks."""
    base_batch_size: int = 32
    base_learning_rate: float = 1e-3
    steps: int = 400
    """Steps of every variant from its base."""
    grid_steps: int = 200
    """Steps of the shorter runs that choose a learning rate."""
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (1e-3, 3e-4)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    bases: tuple[SmallBase, ...] = (SmallBase("llava"), SmallBase("qwen2_vl"))
    """The main comparison is made on each."""
    sweep: tuple[SmallBase, ...] = (SmallBase("llava", 2), SmallBase("qwen2_vl", 2))
    """Other budgets of visual tokens, with the sweep's seeds."""
    sweep_seeds: tuple[int, ...] = (0,)
    pooled_tokens: int = 32
    """SAM's P: at these budgets every picture is read whole."""

    def quick(self) -> AdaptersSettings:
        """One seed, no grid, no sweep: a look at everything in a fraction of the time."""
        return replace(self, seeds=self.seeds[:1], learning_rates=(1e-3,), sweep=())


# What "plain" has in place of the methods: the same layers, steps and parameters, and nothing to
# learn from other images or from the question. A gain is then one of what was looked at.


class _OwnImage(CrossImageGuidance):
    """The second stream reads the image's own pooled tokens instead of the others'."""

    def _second_stream(
        self,
        pooled: Float[Tensor, "G P W"],
        score: Float[Tensor, "G P"],
        filled: Bool[Tensor, "G P"],
        counts: Int[Tensor, " C"],
    ) -> Float[Tensor, "G P W"]:
        told = pooled + self.query_to_w(pooled)
        for layer in self.w_former:
            told = layer(told, pooled, filled[:, None], score)
        return told


class _Unasked(Reattention):
    """The second look is guided by the same numbers whatever the question."""

    def forward(
        self, hidden: Float[Tensor, "C T D_llm"], prefill: FlatPrefill
    ) -> Float[Tensor, "N D_llm"]:
        return super().forward(torch.ones_like(hidden), prefill)


@dataclass(frozen=True, slots=True)
class OwnImageSam(Sam):
    """SAM's parameters without other images."""

    def build(self, base: BaseSizes) -> nn.Module:
        """The module of a fitted method."""
        assert self.width is not None
        return _OwnImage(base.hidden_size, self.width, self.pooled_tokens, self.layers)


@dataclass(frozen=True, slots=True)
class UnaskedVpgC(VpgC):
    """VPG-C's parameters without the prompt's state."""

    def build(self, base: BaseSizes) -> nn.Module:
        """The module of a fitted method."""
        assert self.width is not None
        return _Unasked(base.hidden_size, self.width)


@dataclass(frozen=True)
class AdaptersWorkshop(SamWorkshop):
    """The study of adapters over Storybook, on the sets of the SAM study."""

    settings: Any
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    also: ClassVar[Mapping[str, tuple[str, ...]]] = ALSO

    def base(self, budget: Any) -> Path:
        """A trained base's folder."""
        return self.root / "bases" / budget.name / "final"

    def fresh_base(self, base: SmallBase) -> tuple[Any, Any]:
        """A base before its first step, with a tokenizer of the training sets' words."""
        texts = (
            message.text
            for name in self.base_sets
            for example in read_records(self.data[name])
            for message in example.messages
        )
        tokenizer = tiny_family_tokenizer(base.family, texts, vocab_size=1024)
        model, processor = tiny_family(base.family, tokenizer=tokenizer, sizes=base.sizes)
        return adapt(model, [], processor=processor)

    def train_base(self, base: SmallBase) -> None:
        """Single pictures teach the base to see; then it learns the tasks."""
        settings, folder = self.settings, self.root / "bases" / base.name
        if (folder / "result.json").exists():
            return
        torch.set_num_threads(1)
        model, processor = self.fresh_base(base)
        stages = (
            ("seeing", (self.align_set,), settings.seeing_steps),
            ("", self.base_sets, settings.base_steps),
        )
        for name, sets, steps in stages:
            recipe = study_recipe(
                f"{base.name}-{name or 'base'}",
                ("model", "lm_head"),
                DataRecipe(train=sources(self.data[each] for each in sets)),
                steps=steps,
                batch_size=settings.base_batch_size,
                learning_rate=settings.base_learning_rate,
            )
            train(recipe, out=folder / name, model=model, processor=processor)

    def build(self, run: Run) -> tuple[PreTrainedModel, Any]:
        """The base with both modules; which of them may look beyond is what variants differ in."""
        guided, asked = run.variant in ("sam", "both"), run.variant in ("vpgc", "both")
        pooled = self.settings.pooled_tokens
        sam = Sam(pooled_tokens=pooled) if guided else OwnImageSam(pooled_tokens=pooled)
        methods: list[Method] = [sam, VpgC() if asked else UnaskedVpgC()]
        return adapt(self.base(run.condition), methods, seed=run.seed)

    def sizes(self, model: PreTrainedModel) -> dict[str, int]:
        """Of the whole, and of what was put on it."""
        added = (p for n, p in model.named_parameters() if "polyptych_methods" in n)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "added_parameters": sum(p.numel() for p in added),
        }

    def recipe(self, run: Run) -> Recipe:
        """Methods and language model learn all tasks; the vision encoder stays."""
        return study_recipe(
            run.name,
            ("polyptych_methods", "language_model", "lm_head"),
            DataRecipe(
                train=sources(self.data[name] for name in self.training_sets),
                validation=sources(self.data[f"{task}-validation"] for task in self.tasks),
            ),
            steps=run.steps,
            batch_size=self.settings.batch_size,
            learning_rate=run.learning_rate,
            seed=run.seed,
            validation=ValidationRecipe(batch_size=BATCH, max_new_tokens=ANSWER_TOKENS),
        )
