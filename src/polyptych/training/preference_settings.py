"""What decides a preference tuning, in one frozen value; SIMA's published numbers are the defaults.

Each field says what it is; its default is written here and nowhere else. This file imports no
torch, so that commands which only show or read settings stay fast.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyptych.errors import PolyptychError

Variant = Literal["plain", "released"]


class PreferenceSettings(BaseModel):
    """Direct preference optimization (arXiv 2305.18290) as SIMA does it (2405.15973)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    variant: Variant = "plain"
    """``plain``: DPO, as in the paper. ``released``: as in the published trainer file, where the
    rejected side is scored with the model's own best token that is not the label."""
    beta: float = Field(default=0.1, gt=0)
    """How far the policy may go from the reference: large is near."""
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """What is made of the margin."""
    lora_rank: int = Field(default=128, gt=0)
    """r of the adapters."""
    lora_alpha: int = Field(default=256, gt=0)
    """Adapters are scaled by alpha / r."""
    train_connector: bool = False
    """Train the connector, too. The published script asks for it and freezes it by mistake."""
    connector_learning_rate: float = Field(default=2e-5, ge=0)
    """Peak learning rate of the connector, where it is trained."""
    learning_rate: float = Field(default=1e-7, ge=0)
    """Peak learning rate of the adapters."""
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate grows from zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; cosine and linear end at zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 for never."""
    epochs: int = Field(default=3, gt=0)
    """Passes over the pairs, where ``steps`` does not say otherwise."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; None: as many as ``epochs`` take."""
    global_batch_size: int = Field(default=8, gt=0)
    """Pairs per optimizer step, over all processes; published: 1 per device."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Pairs per forward pass and process; the rest is gradient accumulation. None: all."""
    max_length: int | None = Field(default=2048, gt=0)
    """Longest prompt with an answer, visual tokens included; answers are cut at their end. The
    model's own limit holds, too."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` loads the frozen weights in it and computes under autocast; adapters stay fp32."""
    feature_cache: str | None = None
    """Folder of image features by image hash, so that an image is encoded once for all epochs."""
    reference: str | None = None
    """File of reference log-probabilities, shared by runs on the same model and pairs; None: one
    in the run's folder."""
    seed: int = 0
    """Decides the adapters' start and the order of the pairs."""
    log_every: int = Field(default=10, gt=0)
    """Steps between lines of ``metrics.jsonl``."""
    save_every: int | None = Field(default=200, gt=0)
    """Steps between resumable checkpoints; None saves only the end."""
    workers: int = Field(default=0, ge=0)
    """Processes that decode images; 0 decodes in the training process."""
    tensorboard: bool = False
    """Write TensorBoard events where the package is installed. There is no other tracker."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "settings"
            raise PolyptychError(
                f"preference settings: {where}: {problem['msg']}, got {problem['input']!r}"
            ) from None

    def with_overrides(self, overrides: Iterable[str]) -> PreferenceSettings:
        """The settings with ``learning_rate=1e-5`` and the like put in.

        Raises:
            PolyptychError: For an assignment without ``=``, an unknown field or a bad value.
        """
        values = self.model_dump()
        for override in overrides:
            name, equals, text = override.partition("=")
            if not equals:
                raise PolyptychError(f"override {override!r} is no FIELD=VALUE")
            try:
                values[name.strip()] = json.loads(text)
            except json.JSONDecodeError:
                values[name.strip()] = text.strip()
        return PreferenceSettings(**values)

    def step_count(self, pairs: int) -> int:
        """Optimizer steps of a run over so many pairs."""
        return self.steps or -(-self.epochs * pairs // self.global_batch_size)
