"""The pieces of the SAM study: settings, data, the base model, and the variants that start from it.

All variants start as the *same function*: the guidance linears are zero, and the variants with
fewer parameters get wider feed-forward layers whose new output weights are zero. So a difference
at the end is a difference of what could be learned, not of size or luck at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ResNetConfig, ResNetModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from polyptych.data.records import read_records
from polyptych.evaluation.scorers import Scorer
from polyptych.evaluation.tasks.storybook import SCORERS
from polyptych.language.tokenizer import IMAGE_TOKEN, train_tokenizer
from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
from polyptych.models.checkpoint import ASSETS
from polyptych.models.processor import PolyptychProcessor
from polyptych.reproduce.base import pictures_of, teach_to_see
from polyptych.schema import Example
from polyptych.storybook.generation import RECORDS_FILE, write_dataset
from polyptych.vision.feature_cache import FeatureCache

VARIANTS = ("independent", "released", "paper")
GUIDANCE = {"independent": "off", "released": "released", "paper": "paper"}

ENCODER = ASSETS / "storybook-encoder"
"""The frozen encoder of all bases; trained by :mod:`polyptych.reproduce.encoder`."""

GroupBy = Callable[[Example], Any]
"""Puts a test example into a group, to see where a gain comes from."""

Change = Callable[[Sequence[Example]], list[Example]]
"""Makes a control out of a test set."""


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
    seeing_steps: int = 6000
    """Steps of 64 pictures that teach the base's visual tokens what is in a picture."""
    base_steps: int = 6000
    """Steps of the base on the tasks, every picture read alone."""
    base_learning_rate: float = 1e-3
    steps: int = 1500
    """Steps of every variant from the base."""
    grid_steps: int = 300
    """Steps of the shorter runs that choose a learning rate."""
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    budget: Budget = Budget()
    sweep: tuple[Budget, ...] = (Budget(1, 12), Budget(1), Budget(2))
    """Other budgets, with one seed each."""
    sweep_seeds: tuple[int, ...] = (0,)

    def quick(self) -> StudySettings:
        """One seed, one budget, no grid: a look at everything in a fraction of the time."""
        fields = {**asdict(self), "budget": self.budget, "sweep": ()}
        return StudySettings(**{**fields, "seeds": self.seeds[:1], "learning_rates": (1e-3,)})


@dataclass(frozen=True)
class Workshop:
    """Folders, data and judges of one study; here over Storybook.

    Args:
        root: Working folder: data, features, bases, runs.
        settings: Sizes.
        encoder: Folder of the frozen vision encoder.
    """

    root: Path
    settings: StudySettings
    encoder: Path

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is learned and tested, together in every run."""
        return ("group_captioning", "storytelling")

    @property
    def align_set(self) -> str:
        """Name of the set of single pictures."""
        return "description-train"

    @property
    def base_sets(self) -> tuple[str, ...]:
        """What the base learns its language from."""
        return tuple(f"{task}-train" for task in self.tasks)

    def teach_to_see(
        self, model: PolyptychSamForConditionalGeneration, features: FeatureCache
    ) -> None:
        """Prepare a fresh base's connector; see :mod:`polyptych.reproduce.base`."""
        examples = [
            example
            for name in (self.align_set, *(f"{task}-train" for task in self.tasks))
            for example in read_records(self.data[name])
        ]
        teach_to_see(model, pictures_of(examples), features, steps=self.settings.seeing_steps)

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
                write_dataset(
                    task, folder, count=count, split=split, seed=settings.data_seed, **options
                )
        return paths

    @property
    def features(self) -> Path:
        """Cached image features."""
        return self.root / "features"

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

    def controls(self, task: str) -> Mapping[str, Change]:
        """Changed test sets that every run answers, too: name -> change."""
        return {}

    def groups(self, task: str) -> dict[str, GroupBy]:
        """How a task's test results are broken down."""
        parts: dict[str, GroupBy] = {
            "by_pictures": lambda example: len(example.images),
            "by_things": things_per_picture,
        }
        if task == "group_captioning":
            parts["by_factor"] = lambda example: example.metadata["factor"]["type"]
        return parts


def things_per_picture(example: Example) -> str:
    """Mean number of things in the example's pictures, in three ranges."""
    mean = np.mean([len(scene["things"]) for scene in example.metadata["scenes"]])
    return "3-4.5" if mean < 4.5 else "4.5-6" if mean < 6 else "6-8"


def build_processor(encoder: Path, data: dict[str, Path], tokens: int) -> PolyptychProcessor:
    """A tokenizer trained on the training texts, and the encoder's image processor."""

    def texts() -> Any:
        for name, path in data.items():
            if name.endswith("-train"):
                for example in read_records(path):
                    yield from (message.text for message in example.messages)

    return PolyptychProcessor(
        BlipImageProcessorPil.from_pretrained(encoder),
        train_tokenizer(texts(), vocab_size=1024),
        tokens_per_image=tokens,
        template="qa",
        max_length=256,
    )


def build_base(
    encoder: Path, processor: PolyptychProcessor, budget: Budget, seed: int
) -> PolyptychSamForConditionalGeneration:
    """The model before alignment: trained encoder, random Q-Former and language model.

    The Q-Former keeps the published index rule (cross-attention in even layers, an even number of
    layers), so that ``released`` guidance meets the same limits as in the paper's model.
    """
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    config = PolyptychSamConfig(
        guidance="off",
        vision_config=ResNetConfig.from_pretrained(encoder),
        qformer_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "cross_attention_frequency": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            # 0.02 is made for widths of thousands: at 128 the attention starts so flat that the
            # model finds no visual token within thousands of steps; 1 / sqrt(128) finds them soon.
            "initializer_range": 128**-0.5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=budget.tokens,
        visual_token_width=budget.width,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        instruction_aware=False,
    )
    model = PolyptychSamForConditionalGeneration(config)
    trained = ResNetModel.from_pretrained(encoder)
    model.vision_encoder.model.load_state_dict(trained.state_dict())
    return model


def build_variant(
    base: PolyptychSamForConditionalGeneration, variant: str, seed: int
) -> PolyptychSamForConditionalGeneration:
    """A variant that computes exactly what the base computes, with as many parameters as any."""
    largest = connector_size(_with_guidance(base, "paper", 0, seed))
    guidance = GUIDANCE[variant]
    model = _with_guidance(base, guidance, 0, seed)
    qformer = base.config.qformer_config
    per_unit = qformer.num_hidden_layers * (2 * qformer.hidden_size + 1)
    extra = -(-(largest - connector_size(model)) // per_unit)
    return _with_guidance(base, guidance, extra, seed) if extra else model


def connector_size(model: PolyptychSamForConditionalGeneration) -> int:
    """Parameters of the connector, guidance included."""
    return sum(p.numel() for p in model.connector.parameters())


def _with_guidance(
    base: PolyptychSamForConditionalGeneration, guidance: str, extra: int, seed: int
) -> PolyptychSamForConditionalGeneration:
    """The base's weights under another form of guidance, ``extra`` units wider."""
    torch.manual_seed(seed)
    fields = base.config.to_dict()
    fields.pop("model_type")
    fields["guidance"] = guidance
    fields["qformer_config"]["intermediate_size"] += extra
    model = PolyptychSamForConditionalGeneration(PolyptychSamConfig(**fields))
    own, theirs = model.state_dict(), base.state_dict()
    for name, value in theirs.items():
        if own[name].shape != value.shape:
            theirs = {**theirs, name: _widened(own[name], value, name)}
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected and all("guidance" in name for name in missing)
    model.copy_qformer_to_w_former()
    return model


@torch.no_grad()
def _widened(random: torch.Tensor, value: torch.Tensor, name: str) -> torch.Tensor:
    """Old weights, then new hidden units: random going in, zero coming out."""
    result = torch.zeros_like(random) if ".down." in name else random.clone()
    result[tuple(slice(0, size) for size in value.shape)] = value
    return result
