"""The whole loop (figure 2 of the paper): a model improves itself, once or several times.

    RUN/heldout/0.jsonl                  answers of the start to prompts that are never trained on
    RUN/iteration-1/responses.jsonl      greedy and sampled answers to the other prompts
    RUN/iteration-1/verdicts.jsonl       what the critic made of them
    RUN/iteration-1/pairs.jsonl          the pairs; drops.jsonl and pairs.json tell the rest
    RUN/iteration-1/tuned/               the run of preference tuning
    RUN/iteration-1/model/               the merged model: what the next iteration starts from
    RUN/heldout/1.jsonl                  its answers
    RUN/report.json, report.html         what changed

Every stage can be killed and goes on where it was when the same call comes again.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.answering import Answerer
from polyptych.evaluation.local_model import LocalModel
from polyptych.evaluation.task import GenerationSettings
from polyptych.methods.sima.controls import RandomJudge, TruthJudge
from polyptych.methods.sima.critic import (
    WORDS_SETTINGS,
    Judge,
    LikelihoodJudge,
    WordsJudge,
    self_critic,
)
from polyptych.methods.sima.critic_rows import CriticRows, default_format
from polyptych.methods.sima.pairs import (
    PAIRS_FILE,
    build_pairs,
    require_pairs,
    write_pair_files,
)
from polyptych.methods.sima.prompts import CRITIC_PROMPTS, CriticFormat
from polyptych.methods.sima.records import Prompt
from polyptych.methods.sima.report import Measured, measure_answers, write_report
from polyptych.methods.sima.responses import SamplingSettings, self_generate
from polyptych.models.checkpoint import Loader, bundled_models, load_model
from polyptych.models.merging import merge_adapter
from polyptych.training.preference import tune
from polyptych.training.preference_settings import PreferenceSettings

JUDGES = ("likelihood", "words", "random", "truth")

STORYBOOK_TUNING = PreferenceSettings(
    lora_rank=16, lora_alpha=32, learning_rate=2e-4, global_batch_size=8, epochs=3, log_every=5
)
"""For the bundled models: the published rate is for seven thousand times as many weights."""


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """Who judges, and what it is told.

    Raises:
        PolyptychError: For an unknown judge or prompt.
    """

    judge: str = "likelihood"
    """``likelihood``: the model's own probabilities of the two verdicts. ``words``: what it writes,
    as published. ``random`` and ``truth`` are controls."""
    prompt: str | None = None
    """Name in :data:`~polyptych.methods.sima.prompts.CRITIC_PROMPTS`; None: the full one where the
    context holds it twice."""
    metrics: bool = True
    """Whether it is told the three visual metrics."""
    ground_truth: bool = True
    """Whether it sees the ground truth."""
    both_orders: bool = True
    """Whether each pair is judged in both orders; published: one."""
    released_order: bool = False
    """Images in front of the prompt's fixed part, as published."""
    batch_size: int = 16
    """Prompts that are judged together; changes no verdict."""
    max_new_tokens: int = WORDS_SETTINGS.max_new_tokens
    """Longest verdict in words; of a model in memory never longer than its context."""
    seed: int = 0
    """Of the random control."""

    def __post_init__(self) -> None:
        if self.judge not in JUDGES:
            raise PolyptychError(f"no judge {self.judge!r}; known: {', '.join(JUDGES)}")
        if self.prompt is not None and self.prompt not in CRITIC_PROMPTS:
            known = ", ".join(CRITIC_PROMPTS)
            raise PolyptychError(f"no critic prompt {self.prompt!r}; known: {known}")

    def make(self, model: Any, processor: Any, external: Answerer | None = None) -> Judge:
        """The judge.

        Args:
            model: The critic where it judges itself.
            processor: The processor saved beside it.
            external: Whoever judges in words instead, such as a server.
        """
        if self.judge == "random":
            return RandomJudge(self.seed)
        if self.judge == "truth":
            return TruthJudge()
        rows = CriticRows(self._format(None if external else processor), self.both_orders)
        if external is not None:
            return WordsJudge(external, rows, self._decoding(None))
        if self.judge == "words":
            decoding = self._decoding(processor.max_length)
            return WordsJudge(LocalModel(model, processor), rows, decoding, processor)
        return LikelihoodJudge(model, processor, rows)

    def _decoding(self, context: int | None) -> GenerationSettings:
        """Of verdicts in words, by a critic with so many positions."""
        longest = self.max_new_tokens if context is None else min(self.max_new_tokens, context)
        return dataclasses.replace(WORDS_SETTINGS, max_new_tokens=longest)

    def _format(self, processor: Any) -> CriticFormat:
        choices: dict[str, Any] = {
            "metrics": self.metrics,
            "ground_truth": self.ground_truth,
            "released_order": self.released_order,
        }
        if self.prompt is None:
            return default_format(processor, **choices) if processor else CriticFormat(**choices)
        return CriticFormat(CRITIC_PROMPTS[self.prompt], **choices)


@dataclass(frozen=True, slots=True)
class ImprovementSettings:
    """Everything that decides a run."""

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    critic: CriticSettings = field(default_factory=CriticSettings)
    min_margin: float = 0.0
    """Pairs need a margin above this."""
    tuning: PreferenceSettings = field(default_factory=PreferenceSettings)
    iterations: int = 1
    """Times the model improves itself; the paper's gain is in the first."""
    heldout: float = 0.1
    """Share of the prompts that only measure what changed."""


def default_tuning(model: str | None) -> PreferenceSettings:
    """The published settings; others for the small bundled models."""
    bundled = model is None or model in bundled_models()
    return STORYBOOK_TUNING if bundled else PreferenceSettings()


def improve(
    model: str | None,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    settings: ImprovementSettings | None = None,
    external: Answerer | None = None,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], object] = lambda line: None,
    load: Loader = load_model,
) -> dict[str, Any]:
    """Run the loop.

    Args:
        model: Folder or name of the start; None: the bundled model.
        prompts: What the model is asked, with the truth where it is known.
        out: The run's folder; a killed run goes on where it was.
        settings: Default: the paper's, over :func:`default_tuning`.
        external: Whoever judges in words instead of the model.
        device: Where the model answers and judges.
        progress: Show bars with estimates of the time left, on a terminal.
        say: Gets a line when a stage is done.
        load: What loads the models; for bases of transformers, that of
            :mod:`polyptych.adapters.loading`.

    Returns:
        The report, also written as ``report.json`` and ``report.html``.

    Raises:
        PolyptychError: If ``out`` holds a run with another model, seed or setting, or if no pair is
            left in an iteration (with the count of every reason).
    """
    settings = settings or ImprovementSettings(tuning=default_tuning(model))
    trained, heldout = split_prompts(prompts, settings.heldout)
    say(f"{len(trained)} prompts to improve on, {len(heldout)} held out to measure")
    loop = _Loop(Path(out), trained, heldout, settings, external, device, progress, say, load)
    measures, iterations, current = [loop.measure(0, model)], [], model
    for number in range(1, settings.iterations + 1):
        summary = loop.make_pairs(number, current)
        gc.collect()  # tuning loads the model anew
        current = loop.tune(number, current)
        iterations.append({**summary, "model": current})
        measures.append(loop.measure(number, current))
    report = {
        "start": model,
        "settings": _as_json(settings),
        "prompts": {"improved on": len(trained), "held out": len(heldout)},
        "iterations": iterations,
    }
    return write_report(loop.out, report, measures)


@dataclass(frozen=True, slots=True)
class _Loop:
    """One run: what all its iterations share."""

    out: Path
    trained: Sequence[Prompt]
    heldout: Sequence[Prompt]
    settings: ImprovementSettings
    external: Answerer | None
    device: str
    progress: bool
    say: Callable[[str], object]
    load: Loader

    def _folder(self, number: int) -> Path:
        return self.out / f"iteration-{number}"

    def measure(self, number: int, model: str | None) -> Measured:
        """Greedy answers to the held-out prompts after so many iterations."""
        loaded, processor = self.load(model, device=self.device)
        answers = self_generate(
            loaded,
            processor,
            self.heldout,
            self.out / "heldout" / f"{number}.jsonl",
            settings=dataclasses.replace(self.settings.sampling, samples=0),
            progress=self.progress,
        )
        return measure_answers(answers)

    def make_pairs(self, number: int, model: str | None) -> dict[str, Any]:
        """Responses, verdicts and pairs of an iteration; the counts."""
        folder, settings = self._folder(number), self.settings
        loaded, processor = self.load(model, device=self.device)
        responses = self_generate(
            loaded,
            processor,
            self.trained,
            folder / "responses.jsonl",
            settings=settings.sampling,
            progress=self.progress,
        )
        self.say(f"{folder.name}: {sum(len(item.answers) for item in responses)} answers")
        verdicts = self_critic(
            settings.critic.make(loaded, processor, self.external),
            responses,
            folder / "verdicts.jsonl",
            batch_size=settings.critic.batch_size,
            tokens_per_image=processor.tokens_per_image,
            progress=self.progress,
        )
        found = build_pairs(verdicts, min_margin=settings.min_margin)
        write_pair_files(found, folder, min_margin=settings.min_margin)
        for line in found.told():
            self.say(f"{folder.name}: {line}")
        require_pairs(found)
        return found.summary

    def tune(self, number: int, start: str | None) -> str:
        """Tune on the iteration's pairs and merge; the folder of the new model."""
        folder = self._folder(number)
        tuned, merged = folder / "tuned", folder / "model"
        adapter = tune(
            folder / PAIRS_FILE,
            start,
            tuned,
            self.settings.tuning,
            progress=self.progress,
            load=self.load,
        )
        if not merged.exists():
            merge_adapter(adapter, merged, load=self.load)
        steps = read_json(tuned / "result.json")["steps"]
        self.say(f"{folder.name}: tuned {steps} steps, model in {merged}")
        return str(merged)


def split_prompts(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to improve on and, by the hash of their ids, some to measure on; one at least.

    Raises:
        PolyptychError: If one of the two parts is empty.
    """
    order = sorted(prompts, key=lambda p: hashlib.sha256(p.id.encode()).digest())
    chosen = {prompt.id for prompt in order[: max(1, round(share * len(order)))]}
    trained = [prompt for prompt in prompts if prompt.id not in chosen]
    if not trained:
        raise PolyptychError(
            f"{len(prompts)} prompts, {len(chosen)} of them held out: none is left to improve on"
        )
    return trained, [prompt for prompt in prompts if prompt.id in chosen]


def _as_json(settings: ImprovementSettings) -> dict[str, Any]:
    fields = {name: getattr(settings, name) for name in ("min_margin", "iterations", "heldout")}
    return {
        "sampling": dataclasses.asdict(settings.sampling),
        "critic": dataclasses.asdict(settings.critic),
        **fields,
        "tuning": settings.tuning.model_dump(),
    }
