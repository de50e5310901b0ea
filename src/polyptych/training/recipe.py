"""A recipe: everything that decides how a training run goes, in one frozen value.

Each field says what it is; its default is written here and nowhere else. A run saves its recipe
with all values filled in, and goes on only under an equal one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from polyptych.errors import PolyptychError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelRecipe(_Part):
    """Where training starts."""

    checkpoint: str | None = None
    """Saved model (folder or bundled name) whose weights, config and processor are the start; None
    builds a random model from ``config``."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's config; on top of a checkpoint's, whose fitting weights are kept. With
    another ``model_type`` a base becomes the start of a method."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Part of the model (``vision_encoder``, ``connector.qformer`` ...) -> checkpoint that its
    weights are taken from. ``language_model`` also takes any causal LM of transformers."""
    processor: str | None = None
    """Folder of the processor where the checkpoint has none."""
    tokenizer_size: int | None = Field(default=None, gt=4)
    """Without checkpoint and processor: train a tokenizer of so many tokens on the training sets'
    words."""
    quantization: Literal["nf4"] | None = None
    """``nf4`` keeps the language model's linear layers in 4 bits (QLoRA, with ``lora``); needs a
    GPU and bitsandbytes."""
    layout: dict[str, Any] = Field(default_factory=dict)
    """Row layout, on top of a loaded processor's: fields of
    :class:`polyptych.data.tokenization.TokenizationSettings`."""


class LoraRecipe(_Part):
    """Low-rank adapters on the language model's linear layers, but its head."""

    rank: int = Field(default=16, gt=0)
    """r."""
    alpha: int = Field(default=32, gt=0)
    """Adapters are scaled by alpha / r."""


class DataSource(_Part):
    """One set of native records."""

    path: str
    """JSONL file or folder with one; or shards (``s3://bucket/train-*.tar``), see
    :mod:`polyptych.data.shards`."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the draws, relative to the other sources; None in all: every example equally."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first so many examples."""


class DataRecipe(_Part):
    """What is learned from and what is looked at on the way."""

    train: tuple[DataSource, ...] = ()
    """Training sets; a plain path stands for a source without weight."""
    validation: tuple[DataSource, ...] = ()
    """Sets that choose the best checkpoint; never the test set."""
    feature_cache: str | None = None
    """Folder of image features by image hash, filled as needed; only for a frozen encoder."""
    state_cache: str | None = None
    """Folder of the states that enter the decoder layer where the trained method acts, filled as
    needed; only where nothing below that layer is trained."""
    exact_shares: bool = False
    """Every step holds each source's share exactly (24 of one and 64 of another), instead of on
    average; with a ``micro_batch_size``, a pass holds examples of one source where shares allow."""
    random_shots: int | None = Field(default=None, gt=0)
    """An example has its first 1 to so many shots, by a chance that is drawn anew each time it
    comes; None: all that its record has."""
    shard_cache: str | None = None
    """Folder for shards that are fetched from elsewhere; None: in the system's temporary folder."""
    shard_cache_bytes: int | None = Field(default=None, gt=0)
    """How much of them is kept (those used longest ago go first); None: 64 GiB."""
    drop_bad: bool = False
    """Leave out records that cannot be read, learned from or held by the model, counted by reason
    before the first step (which reads all records once); otherwise the first one ends the run."""
    workers: int = Field(default=0, ge=0)
    """Processes that decode images; 0 decodes in the training process."""

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _paths_are_sources(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str) else value
        return [{"path": item} if isinstance(item, str) else item for item in values]


class OptimizerRecipe(_Part):
    """AdamW and its schedule. Defaults are InstructBLIP's where it gives one (2305.06500, 2.6)."""

    learning_rate: float = Field(default=1e-5, ge=0)
    """Peak learning rate."""
    learning_rate_multipliers: dict[str, float] = Field(default_factory=dict)
    """Pattern over parameter names -> factor on the learning rate; the last that matches counts."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled decay of matrices; norms, biases and other vectors have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moment estimates."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 for never."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear growth from zero to the peak."""


class ValidationRecipe(_Part):
    """How the validation sets are used while training."""

    every: int | None = Field(default=None, gt=0)
    """Steps between validations; None validates once, after the last step."""
    examples: int | None = Field(default=None, gt=0)
    """Only the first so many validation examples."""
    batch_size: int = Field(default=32, gt=0)
    """Examples per forward pass or generation."""
    select_by: Literal["cider", "loss"] = "cider"
    """What the best checkpoint is best in: CIDEr of greedy answers, or the loss (no generation)."""
    max_new_tokens: int = Field(default=40, gt=0)
    """Length limit of the answers."""


class Recipe(_Part):
    """One training run."""

    name: str = "run"
    """Names the run in logs."""
    stage: Literal["align", "finetune"] = "finetune"
    """``align``: single pictures teach the base to see; an example with more is an error.
    ``finetune``: groups of pictures."""
    model: ModelRecipe = ModelRecipe()
    """Where training starts."""
    trainable: tuple[str, ...] = ("connector",)
    """Patterns of what is trained; everything else is frozen. A pattern is the beginning of a
    parameter name in whole dotted pieces (``connector``, ``language_model.model.layers.0``), also
    without the part it lies in (``guidance``), or a glob over the whole name; one that starts with
    ``!`` takes back what earlier ones chose."""
    lora: LoraRecipe | None = None
    """Train low-rank adapters of the language model beside ``trainable``; saved models have them
    merged."""
    data: DataRecipe = DataRecipe()
    """What is learned from."""
    optimizer: OptimizerRecipe = OptimizerRecipe()
    """AdamW and its schedule."""
    steps: int = Field(default=1000, gt=0)
    """Optimizer steps."""
    global_batch_size: int = Field(default=32, gt=0)
    """Examples per optimizer step, over all processes."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Examples per forward pass and process; the rest is gradient accumulation. None: all."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` computes under autocast; weights and optimizer stay as loaded."""
    seed: int = 0
    """Decides initial weights, order of the data and dropout."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of torch; None leaves torch's choice."""
    log_every: int = Field(default=10, gt=0)
    """Steps between lines of ``metrics.jsonl``."""
    save_every: int | None = Field(default=None, gt=0)
    """Steps between resumable checkpoints; None saves only the end."""
    validation: ValidationRecipe = ValidationRecipe()
    """How the validation sets are used."""
    tensorboard: bool = True
    """Write TensorBoard events where the package is installed."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise PolyptychError(f"recipe: {_first_problem(error)}") from None

    def with_overrides(self, overrides: Iterable[str]) -> Recipe:
        """The recipe with ``optimizer.learning_rate=1e-3`` and the like put in.

        Values are read as JSON, and as plain text where they are none.

        Raises:
            PolyptychError: For an assignment without ``=``, an unknown field or a bad value.
        """
        values = self.model_dump(mode="json")
        for override in overrides:
            path, equals, text = override.partition("=")
            if not equals:
                raise PolyptychError(f"override {override!r} is no FIELD=VALUE")
            *parents, last = path.strip().split(".")
            place: Any = values
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise PolyptychError(f"override {override!r}: the recipe has no {path.strip()}")
            place[last] = _value(text.strip())
        return Recipe(**values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "recipe"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first['msg']}, got {first['input']!r}{more}"


def read_recipe(path: str | Path) -> Recipe:
    """The recipe that a run saved in its ``recipe.json``."""
    try:
        return Recipe(**json.loads(Path(path).read_text(encoding="utf-8"))["recipe"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise PolyptychError(f"{path}: no readable recipe ({error})") from error
