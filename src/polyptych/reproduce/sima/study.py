"""The SIMA study: settings, sets, the variants of the loop, and what their answers are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from polyptych.data.records import read_json, read_records, write_records
from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Scorer, caption_scorer, item_scorer
from polyptych.evaluation.scoring.chair import storybook_words
from polyptych.evaluation.scoring.yes_no import pope_scorer
from polyptych.methods.sima.improvement import CriticSettings, ImprovementSettings, improve
from polyptych.methods.sima.pairs import SUMMARY_FILE
from polyptych.methods.sima.records import Prompt, as_prompts
from polyptych.methods.sima.responses import SamplingSettings
from polyptych.methods.sima.truth import description_truth
from polyptych.models.checkpoint import load_model
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.recipes import study_recipe
from polyptych.reproduce.sima.sets import (
    comparisons,
    corpus_chair,
    descriptions,
    existence_questions,
    with_mistakes,
)
from polyptych.reproduce.workshop import GroupBy, Run, Workshop
from polyptych.schema import Example
from polyptych.storybook.vocabulary import Split
from polyptych.training.preference_settings import PreferenceSettings
from polyptych.training.recipe import (
    DataRecipe,
    DataSource,
    LoraRecipe,
    Recipe,
)
from polyptych.training.supervised import train

VERDICT_TOKENS = 8
"""Longest verdict in words; the bases have practised saying ``1`` or ``2``."""

CRITICS: dict[str, CriticSettings] = {
    "sima": CriticSettings(prompt="brief"),
    "words": CriticSettings(prompt="brief", judge="words", max_new_tokens=VERDICT_TOKENS),
    "one_order": CriticSettings(prompt="brief", both_orders=False),
    "no_metrics": CriticSettings(prompt="brief", metrics=False),
    "no_truth": CriticSettings(prompt="brief", ground_truth=False),
    "random": CriticSettings(judge="random"),
    "truth": CriticSettings(judge="truth"),
}
"""Who judges; ``random`` and ``truth`` are what pairs are worth without and with a perfect one."""

SAMPLING = ("best_of_n", "temperature")
"""``sima`` with more candidates, and with colder ones."""

VARIANTS = ("base", *CRITICS, *SAMPLING, "sft")

REPEATED = ("base", "sima", "sft")
"""Variants that go on after the first iteration."""

ALSO = {"sima": ("random", "sft"), **dict.fromkeys(VARIANTS[2:], ("sima",))}
"""The loop is held against chance and against learning from the truth itself."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often the model improves itself."""

    iterations: int = 1
    split: Split = "test"
    """Whose pictures are described at the end."""

    @property
    def name(self) -> str:
        """``i1``, or ``v1`` over validation pictures."""
        return f"{'i' if self.split == 'test' else 'v'}{self.iterations}"


@dataclass(frozen=True, slots=True)
class SimaSettings:
    """Everything that decides the study; saved with its results."""

    start: str = "storybook-base"
    """What the bases begin with: it sees, and speaks of pictures."""
    descriptions: int = 6000
    """Descriptions that the base learns from."""
    noise: float = 0.5
    """Share of them that is wrong, on purpose: what makes the base hallucinate."""
    mistakes: int = 2
    """Most wrong words in a wrong description."""
    comparisons: int = 16000
    """Comparisons that the base practises judging on, over all forms of the prompt."""
    prompts: int = 1200
    """Descriptions that the model improves itself on; no base has seen them."""
    validation: int = 150
    """Validation pictures; they choose learning rates."""
    test: int = 400
    """Test pictures, never looked at before the end."""
    data_seed: int = 2405
    things: tuple[int, int] = (2, 3)
    """Least and greatest number of things in a picture; more do not fit into a comparison."""
    base_steps: int = 4000
    base_batch: int = 32
    base_learning_rate: float = 5e-4
    steps: int = 200
    """Steps of every variant in every iteration."""
    batch_size: int = 8
    """Pairs, or examples, of a step."""
    learning_rates: tuple[float, ...] = (1e-3, 2e-4)
    lora_rank: int = 16
    lora_alpha: int = 32
    temperature: float = 0.8
    cold_temperature: float = 0.2
    candidates: int = 4
    """Sampled answers of ``best_of_n``; the others have one."""
    variants: tuple[str, ...] = VARIANTS
    """What is run of them."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each has a base of its own."""
    rounds: Rounds = Rounds()
    more_rounds: tuple[Rounds, ...] = (Rounds(2), Rounds(3))
    """Further iterations, from the end of the first ones."""

    def quick(self) -> SimaSettings:
        """One seed, no grid, one iteration: a look at everything in a fraction of the time."""
        rates = self.learning_rates[:1]
        return replace(self, seeds=self.seeds[:1], learning_rates=rates, more_rounds=())


@dataclass(frozen=True)
class SimaWorkshop(Workshop):
    """The SIMA study over Storybook's descriptions.

    A run has no steps of its own: :meth:`build` gives the model that has improved itself, from
    files that a killed run takes up.
    """

    settings: SimaSettings
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    also: ClassVar[Mapping[str, tuple[str, ...]]] = ALSO
    answer_tokens: ClassVar[int] = 64

    @property
    def tasks(self) -> tuple[str, ...]:
        """Descriptions, and POPE's questions about the same pictures."""
        return ("description", "existence")

    @property
    def base_sets(self) -> Mapping[str, float | None]:
        """What a base learns from, in which shares; comparisons are twice as long as the others."""
        return {"noisy-train": 1, "existence-train": 1, "comparisons-train": 2}

    @cached_property
    def data(self) -> dict[str, Path]:
        """Name of a set -> its JSONL file; drawn where it is not there yet."""
        names = ("description-train", *self.base_sets)
        names += tuple(f"{t}-{s}" for s in ("validation", "test") for t in self.tasks)
        paths = {name: self.root / "data" / name / "records.jsonl" for name in names}
        for name, path in paths.items():
            if not path.exists():
                write_records(path, self._drawn(name, paths))
        return paths

    def _drawn(self, name: str, paths: Mapping[str, Path]) -> Iterator[Example]:
        settings, seed = self.settings, self.settings.data_seed
        what, _, split = name.partition("-")
        if name == "noisy-train":
            clean = self._descriptions("train", settings.descriptions, seed + 1)
            return with_mistakes(clean, settings.noise, settings.mistakes)
        if name == "comparisons-train":
            return comparisons(
                "train", count=settings.comparisons, seed=seed + 2, things=settings.things
            )
        if name == "existence-train":
            return existence_questions(list(read_records(paths["noisy-train"])), seed, ("random",))
        if what == "existence":
            return existence_questions(list(read_records(paths[f"description-{split}"])), seed)
        if split == "validation":
            return self._descriptions("validation", settings.validation, seed)
        if split == "test":
            return self._descriptions("test", settings.test, seed)
        return self._descriptions("train", settings.prompts, seed)

    def _descriptions(self, split: Split, count: int, seed: int) -> Iterator[Example]:
        return descriptions(split, count=count, seed=seed, things=self.settings.things)

    @property
    def scorers(self) -> Mapping[str, tuple[Scorer, ...]]:
        """CHAIR, coverage, truth and CIDEr; POPE."""
        return {
            "description": (
                corpus_chair(storybook_words()),
                item_scorer("truth[storybook]", description_truth),
                caption_scorer("cider"),
            ),
            "existence": (pope_scorer("strict"),),
        }

    @property
    def headline(self) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tables, by task."""
        chair = tuple(f"{name}[fixed]" for name in ("chair_i", "chair_s", "recall", "coverage"))
        return {
            "description": (*chair, "truth[storybook]", "cider[coco]"),
            "existence": ("accuracy[strict]", "f1[strict]", "yes_ratio[strict]"),
        }

    def groups(self, task: str) -> dict[str, GroupBy]:
        """Questions by category."""
        if task == "existence":
            return {"by_category": lambda example: example.metadata["category"]}
        return {}

    def answered(self, run: Run) -> str:
        """A grid run answers the validation sets: what it is worth lies in its answers."""
        return run.condition.split

    def merit(self, record: Mapping[str, Any]) -> float:
        """How true the descriptions of the validation pictures are."""
        return record["tasks"]["description"]["truth[storybook]"]

    def base(self, seed: int) -> Path:
        """The trained base of a seed."""
        return self.root / "bases" / f"seed{seed}" / "final"

    def fresh(self, seed: int) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """A base before its first step."""
        return load_model(self.settings.start)

    def train_base(self, seed: int) -> None:
        """A base that describes, with mistakes, answers questions, and has practised judging."""
        if self.base(seed).exists():
            return
        torch.set_num_threads(1)
        settings = self.settings
        model, processor = self.fresh(seed)
        recipe = study_recipe(
            f"base-seed{seed}",
            ("connector", "language_model"),
            self._data(self.base_sets),
            steps=settings.base_steps,
            batch_size=settings.base_batch,
            learning_rate=settings.base_learning_rate,
            seed=seed,
            save_every=200,
            micro_batch_size=settings.base_batch // 4,
        )
        train(recipe, out=self.base(seed).parent, model=model, processor=processor)

    def loop(self, run: Run) -> Path:
        """Where a variant improves; further iterations go on in the folder of the first ones."""
        rounds = run.condition.name if run.variant == "sft" else ""
        name = f"{run.variant}{rounds}-lr{run.learning_rate:g}-seed{run.seed}"
        return self.root / "loops" / name

    def build(self, run: Run) -> tuple[PreTrainedModel, PolyptychProcessor]:
        """The base; or what it has become by improving itself, or by learning from the truth."""
        start = str(self.base(run.seed))
        if run.variant == "base":
            return load_model(start)
        if run.variant == "sft":
            model, processor = load_model(start)
            train(self.recipe(run), out=self.loop(run), model=model, processor=processor)
            return load_model(str(self.loop(run) / "final"))  # adapters merged
        try:
            improve(
                start,
                self.prompts(),
                self.loop(run),
                settings=self.improvement(run),
                progress=False,
            )
        except PolyptychError:
            if not self._judged_nothing(run):
                raise
        models = self._models(run)
        return load_model(str(models[-1]) if models else start)

    def prompts(self) -> list[Prompt]:
        """What the model improves itself on."""
        return list(as_prompts(read_records(self.data["description-train"])))

    def _models(self, run: Run) -> list[Path]:
        """After each iteration; fewer than asked for where no pair was left."""
        return sorted(self.loop(run).glob("iteration-*/model"))[: run.condition.iterations]

    def improvement(self, run: Run) -> ImprovementSettings:
        """The loop of a variant: all are ``sima`` but for one thing."""
        settings = self.settings
        critic = CRITICS.get(run.variant, CRITICS["sima"])
        cold = run.variant == "temperature"
        return ImprovementSettings(
            sampling=SamplingSettings(
                samples=settings.candidates if run.variant == "best_of_n" else 1,
                temperature=settings.cold_temperature if cold else settings.temperature,
                max_new_tokens=self.answer_tokens,
                seed=run.seed,
            ),
            critic=replace(critic, seed=run.seed),
            tuning=self.tuning(run),
            iterations=run.condition.iterations,
            heldout=0.05,
        )

    def tuning(self, run: Run) -> PreferenceSettings:
        """How preferences are learned, by every variant that does."""
        settings = self.settings
        return PreferenceSettings(
            lora_rank=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            learning_rate=run.learning_rate,
            steps=settings.steps,
            global_batch_size=settings.batch_size,
            seed=run.seed,
            save_every=100,
        )

    def _judged_nothing(self, run: Run) -> bool:
        """Whether the newest iteration has no pair: a critic that prefers nothing changes nothing.

        That is an outcome of a variant and no failure of the study.
        """
        return any(counts["pairs"] == 0 for counts in self._pair_counts(run))

    def _pair_counts(self, run: Run) -> list[dict[str, Any]]:
        """Of every iteration of the run that has paired."""
        files = (folder / SUMMARY_FILE for folder in self.iterations(run))
        return [read_json(file) for file in files if file.exists()]

    def iterations(self, run: Run) -> list[Path]:
        """Folders of the run's iterations."""
        numbers = range(1, run.condition.iterations + 1)
        return [self.loop(run) / f"iteration-{number}" for number in numbers]

    def measure(
        self, run: Run, model: PreTrainedModel, processor: PolyptychProcessor
    ) -> dict[str, Any]:
        """Pairs, drops, and the critic's agreement with the scene graph, by iteration."""
        if run.variant in ("base", "sft"):
            return {}
        return {"critic": self._pair_counts(run), "finished": len(self._models(run))}

    def recipe(self, run: Run) -> Recipe:
        """Supervised fine-tuning on the prompts' ground truths, on adapters of the same size."""
        settings = self.settings
        return study_recipe(
            run.name,
            ("*.lora_*",),
            self._data({"description-train": None}),
            steps=settings.steps * run.condition.iterations,
            batch_size=settings.batch_size,
            learning_rate=run.learning_rate,
            seed=run.seed,
            save_every=200,
            lora=LoraRecipe(rank=settings.lora_rank, alpha=settings.lora_alpha),
        )

    def _data(self, shares: Mapping[str, float | None]) -> DataRecipe:
        train = tuple(
            DataSource(path=str(self.data[name]), weight=weight) for name, weight in shares.items()
        )
        exact = None not in shares.values()
        return DataRecipe(train=train, feature_cache=str(self.features), exact_shares=exact)
