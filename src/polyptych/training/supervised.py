"""Supervised training: next-token loss on the answers, over ``transformers.Trainer``.

What is added to the Trainer is little: frozen modules that are truly still, a data order that is
fixed before the first step (so that a resumed run, another micro batch size or more processes see
the same batches), checkpoints that hold only what changes, and selection by generated answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import nn
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
from polyptych.training.account import count_data
from polyptych.training.arguments import training_arguments
from polyptych.training.building import build_model
from polyptych.training.checkpoints import (
    PROCESSES,
    WEIGHTS,
    check_processes,
    load_trained,
    trained_parameters,
)
from polyptych.training.cpu_attention import attention_for
from polyptych.training.data import TrainingData
from polyptych.training.freezing import (
    checkpoint_frozen_layers,
    frozen_modules,
    select_trainable,
    set_to_eval,
)
from polyptych.training.labelled import (
    adds_to_the_loss,
    chosen_states,
    labelled_loss,
    predicting,
)
from polyptych.training.low_rank import (
    add_low_rank,
    learn_low_rank,
    load_merged,
    merged_weights,
    quantize,
)
from polyptych.training.optimization import parameter_groups
from polyptych.training.parallel import keep_in_step, shard_decoder_layers
from polyptych.training.recipe import Recipe
from polyptych.training.run_folder import RunFolder, said_if_unsaved
from polyptych.training.summary import summary
from polyptych.training.tracking import Tracker
from polyptych.training.validation import Validation


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
    parallel: str = "ddp",
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
        parallel: How the processes that ``torchrun`` has started share the work: a name or file,
            see :mod:`polyptych.training.parallel`. Results do not depend on it.
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
    args = training_arguments(recipe, folder, parallel)
    is_main = args.process_index == 0
    set_seed(recipe.seed)
    data = TrainingData(recipe, train_examples, validation_examples)
    if model is None:
        model, processor = build_model(recipe.model, data.texts)
    elif processor is None:
        raise PolyptychError("a model was given without its processor")
    _choose_trained(recipe, model)
    data.drop_unfit(processor)
    told = {"data": data.fingerprints, "model": _description(model)}
    with args.main_process_first(local=False, desc="opening the run's folder"):
        checkpoint = folder.open(recipe, told, resume=resume, is_main=is_main)
    if folder.result.exists():
        (load_trained if recipe.lora is None else load_merged)(model, folder.final)
        return TrainResult(**json.loads(folder.result.read_text(encoding="utf-8")))
    if checkpoint is not None:
        check_processes(checkpoint, parallel)

    account = count_data(data.sets, processor, data.dropped)
    model.to(args.device)  # type: ignore[arg-type]
    with args.main_process_first(local=False, desc="filling caches, which one process may do"):
        features = data.features(model, processor)
        states = data.states(model, processor, features)
    collator = Collator(processor, training=True, features=features, states=states)
    if is_main:
        folder.write_json(folder.data, asdict(account))
        folder.write_dropped(data.problems)
        if progress:
            print(summary(recipe, model, data, account, args.world_size), flush=True)
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
    shard_decoder_layers(args, model)
    zero = args.deepspeed_plugin
    in_step = keep_in_step(model, whole_weights=zero is None or zero.zero_stage < 3)
    try:
        trainer = SupervisedTrainer(
            recipe,
            model,
            folder,
            tracker,
            validation,
            args,
            parallel=parallel,
            train_dataset=data.train,
            data_collator=collator,
            processing_class=processor,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer.finish()
    except PolyptychError as error:
        raise PolyptychError(_last_line(error)) from error
    except OSError as error:
        raise PolyptychError(f"{folder.path}: {error.strerror or error}") from error
    finally:
        in_step.remove()
        tracker.close()


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
        parallel: str,
        **kwargs: Any,
    ) -> None:
        self.parallel = parallel
        self.recipe, self.folder, self.tracker = recipe, folder, tracker
        self.validation, self.learner = validation, model
        fields = dict(model.config.__dict__)
        super().__init__(
            model=model,
            args=args,
            callbacks=[tracker],
            compute_loss_func=None if adds_to_the_loss(model) else labelled_loss,
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
        """The loss, with frozen modules in evaluation mode and no cache."""
        set_to_eval(self.frozen)
        self.tracker.count(inputs["image_counts"])
        inputs = {**inputs, "use_cache": False}
        if self.compute_loss_func is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with chosen_states(self.learner.get_output_embeddings(), *predicting(inputs["labels"])):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward, where checkpointed layers run again by the same kernels."""
        with attention_for(self.recipe.precision, self.args.device):
            return super().training_step(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any) -> Any:
        """The next step's batches; the time until they are there is waited for data."""
        return super().get_batch_samples(self.tracker.waiting(epoch_iterator), *args)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, log, and keep the model if it is the best so far."""
        assert self.validation is not None
        with self.tracker.paused():
            metrics = self.validation(self.learner)
            step = self.state.global_step
            self.tracker.validated(step, metrics)
            best = self.folder.notes(self.folder.best)
            better = self.validation.is_better(metrics, best and best["validation"])
            if broadcast_object_list([better])[0]:  # the main process may have written meanwhile
                notes = {"name": self.recipe.name, "step": step, "validation": metrics}
                self._save_whole(self.folder.best, notes)
        prefixed = {f"eval_{name}": value for name, value in metrics.items()}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, prefixed
        )
        return prefixed

    def finish(self) -> TrainResult:
        """Save the last model and the result."""
        folder, recipe = self.folder, self.recipe
        self.learner.eval()
        if recipe.gradient_checkpointing:
            self.learner.gradient_checkpointing_disable()
        self.accelerator.wait_for_everyone()  # the best model is written
        best = folder.notes(folder.best)
        result = TrainResult(
            name=recipe.name,
            steps=recipe.steps,
            loss=self.tracker.last["loss"],
            validation=best["validation"] if best else None,
            best_step=best["step"] if best else None,
            seconds=self.tracker.last["seconds"],
            final=str(folder.final),
            best=str(folder.best) if best else None,
        )
        notes = {"name": recipe.name, "step": recipe.steps, "loss": result.loss}
        self._save_whole(folder.final, notes)
        if self.is_world_process_zero():
            folder.write_json(folder.result, asdict(result))
        self.accelerator.wait_for_everyone()
        return result

    def _save_whole(self, target: Path, notes: dict[str, Any]) -> None:
        """Save the whole model, to be called by all processes."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        weights = self.accelerator.get_state_dict(self.model_wrapped) if sharded else None
        if self.recipe.lora is not None:
            weights = merged_weights(self.learner, weights)
        if self.is_world_process_zero():
            self.folder.save_model(target, self.learner, self.processing_class, notes, weights)

    # Checkpoints hold what training changes; frozen weights come from the recipe's start. They are
    # written aside and renamed, so that what has a checkpoint's name is whole.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder.saving)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.tracker.paused(), said_if_unsaved(self.folder.checkpoints):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # each process writes its random numbers
            if self.is_world_process_zero():
                self.folder.publish_checkpoint(self.state.global_step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.folder.saving)
        folder.mkdir(parents=True, exist_ok=True)
        trained = trained_parameters(self.learner)
        if state_dict is not None:  # gathered from all processes
            trained = {name: state_dict[name].contiguous() for name in trained}
        save_file(trained, folder / WEIGHTS)
        spread = {"parallel": self.parallel, "processes": self.args.world_size}
        self.folder.write_json(folder / PROCESSES, spread)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.learner, Path(resume_from_checkpoint))


def _choose_trained(recipe: Recipe, model: PreTrainedModel) -> None:
    """Put adapters where the recipe has them, and let learn what it trains."""
    if recipe.model.quantization is not None:
        quantize(model)
    if recipe.lora is not None:
        add_low_rank(model, recipe.lora)
    select_trainable(model, recipe.trainable)
    if recipe.lora is not None:
        learn_low_rank(model)


def _description(model: PreTrainedModel) -> dict[str, Any]:
    config = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("transformers_version", "_name_or_path"):
        config.pop(name, None)
    return {"start": model_hash(model), "config": config}


def _last_line(error: Exception) -> str:
    """An error's own line; one from a worker process comes wrapped in that process's traceback."""
    line = str(error).strip().splitlines()[-1]
    return line.removeprefix(f"{PolyptychError.__module__}.PolyptychError: ")
