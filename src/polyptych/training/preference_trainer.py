"""The trainer of preference tuning: TRL's, with this package's rows, loss and files.

TRL wraps the model with PEFT, switches adapters off for the reference, averages and logs. Exchanged
are the batch (one branching row per pair), the loss (:func:`polyptych.training.dpo.dpo_loss` over
labelled positions alone), the reference (on disk, also for images), and what is written and sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, TrainerControl, TrainerState
from trl import DPOConfig, DPOTrainer

from polyptych.errors import PolyptychError
from polyptych.training.branching import scored_logits
from polyptych.training.checkpoints import WEIGHTS, load_trained, trained_parameters
from polyptych.training.dpo import answer_log_probs, dpo_loss
from polyptych.training.freezing import checkpoint_frozen_layers, set_to_eval
from polyptych.training.lora import CONNECTOR, lora_config
from polyptych.training.preference_data import PreferenceCollator, TwoRowCollator
from polyptych.training.preference_settings import PreferenceSettings
from polyptych.training.reference_log_probs import ReferenceLogProbs, pair_hash
from polyptych.training.run_folder import RunFolder, said_if_unsaved
from polyptych.training.tracking import Tracker

LOGGED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
"""What is logged beside the loss, by TRL's names."""


class PreferenceTracker(Tracker):
    """Lines of ``metrics.jsonl`` with rewards and log-probabilities."""

    _rewards: Mapping[str, float] = {}

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a line for a logged step."""
        self._rewards = {name: logs[name] for name in LOGGED if name in logs} if logs else {}
        super().on_log(args, state, control, logs, **kwargs)

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        super()._write(step, {**values, **self._rewards})


class PreferenceTrainer(DPOTrainer):
    """TRL's trainer over branching rows.

    Args:
        settings: Everything that decides the run.
        model: The start, which is the reference as well; gets adapters.
        processor: Of the model.
        collator: Over the pairs.
        order: Index of the pair of every draw of the run.
        folder: Of the run.
        tracker: Writes its metrics.
        args: TRL's words for the settings.
    """

    def __init__(
        self,
        settings: PreferenceSettings,
        model: Any,
        processor: Any,
        collator: PreferenceCollator | TwoRowCollator,
        order: Sequence[int],
        folder: RunFolder,
        tracker: PreferenceTracker,
        args: DPOConfig,
    ) -> None:
        self.settings, self.folder, self.tracker = settings, folder, tracker
        self.collator, self.pairs = collator, collator.pairs
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=Dataset.from_dict({"index": list(order)}),
            processing_class=getattr(processor, "processor", processor),  # a family's own is inside
            callbacks=[tracker],
            peft_config=lora_config(
                model,
                rank=settings.lora_rank,
                alpha=settings.lora_alpha,
                train_connector=settings.train_connector,
            ),
        )
        self.remove_callback(PrinterCallback)
        self.learner = cast(Any, self.model)  # a PeftModel
        if settings.gradient_checkpointing:
            self.learner.gradient_checkpointing_enable({"use_reentrant": False})
            checkpoint_frozen_layers([self.learner])

    # What TRL would do to data of its own form, and what it would send and write.

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the run's folder says what was done."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """The order was drawn beforehand."""
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over adapters and, where it learns, the connector with a rate of its own."""
        if self.optimizer is None:
            groups: dict[bool, list[Tensor]] = {False: [], True: []}
            for name, parameter in self.learner.named_parameters():
                if parameter.requires_grad:
                    groups[f".{CONNECTOR}." in name].append(parameter)
            settings = self.settings
            rates = {False: settings.learning_rate, True: settings.connector_learning_rate}
            self.optimizer = torch.optim.AdamW(
                [{"params": part, "lr": rates[kind]} for kind, part in groups.items() if part],
                weight_decay=settings.weight_decay,
                fused=True,
            )
        return self.optimizer

    # The loss.

    def log_probs(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the chosen and of the rejected answers under the model as it stands."""
        # No dropout anywhere, or policy and reference would differ before the first step.
        set_to_eval(self.learner.children())
        return answer_log_probs(
            scored_logits(model, batch),
            batch["scored_targets"],
            batch["scored_answers"],
            len(batch["pair"]),
            self.settings.variant,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of the pairs.

        Raises:
            PolyptychError: If it is no number; names the pairs.
        """
        self.tracker.count(inputs["image_counts"][: len(inputs["pair"])])
        policy = self.log_probs(model, inputs)
        reference = inputs["reference_log_probs"].unbind(dim=1)
        compared = dpo_loss(*policy, *reference, beta=self.settings.beta, kind=self.settings.loss)
        loss = compared.losses.mean()
        if not bool(torch.isfinite(loss)):
            ids = ", ".join(self.pairs[index].id for index in inputs["pair"].tolist())
            raise PolyptychError(
                f"the loss is {loss.item()} after {self.state.global_step} steps; pairs of the "
                f"batch: {ids}; lower the learning rate or look at these"
            )
        means = {
            "rewards/chosen": compared.chosen_rewards,
            "rewards/rejected": compared.rejected_rewards,
            "rewards/margins": compared.margin,
            "rewards/accuracies": compared.accuracy,
            "logps/chosen": policy[0].detach(),
            "logps/rejected": policy[1].detach(),
        }
        for name, values in means.items():
            everywhere = self.accelerator.gather(values.mean())
            self._metrics["train"][name].append(everywhere.mean().item())
        return loss

    # The reference.

    def fill_reference(self, reference: ReferenceLogProbs) -> None:
        """Let the collator know the reference's numbers of all pairs; compute those that are not.

        Raises:
            PolyptychError: If one of them is no number, or they cannot be written.
        """
        keys = [pair_hash(pair) for pair in self.pairs]
        missing = [index for index, key in enumerate(keys) if key not in reference]
        # Rows of like lengths in a batch: little padding.
        missing.sort(key=lambda i: len(self.pairs[i].chosen) + len(self.pairs[i].rejected))
        if missing:
            with reference.writing() as add:
                for part, scores in self._reference_scores(missing):
                    lines = zip(part, *(side.tolist() for side in scores), strict=True)
                    add((keys[i], self.pairs[i].id, *both) for i, *both in lines)
        self.collator.reference = {index: reference[key] for index, key in enumerate(keys)}

    @torch.no_grad()
    def _reference_scores(
        self, indices: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], tuple[Tensor, Tensor]]]:
        size = self.args.per_device_train_batch_size
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            batch = self._prepare_inputs(self.collator([{"index": i} for i in part]))
            with self.learner.disable_adapter(), self.accelerator.autocast():
                yield part, self.log_probs(self.learner, batch)

    # Checkpoints hold what is trained; frozen weights come from the run's start.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder.saving)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.tracker.paused(), said_if_unsaved(self.folder.checkpoints):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.folder.publish_checkpoint(self.state.global_step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.folder.saving)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_parameters(self.learner), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.learner, Path(resume_from_checkpoint))
