"""Response self-generation (section 3.1 of the paper): one greedy and n sampled answers per prompt.

Images and prompt are read once, whatever n: the cache is then copied for the greedy row and the
sampled ones, which are written together. Every prompt has its own seed and every sample its own
stream of chance, so that an answer does not depend on the batch it was drawn in, nor on a kill.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from polyptych.data.collation import makes_own_batches
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import model_hash, model_inputs
from polyptych.evaluation.runner import batches_by_length
from polyptych.methods.sima.records import (
    Prompt,
    Responses,
    parse_responses,
    prompt_line,
    responses_line,
)
from polyptych.methods.sima.stage_file import StageFile, with_stored_images


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How candidates are drawn; the defaults are the paper's."""

    samples: int = 1
    """Sampled answers beside the greedy one."""
    temperature: float = 0.8
    """Softness of the samples."""
    top_p: float = 0.9
    """Share of probability that sampling keeps."""
    max_new_tokens: int = 1024
    """Longest answer in tokens."""
    seed: int = 0
    """Of the run; each prompt's own seed is made of it and the prompt's id."""
    batch_size: int = 16
    """Prompts that are answered together; changes no answer."""

    def __post_init__(self) -> None:
        if self.samples < 0 or not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise PolyptychError(
                f"cannot sample {self.samples} answers at temperature {self.temperature} and "
                f"top_p {self.top_p}; wanted >= 0, > 0 and in (0, 1]"
            )

    def run(self) -> dict[str, Any]:
        """What makes an answer."""
        fields = dataclasses.asdict(self)
        del fields["batch_size"]
        return fields


def self_generate(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    settings: SamplingSettings | None = None,
    progress: bool = True,
) -> list[Responses]:
    """Answer every prompt n + 1 times and write one JSON line each.

    Args:
        model: A :class:`~polyptych.models.vision_language.VisionLanguageModel`, or an adapted base.
        processor: The processor saved beside it.
        prompts: Their ids are unique.
        out: The JSONL file; a killed run goes on where it stopped.
        settings: Default: the paper's.
        progress: Show a bar with an estimate of the time left, on a terminal.

    Returns:
        Responses in the order of the prompts.

    Raises:
        PolyptychError: If ``out`` was begun with another model, seed, setting or prompt.
    """
    out, settings = Path(out), settings or SamplingSettings()
    run = {
        "stage": "responses",
        "model": model_hash(model),
        "template": processor.template,
        "settings": settings.run(),
    }
    prompts = with_stored_images(prompts, out.parent)
    inputs = {prompt.id: prompt_line(prompt, out.parent) for prompt in prompts}
    if len(inputs) < len(prompts):
        raise PolyptychError(f"{len(prompts)} prompts have only {len(inputs)} different ids")
    file: StageFile[Responses] = StageFile(out, inputs, run, responses_line, parse_responses)
    todo = {prompt.id: prompt for prompt in file.todo(prompts)}
    if todo:
        examples = [prompt.example for prompt in todo.values()]
        with file.writing(progress=progress) as add:
            for batch in batches_by_length(
                examples, processor.tokens_per_image, settings.batch_size
            ):
                seeds = [prompt_seed(settings.seed, example.id) for example in batch]
                answers = draw_candidates(model, processor, batch, seeds, settings)
                add(
                    [
                        Responses(todo[example.id], texts, seed)
                        for example, texts, seed in zip(batch, answers, seeds, strict=True)
                    ]
                )
    return file.finish()


def prompt_seed(seed: int, identity: str) -> int:
    """A prompt's own seed: 48 bits, exact in every JSON reader."""
    digest = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


@torch.inference_mode()
def draw_candidates(
    model: Any,
    processor: Any,
    examples: Sequence[Any],
    seeds: Sequence[int],
    settings: SamplingSettings,
) -> list[tuple[str, ...]]:
    """Answers of one batch, the greedy one first, from one reading of images and prompts."""
    inputs = model_inputs(model, processor, examples)
    width = inputs["input_ids"].shape[1]
    longest = settings.max_new_tokens
    if processor.max_length is not None:
        longest = max(1, min(longest, processor.max_length - width))
    rows = settings.samples + 1
    choose = ChooseTokens(uniform_numbers(seeds, settings.samples, longest), width, settings)
    told = {"max_new_tokens": longest, "pad_token_id": processor.pad_token_id, "num_beams": 1}
    if makes_own_batches(processor):
        sequences = _write_from_family(model, inputs, rows, choose, told)
    else:
        sequences = _write_from_one_reading(model, inputs, rows, choose, told)
    texts = processor.decode_answers(sequences, width)
    return [tuple(texts[start : start + rows]) for start in range(0, len(texts), rows)]


def _write_from_one_reading(
    model: Any, inputs: Any, rows: int, choose: ChooseTokens, told: dict[str, Any]
) -> Int[Tensor, "C T"]:
    """Prompts are read once; the cache is then copied."""
    # generate makes positions of its own; this first reading has to agree with them
    positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    prompt = model(**{"position_ids": positions, **inputs}, use_cache=True, logits_to_keep=1)
    prompt.past_key_values = model.decoding_cache(prompt.past_key_values, rows)
    prompt.logits = prompt.logits.repeat_interleave(rows, dim=0)
    return model.generate(
        input_ids=inputs["input_ids"].repeat_interleave(rows, dim=0),
        attention_mask=inputs["attention_mask"].repeat_interleave(rows, dim=0),
        prompt_output=prompt,
        logits_processor=LogitsProcessorList([choose]),
        do_sample=False,
        **told,
    )


def _write_from_family(
    model: Any, inputs: Any, rows: int, choose: ChooseTokens, told: dict[str, Any]
) -> Int[Tensor, "C T"]:
    """Images are encoded once and prompts read once per answer, by transformers' own means.

    What it calls sampling has one token left to draw.
    """
    with torch.random.fork_rng(devices=[]):
        return model.generate(
            **inputs,
            num_return_sequences=rows,
            logits_processor=LogitsProcessorList([choose]),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            **told,
        )


def uniform_numbers(
    seeds: Sequence[int], samples: int, length: int
) -> Float[Tensor, "B samples length"]:
    """The chance of every sample: row k of a prompt is the same for any number of samples > k."""
    generator = torch.Generator()
    numbers = torch.empty(len(seeds), samples, length)
    for prompt, seed in enumerate(seeds):
        for sample in range(samples):
            generator.manual_seed(seed + sample)
            numbers[prompt, sample] = torch.rand(length, generator=generator)
    return numbers


class ChooseTokens(LogitsProcessor):
    """Leaves one token per row: the likeliest in greedy rows, a drawn one in the others.

    Rows stand in the order prompt, answer; the greedy answer is the first. Drawing inverts the
    cumulative distribution at the row's own uniform number, after temperature and top-p.
    """

    def __init__(
        self,
        numbers: Float[Tensor, "B samples length"],
        prompt_width: int,
        settings: SamplingSettings,
    ) -> None:
        self.numbers, self.prompt_width, self.settings = numbers, prompt_width, settings

    def __call__(
        self, input_ids: Int[Tensor, "C T"], scores: Float[Tensor, "C V"]
    ) -> Float[Tensor, "C V"]:
        """Scores that are -inf but at the chosen token."""
        step = input_ids.shape[1] - self.prompt_width
        chosen = scores.argmax(dim=-1).unflatten(0, (len(self.numbers), -1))
        if self.settings.samples:
            drawn = scores.unflatten(0, chosen.shape)[:, 1:].flatten(0, 1)
            numbers = self.numbers[..., step].flatten().to(scores.device)
            chosen[:, 1:] = draw_tokens(
                drawn, numbers, self.settings.temperature, self.settings.top_p
            ).unflatten(0, (len(self.numbers), -1))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, chosen.flatten()[:, None], 0.0)


def draw_tokens(
    logits: Float[Tensor, "R V"], numbers: Float[Tensor, " R"], temperature: float, top_p: float
) -> Int[Tensor, " R"]:
    """One token per row from the nucleus: the likeliest tokens that reach ``top_p`` together.

    ``numbers`` in [0, 1) are places in the cumulative distribution, likeliest token first.
    """
    ordered, tokens = (logits.double() / temperature).sort(dim=-1, descending=True)
    cumulative = ordered.softmax(dim=-1).cumsum(dim=-1)
    before = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative[:, :-1]], dim=-1)
    last = (before < top_p).sum(dim=-1, keepdim=True) - 1
    total = cumulative.gather(1, last)
    place = torch.searchsorted(cumulative, numbers.double()[:, None] * total, right=True)
    return tokens.gather(1, place.minimum(last)).squeeze(1)
