"""``polyptych improve`` and ``polyptych sima ...``: a model improves itself, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyptych.cli.common import (
    DeviceOption,
    ModelOption,
    check_choice,
    command_group,
    example,
    find_device,
    hide_bars,
)
from polyptych.errors import PolyptychError

commands = typer.Typer()

stages = command_group(
    "Self-improvement (SIMA) stage by stage; all of them at once: polyptych improve.",
    "polyptych sima respond prompts.jsonl --images photos --out run/responses.jsonl",
)

STORYBOOK = "storybook/"
"""Prompts of this name are drawn."""
FITTING: dict[str, dict[str, Any]] = {"description": {"things": (2, 4)}}
"""Options of drawn prompts, so that a critic's case fits the bundled models' context."""

PromptsHelp = (
    'Lines of {"image", "text", "ground_truth"} or native records; or storybook/TASK, drawn.'
)
ImagesOption = Annotated[
    Path | None, typer.Option(help="Folder of the prompts' images; default: that of the file.")
]
CountOption = Annotated[int, typer.Option(min=2, help="Prompts to draw (storybook only).")]
SamplesOption = Annotated[int, typer.Option(min=0, help="Sampled answers beside the greedy one.")]
TemperatureOption = Annotated[float, typer.Option(help="Softness of the samples.")]
TopPOption = Annotated[float, typer.Option(help="Share of probability that sampling keeps.")]
LengthOption = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Prompts handled together.")]
SeedOption = Annotated[int, typer.Option(help="Another seed draws other samples.")]
JudgeOption = Annotated[
    str,
    typer.Option(
        help="likelihood, words (as published), random or truth (controls), or the http address "
        "of a server of OpenAI's API."
    ),
]
JudgeModelOption = Annotated[
    str | None, typer.Option(help="What the server calls the judge's model.")
]
PromptOption = Annotated[
    str | None, typer.Option(help="full or brief; default: as the context allows.")
]
MetricsOption = Annotated[
    bool, typer.Option("--metrics/--without-metrics", help="Tell the three visual metrics.")
]
TruthOption = Annotated[
    bool,
    typer.Option("--ground-truth/--without-ground-truth", help="Show the critic the ground truth."),
]
OrdersOption = Annotated[
    bool, typer.Option("--both-orders/--one-order", help="Judge each pair in both orders.")
]
MarginOption = Annotated[
    float, typer.Option(min=0, help="Pairs need a margin above this (log-odds in nats).")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="A setting of the tuning, as often as needed."
    ),
]


@commands.command(
    epilog=example(
        "polyptych improve storybook-base --prompts storybook/description --out runs/improved"
    )
)
def improve(
    model: Annotated[str, typer.Argument(help="Folder, hub name or bundled name of the start.")],
    prompts: Annotated[str, typer.Option("--prompts", "-p", help=PromptsHelp)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    images: ImagesOption = None,
    count: CountOption = 300,
    iterations: Annotated[int, typer.Option(min=1, help="Times to improve.")] = 1,
    heldout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the prompts that only measure.")
    ] = 0.1,
    samples: SamplesOption = 1,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.9,
    max_new_tokens: LengthOption = 1024,
    judge: JudgeOption = "likelihood",
    judge_model: JudgeModelOption = None,
    critic_prompt: PromptOption = None,
    metrics: MetricsOption = True,
    ground_truth: TruthOption = True,
    both_orders: OrdersOption = True,
    min_margin: MarginOption = 0.0,
    overrides: SetOption = None,
    batch_size: BatchOption = 16,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Let a model improve itself: answers, self-critic, pairs, tuning, and what it changed.

    A killed run goes on where it stopped.
    """
    from polyptych.adapters.loading import load_any
    from polyptych.methods.sima import improvement
    from polyptych.methods.sima.report import PAGE_FILE, table_lines
    from polyptych.methods.sima.responses import SamplingSettings

    external, judge = _external(judge, judge_model)
    tuning = improvement.default_tuning(model).with_overrides(overrides or ())
    settings = improvement.ImprovementSettings(
        sampling=SamplingSettings(samples, temperature, top_p, max_new_tokens, seed, batch_size),
        critic=improvement.CriticSettings(
            judge,
            critic_prompt,
            metrics,
            ground_truth,
            both_orders,
            batch_size=batch_size,
            seed=seed,
        ),
        min_margin=min_margin,
        tuning=tuning,
        iterations=iterations,
        heldout=heldout,
    )
    hide_bars()
    report = improvement.improve(
        model,
        _read_prompts(prompts, images, count, seed, out),
        out,
        settings=settings,
        external=external,
        device=find_device(device),
        say=typer.echo,
        load=load_any,
    )
    for line in table_lines(report):
        typer.echo(line)
    typer.echo(f"written to {out / PAGE_FILE}")


@stages.command(
    epilog=example("polyptych sima respond prompts.jsonl --images photos --out run/responses.jsonl")
)
def respond(
    prompts: Annotated[str, typer.Argument(help=PromptsHelp)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Responses, a .jsonl file.")],
    model: ModelOption = None,
    images: ImagesOption = None,
    count: CountOption = 300,
    samples: SamplesOption = 1,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.9,
    max_new_tokens: LengthOption = 1024,
    released: Annotated[
        Path | None, typer.Option(help="Also write the released code's form, a .jsonl file.")
    ] = None,
    batch_size: BatchOption = 16,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Answer every prompt greedily and by sampling, from one reading of its images and words.

    A killed run goes on where it stopped.
    """
    from polyptych.adapters.loading import load_any
    from polyptych.methods.sima import formats
    from polyptych.methods.sima.responses import SamplingSettings, self_generate

    settings = SamplingSettings(samples, temperature, top_p, max_new_tokens, seed, batch_size)
    read = _read_prompts(prompts, images, count, seed, out.parent)
    hide_bars()
    loaded, processor = load_any(model, device=find_device(device))
    made = self_generate(loaded, processor, read, out, settings=settings)
    if released is not None:
        name = str(loaded.config.name_or_path)
        formats.write_responses(released, made, _image_folder(images, out), name)
    typer.echo(f"{sum(len(r.answers) for r in made)} answers to {len(made)} prompts in {out}")


@stages.command(
    epilog=example("polyptych sima criticise run/responses.jsonl --out run/verdicts.jsonl")
)
def criticise(
    responses: Annotated[Path, typer.Argument(help="What `respond` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Verdicts, a .jsonl file.")],
    model: ModelOption = None,
    judge: JudgeOption = "likelihood",
    judge_model: JudgeModelOption = None,
    critic_prompt: PromptOption = None,
    metrics: MetricsOption = True,
    ground_truth: TruthOption = True,
    both_orders: OrdersOption = True,
    released_order: Annotated[
        bool, typer.Option("--released-order", help="Images before the prompt's fixed part.")
    ] = False,
    batch_size: BatchOption = 16,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Hold every sampled answer against the greedy one, in the eyes of the model itself.

    A killed run goes on where it stopped.
    """
    from polyptych.adapters.loading import load_any
    from polyptych.methods.sima import critic, improvement
    from polyptych.methods.sima.pairs import build_pairs
    from polyptych.methods.sima.records import read_responses

    external, judge = _external(judge, judge_model)
    settings = improvement.CriticSettings(
        judge,
        critic_prompt,
        metrics,
        ground_truth,
        both_orders,
        released_order,
        batch_size,
        seed,
    )
    read = read_responses(responses)
    hide_bars()
    judges_itself = external is None and judge in ("likelihood", "words")
    loaded, processor = (
        load_any(model, device=find_device(device)) if judges_itself else (None, None)
    )
    verdicts = critic.self_critic(
        settings.make(loaded, processor, external),
        read,
        out,
        batch_size=batch_size,
        tokens_per_image=processor.tokens_per_image if processor is not None else 0,
    )
    for line in build_pairs(verdicts).told():
        typer.echo(line)
    typer.echo(f"written to {out}; pairs: polyptych sima pair {out}")


@stages.command(epilog=example("polyptych sima pair run/verdicts.jsonl --out run --min-margin 0.5"))
def pair(
    verdicts: Annotated[Path, typer.Argument(help="What `criticise` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pairs and drops.")],
    min_margin: MarginOption = 0.0,
    export: Annotated[
        list[str] | None,
        typer.Option(help="Also write trl (pairs.trl.jsonl) or llava (pairs.llava.json)."),
    ] = None,
    images: ImagesOption = None,
) -> None:
    """Pair the best with the worst answer of each prompt; every drop is counted with its reason."""
    from polyptych.methods.sima import formats, pairs
    from polyptych.methods.sima.records import read_verdicts

    for name in export or ():
        check_choice("--export", name, ("trl", "llava"))
    found = pairs.build_pairs(read_verdicts(verdicts), min_margin=min_margin)
    pairs.write_pair_files(found, out, min_margin=min_margin)
    for line in found.told():
        typer.echo(line)
    pairs.require_pairs(found)
    folder = out if images is None else images
    if "trl" in (export or ()):
        formats.write_trl(out / "pairs.trl.jsonl", found.pairs, folder)
    if "llava" in (export or ()):
        formats.write_preferences(out / "pairs.llava.json", found.pairs, folder)
    typer.echo(f"written to {out / pairs.PAIRS_FILE}")


@stages.command(epilog=example("polyptych sima tune run/pairs.jsonl --out run/tuned"))
def tune(
    pairs: Annotated[Path, typer.Argument(help="Pairs, as `pair` writes them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    model: ModelOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Settings: sima_7b, sima_13b or a .py file."),
    ] = None,
    overrides: SetOption = None,
    resume: Annotated[
        bool, typer.Option(help="Go on with what the folder holds, or start again.")
    ] = True,
) -> None:
    """Tune a model on pairs by DPO; the outcome is an adapter.

    A killed run goes on where it stopped.
    """
    from polyptych.adapters.loading import load_any
    from polyptych.methods.sima.improvement import default_tuning
    from polyptych.recipes import load_preference_settings
    from polyptych.training.preference import tune

    told = default_tuning(model) if recipe is None else load_preference_settings(recipe)
    settings = told.with_overrides(overrides or ())
    hide_bars()
    adapter = tune(pairs, model, out, settings, resume=resume, progress=True, load=load_any)
    typer.echo(f"adapter in {adapter}; a model of it: polyptych merge {adapter} --out MODEL")


def _read_prompts(words: str, images: Path | None, count: int, seed: int, out: Path) -> list[Any]:
    """A file of prompts, or drawn ones, which are stored in the run's folder."""
    from polyptych.methods.sima.records import read_prompts

    if not words.startswith(STORYBOOK) or Path(words).exists():
        return read_prompts(words, images)
    from polyptych.storybook.generation import RECORDS_FILE, write_dataset

    task = words.removeprefix(STORYBOOK)
    folder = out / "prompts" / f"{task}-{count}-seed{seed}"
    if not (folder / RECORDS_FILE).exists():
        options = FITTING.get(task, {})
        write_dataset(task, folder, count=count, split="train", seed=seed, **options)
    return read_prompts(folder / RECORDS_FILE)


def _image_folder(images: Path | None, out: Path) -> Path:
    return out.parent if images is None else images


def _external(judge: str, model: str | None) -> tuple[Any, str]:
    """The judge behind an address, and the kind of judge it is."""
    from polyptych.serving.answerers import load_answerer

    if not judge.startswith(("http://", "https://")):
        if model is not None:
            raise PolyptychError(f"--judge-model is for servers; --judge is {judge!r}")
        return None, judge
    return load_answerer(judge, api_model=model), "words"
