"""Supervised training: next-token loss on the answers, over ``transformers.Trainer``.

What is added to the Trainer is little: frozen modules that are truly still, a data order that is
fixed before the first step (so that a resumed run, another micro batch size or more processes see
the same batches), checkpoints that hold only what changes, and selection by generated answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    IntervalStrategy,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import model_hash
from polyptych.schema import Example
from polyptych.training.building import build_model, read_weights
from polyptych.training.data import TrainingData
from polyptych.training.freezing import (
    checkpoint_frozen_layers,
    frozen_modules,
    select_trainable,
    set_to_eval,
)
from polyptych.training.optimization import parameter_groups
from polyptych.training.recipe import Recipe
from polyptych.training.run_folder import RunFolder, said_if_unsaved
from polyptych.training.summary import summary
from polyptych.training.tracking import Tracker
from polyptych.training.validation import Validation

_WEIGHTS = "model.safetensors"
"""The name under which the Trainer looks for weights in a checkpoint."""

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended; also written to ``result.json``."""

    name: str
    steps: int
    loss: float
    """Training loss of the last logged steps."""
    validation: dict[str, float] | None
    """Metrics of the best checkpoint, None without validation sets."""
    best_step: int | None
    seconds: float
    """Of training and validation, over all sessions."""
    final: str
    """Folder of the last model."""
    best: str | None
    """Folder of the best model by validation."""


def train(
    recipe: Recipe,
    *,
    out: str | Path,
    resume: bool = True,
    model: PreTrainedModel | None = None,
    processor: Any = None,
    train_examples: Sequence[Example] | None = None,
    validation_examples: Sequence[Example] | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train by a recipe; a killed run of the same recipe in ``out`` goes on where it was.

    Afterwards the model holds the weights of the last step, also where the run was finished before.

    Args:
        recipe: Everything that decides the run.
        out: The run's folder, see :mod:`polyptych.training.run_folder`.
        resume: False removes an earlier run in ``out`` and starts again.
        model: Trained in place of the recipe's; give ``processor`` with it.
        processor: The processor of ``model``.
        train_examples: Learned from in place of the recipe's training sets.
        validation_examples: Looked at in place of the recipe's validation sets.
        progress: Print a summary and show a bar on stderr.

    Raises:
        PolyptychError: For a recipe that cannot be run (nothing to train, no data, batch sizes that
            do not divide), another recipe's run in ``out``, bad records, or a loss that is no
            number.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    folder = RunFolder(out)
    args = training_arguments(recipe, folder)  # also joins the group of processes, if there is one
    set_seed(recipe.seed)
    data = TrainingData(recipe, train_examples, validation_examples)
    if model is None:
        model, processor = build_model(recipe.model, data.texts)
    elif processor is None:
        raise PolyptychError("a model was given without its processor")
    select_trainable(model, recipe.trainable)
    told = {"data": data.fingerprints, "model": _description(model)}
    with args.main_process_first(desc="opening the run's folder"):
        checkpoint = folder.open(recipe, told, resume=resume)
    if folder.result.exists():
        load_trained(model, folder.final)
        return TrainResult(**json.loads(folder.result.read_text(encoding="utf-8")))

    model.to(args.device)  # type: ignore[arg-type]
    features = data.features(model, processor)
    states = data.states(model, processor, features)
    collator = Collator(processor, training=True, features=features, states=states)
    if progress:
        print(summary(recipe, model, data, collator), flush=True)
    tracker = Tracker(
        folder.metrics,
        steps=recipe.steps,
        flush_at=tuple(n for n in (recipe.save_every, recipe.validation.every) if n),
        tensorboard=folder.path if recipe.tensorboard else None,
        progress=progress,
    )
    validation = None
    if data.validation:
        args.eval_strategy = IntervalStrategy.STEPS
        validation = Validation(
            data.validation,
            processor,
            recipe.validation,
            features=features,
            autocast=recipe.precision == "bf16",
        )
    trainer = SupervisedTrainer(
        recipe,
        model,
        folder,
        tracker,
        validation,
        args,
        train_dataset=data.train,
        data_collator=collator,
        processing_class=processor,
    )
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except PolyptychError as error:
        raise PolyptychError(_last_line(error)) from error
    except OSError as error:
        raise PolyptychError(f"{folder.path}: {error.strerror or error}") from error
    finally:
        tracker.close()
    return _finish(recipe, folder, tracker, model, processor)


class SupervisedTrainer(Trainer):
    """The Trainer with frozen modules at rest, small checkpoints and the run's own validation."""

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        folder: RunFolder,
        tracker: Tracker,
        validation: Validation | None,
        args: TrainingArguments,
        **kwargs: Any,
    ) -> None:
        self.recipe, self.folder, self.tracker = recipe, folder, tracker
        self.validation, self.learner = validation, model
        fields = dict(model.config.__dict__)
        super().__init__(
            model=model,
            args=args,
            callbacks=[tracker],
            eval_dataset=validation.examples if validation else None,
            **kwargs,
        )
        model.config.__dict__ = fields  # the Trainer writes use_cache=False into it, to be saved
        self.remove_callback(PrinterCallback)
        self.frozen = frozen_modules(model)
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            checkpoint_frozen_layers(self.frozen)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """The order was drawn beforehand."""
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the groups of :func:`parameter_groups`."""
        if self.optimizer is None:
            settings = self.recipe.optimizer
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.learner, settings),
                lr=settings.learning_rate,
                betas=settings.betas,
                eps=settings.eps,
                fused=True,
            )
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The model's own loss, with frozen modules in evaluation mode and no cache."""
        set_to_eval(self.frozen)
        self.tracker.count(inputs["image_counts"])
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, log, and keep the model if it is the best so far."""
        assert self.validation is not None
        with self.tracker.paused():
            metrics = self.validation(self.learner)
            step = self.state.global_step
            self.tracker.validated(step, metrics)
            best = self.folder.notes(self.folder.best)
            better = self.validation.is_better(metrics, best and best["validation"])
            if better and self.is_world_process_zero():
                notes = {"name": self.recipe.name, "step": step, "validation": metrics}
                self.folder.save_model(self.folder.best, self.learner, self.processing_class, notes)
        prefixed = {f"eval_{name}": value for name, value in metrics.items()}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, prefixed
        )
        return prefixed

    # Checkpoints hold what training changes; frozen weights come from the recipe's start.

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.tracker.paused(), said_if_unsaved(self.folder.checkpoints):
            super()._save_checkpoint(*args, **kwargs)
            if self.is_world_process_zero():
                self.folder.complete_checkpoint(self.state.global_step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.folder.checkpoints)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_parameters(self.learner), folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.learner, Path(resume_from_checkpoint))


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put the trained parameters that a checkpoint or a saved model holds into the model.

    Raises:
        PolyptychError: If one of them is not there.
    """
    saved = read_weights(folder)
    trained = trained_parameters(model)
    missing = sorted(trained.keys() - saved.keys())
    if missing:
        raise PolyptychError(f"{folder}: {len(missing)} weights are missing: {missing[0]} ...")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(saved[name])


def batch_split(recipe: Recipe, processes: int) -> tuple[int, int]:
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


def _description(model: PreTrainedModel) -> dict[str, Any]:
    config = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("transformers_version", "_name_or_path"):
        config.pop(name, None)
    return {"start": model_hash(model), "config": config}


def training_arguments(recipe: Recipe, folder: RunFolder) -> TrainingArguments:
    """The recipe in the Trainer's words, for this process."""
    args = TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=recipe.steps,
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
    )
    args.per_device_train_batch_size, args.gradient_accumulation_steps = batch_split(
        recipe, args.world_size
    )
    return args


def _finish(
    recipe: Recipe, folder: RunFolder, tracker: Tracker, model: PreTrainedModel, processor: Any
) -> TrainResult:
    """Save the last model and the result."""
    model.eval()
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    best = folder.notes(folder.best)
    result = TrainResult(
        name=recipe.name,
        steps=recipe.steps,
        loss=tracker.last["loss"],
        validation=best["validation"] if best else None,
        best_step=best["step"] if best else None,
        seconds=tracker.last["seconds"],
        final=str(folder.final),
        best=str(folder.best) if best else None,
    )
    if PartialState().is_main_process:
        notes = {"name": recipe.name, "step": recipe.steps, "loss": result.loss}
        folder.save_model(folder.final, model, processor, notes)
        folder.write_json(folder.result, asdict(result))
    return result


def _last_line(error: Exception) -> str:
    """An error's own line; one from a worker process comes wrapped in that process's traceback."""
    line = str(error).strip().splitlines()[-1]
    return line.removeprefix(f"{PolyptychError.__module__}.PolyptychError: ")
