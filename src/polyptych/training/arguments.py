"""The recipe in the words of ``transformers.TrainingArguments``."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import TrainingArguments

from polyptych.errors import PolyptychError
from polyptych.training.parallel import parallel_arguments, process_count
from polyptych.training.recipe import Recipe
from polyptych.training.run_folder import RunFolder

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class SupportsBatches(Protocol):
    """What says how many examples make a step."""

    @property
    def global_batch_size(self) -> int:
        """Examples per optimizer step, over all processes."""

    @property
    def micro_batch_size(self) -> int | None:
        """Examples per forward pass and process; None: all."""


def batch_split(recipe: SupportsBatches, processes: int) -> tuple[int, int]:
    """Examples per forward pass, and how many passes make a step.

    Raises:
        PolyptychError: If they do not divide the global batch.
    """
    whole = recipe.global_batch_size
    micro = recipe.micro_batch_size or whole // processes
    if micro == 0 or whole % (micro * processes):
        raise PolyptychError(
            f"recipe: a global batch of {whole} is no multiple of {max(micro, 1)} examples x "
            f"{processes} processes"
        )
    return micro, whole // (micro * processes)


def training_arguments(recipe: Recipe, folder: RunFolder, parallel: str) -> TrainingArguments:
    """The recipe in the Trainer's words, for this process; joins the group of processes.

    Raises:
        PolyptychError: If the batch does not divide among the processes, or they cannot be run
            this way.
    """
    micro, passes = batch_split(recipe, process_count())
    fields: dict[str, Any] = parallel_arguments(parallel)
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=recipe.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=passes,
        learning_rate=recipe.optimizer.learning_rate,
        lr_scheduler_type=_SCHEDULES[recipe.optimizer.schedule],
        warmup_steps=recipe.optimizer.warmup_steps,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        bf16=recipe.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        seed=recipe.seed,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_every or recipe.steps,
        eval_steps=recipe.validation.every or recipe.steps,
        dataloader_num_workers=recipe.data.workers,
        dataloader_persistent_workers=recipe.data.workers > 0,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        **fields,
    )
