"""Preference tuning: a model learns to prefer the better of two answers, on adapters.

    tune("pairs.jsonl", "models/llava", "runs/tuned") -> runs/tuned/adapter

DPO (arXiv 2305.18290) on LoRA, with the model without its adapters as the reference, for every
model of this package and any number of images. The run's folder::

    recipe.json       all settings, versions, fingerprints of pairs and model
    reference.jsonl   log-probabilities of all answers under the reference
    metrics.jsonl     one line per logged step: loss, rewards, log-probabilities
    checkpoints/      what is needed to go on exactly where a killed run stopped
    adapter/          the outcome in PEFT's layout; ``polyptych merge`` makes a model of it
    result.json       written last; its presence says that the run is finished
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from polyptych.data.collation import makes_own_batches
from polyptych.data.preferences import read_pairs
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import Loader, load_model, resolve
from polyptych.models.merging import BASE, describe_base
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import PreferencePair
from polyptych.training.arguments import batch_split
from polyptych.training.branching import check_branching
from polyptych.training.parallel import process_count
from polyptych.training.preference_data import PreferenceCollator, TwoRowCollator
from polyptych.training.preference_settings import PreferenceSettings
from polyptych.training.reference_log_probs import ReferenceLogProbs, pair_hash
from polyptych.training.run_folder import RunFolder, said_if_unsaved
from polyptych.vision.feature_cache import FeatureCache, encoder_fingerprint

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class TuningFolder(RunFolder):
    """One tuning's files."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.adapter = self.path / "adapter"
        self.reference = self.path / "reference.jsonl"

    def _clear(self) -> None:
        super()._clear()
        shutil.rmtree(self.adapter, ignore_errors=True)
        self.reference.unlink(missing_ok=True)


def tune(
    pairs: str | Path | Sequence[PreferencePair],
    model: str | Path | None,
    out: str | Path,
    settings: PreferenceSettings | None = None,
    *,
    resume: bool = True,
    progress: bool = False,
    load: Loader = load_model,
) -> Path:
    """Tune a model on pairs; a killed run of the same settings in ``out`` goes on where it was.

    Args:
        pairs: The pairs, or a file of them (see :mod:`polyptych.data.preferences`).
        model: Folder or name of the start, which is the reference, too; None: the bundled model.
        out: The run's folder.
        settings: Everything that decides the run; None: the published ones.
        resume: False removes an earlier run in ``out`` and starts again.
        progress: Show a bar on stderr.
        load: What loads ``model``; for bases of transformers, that of
            :mod:`polyptych.adapters.loading`.

    Returns:
        The folder of the adapter.

    Raises:
        PolyptychError: If TRL is not installed, for no or bad pairs, another run in ``out``, a
            reference of another model, or a loss that is no number (then with the batch's ids).
    """
    try:
        from trl import DPOConfig

        from polyptych.training.preference_trainer import PreferenceTracker, PreferenceTrainer
    except ImportError as error:
        raise PolyptychError(
            f"preference tuning needs TRL: pip install 'polyptych[prefer]' ({error})"
        ) from error

    settings = settings or PreferenceSettings()
    pairs = read_pairs(pairs) if isinstance(pairs, str | Path) else list(pairs)
    if not pairs:
        raise PolyptychError("0 pairs to learn from")
    folder = TuningFolder(out)
    args = DPOConfig(**_arguments(settings, len(pairs), folder))
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    start, processor = load(model, dtype=dtype)
    is_ours = not makes_own_batches(processor)
    if is_ours:
        check_branching(start, settings.max_length or processor.max_length or 0)
    elif settings.train_connector or settings.feature_cache is not None:
        raise PolyptychError(
            f"{start.config.model_type}: train_connector and feature_cache are for models of this "
            "package, not for bases of transformers"
        )
    base = describe_base(start)
    told = {"pairs": _fingerprint(pairs), "model": base}
    with args.main_process_first(local=False, desc="opening the run's folder"):
        checkpoint = folder.open(settings, told, resume=resume, is_main=args.process_index == 0)
    if folder.result.exists():
        return folder.adapter

    start.to(args.device)
    collator: PreferenceCollator | TwoRowCollator
    if is_ours:
        features = _features(settings, start, processor, pairs)
        collator = PreferenceCollator(
            processor, pairs, max_length=settings.max_length, features=features
        )
    else:
        collator = TwoRowCollator(processor, pairs, max_length=settings.max_length)
    tracker = PreferenceTracker(
        folder.metrics,
        steps=args.max_steps,
        flush_at=(settings.save_every,) if settings.save_every else (),
        tensorboard=folder.path if settings.tensorboard else None,
        progress=progress,
    )
    trainer = PreferenceTrainer(
        settings,
        start,
        processor,
        collator,
        draw_order(len(pairs), args.max_steps * settings.global_batch_size, settings.seed),
        folder,
        tracker,
        args,
    )
    decided = {**base, **_decides_reference(settings, processor)}
    with args.main_process_first(local=False, desc="computing the reference"):
        path = Path(settings.reference) if settings.reference else folder.reference
        trainer.fill_reference(ReferenceLogProbs(path, decided))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        tracker.close()
    if trainer.is_world_process_zero():
        source = Path(resolve(model))
        name = str(source.resolve() if source.exists() else source)
        trainer.learner.peft_config["default"].base_model_name_or_path = name
        _finish(folder, trainer, base, tracker.last)
    return folder.adapter


def draw_order(pairs: int, draws: int, seed: int) -> list[int]:
    """Index of the pair of each draw: every pair once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-draws // pairs)
    order = [torch.randperm(pairs, generator=generator) for _ in range(passes)]
    return torch.cat(order)[:draws].tolist()


def _arguments(settings: PreferenceSettings, pairs: int, folder: RunFolder) -> dict[str, Any]:
    """The settings in the words of ``trl.DPOConfig``, whose defaults differ."""
    steps = settings.step_count(pairs)
    micro, passes = batch_split(settings, process_count())
    return {
        "output_dir": str(folder.checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": passes,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": _SCHEDULES[settings.schedule],
        "warmup_steps": round(settings.warmup_share * steps),
        "max_grad_norm": settings.max_grad_norm,
        "beta": settings.beta,
        "bf16": settings.precision == "bf16",
        "use_cpu": not torch.accelerator.is_available(),
        "seed": settings.seed,
        "max_length": None,  # the collator cuts
        "gradient_checkpointing": False,  # switched on by the trainer, dropout kept off
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": settings.save_every or steps,
        "dataloader_num_workers": settings.workers,
        "dataloader_persistent_workers": settings.workers > 0,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _fingerprint(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(map(pair_hash, pairs)).encode())
    return {"pairs": len(pairs), "hash": digest.hexdigest()[:12]}


def _decides_reference(settings: PreferenceSettings, processor: Any) -> dict[str, Any]:
    """What decides a log-probability beside the model and the pair."""
    return {
        "rows": asdict(processor.settings),
        "max_length": settings.max_length,
        "variant": settings.variant,
        "cached_features": settings.feature_cache is not None,  # they are rounded
    }


def _features(
    settings: PreferenceSettings,
    model: Any,
    processor: PolyptychProcessor,
    pairs: Sequence[PreferencePair],
) -> FeatureCache | None:
    """The feature cache with every image of the run in it; None where there is none."""
    if settings.feature_cache is None:
        return None
    encoder = model.vision_encoder
    cache = FeatureCache(
        settings.feature_cache, encoder_fingerprint(encoder, processor.image_processor)
    )
    images = [image for pair in pairs for image in pair.images]
    if processor.context_tokens:
        images += [image for pair in pairs for shot in pair.shots for image in shot.images]
    cache.fill(images, lambda pixels: encoder(pixels.to(model.device)), processor.pixels)
    return cache


def _finish(folder: TuningFolder, trainer: Any, base: dict[str, str], last: dict[str, Any]) -> None:
    """Save the adapter, and what is known at the end."""
    partial = folder.adapter.with_name("adapter.partial")
    with said_if_unsaved(folder.adapter):
        shutil.rmtree(partial, ignore_errors=True)
        trainer.learner.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
        folder.write_json(partial / BASE, base)
        shutil.rmtree(folder.adapter, ignore_errors=True)
        partial.replace(folder.adapter)
    steps = trainer.state.global_step
    folder.write_json(folder.result, {"steps": steps, **last, "adapter": str(folder.adapter)})
