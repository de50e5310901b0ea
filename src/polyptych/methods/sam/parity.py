"""Is our ``released`` form equal to the published SAM code? One line per golden tensor.

The golden folder holds inputs, weights (in the published layout) and every stage's output of the
published code on tiny random models. We convert the weights, run our code on the same inputs, and
compare. Per-image golden tensors are (J, B, ...): the J images of an example first; ours are flat
over the images, example by example.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from polyptych.errors import PolyptychError
from polyptych.methods.sam.conversion import convert_released
from polyptych.methods.sam.model import PolyptychSamConfig, PolyptychSamForConditionalGeneration
from polyptych.methods.sam.released import (
    freeze_to_released,
    rank_candidates,
    released_batch,
    released_image_processor,
    released_language_tokenizer,
    released_processor,
    released_qformer_tokenizer,
)
from polyptych.methods.sam.released_generation import (
    ReleasedGeneration,
    released_generate,
    released_texts,
)
from polyptych.models.processor import PolyptychProcessor
from polyptych.models.weights import overlay
from polyptych.parity import INPUT, ParityReport, Values, as_bytes, compare, dump, no_case
from polyptych.schema import Batch

INPUTS = ("in.pixel_values", "single4d.in.pixel_values", "preprocess.image_uint8_hwc")
"""Golden tensors that are not compared, because the run starts from them."""


def run(
    directory: str | Path, case: str, dump_to: str | Path | None = None, tolerance: float = 1e-4
) -> ParityReport:
    """Compare our code with the golden data of one case.

    Args:
        directory: The golden folder of SAM.
        case: ``a`` or ``b``.
        dump_to: Where to write our values under the golden names (safetensors).
        tolerance: Largest absolute difference that passes; ids, masks and ranks have to be equal.

    Raises:
        PolyptychError: If the folder or case does not exist or is incomplete.
    """
    directory = Path(directory)
    golden = read_golden(directory, case)
    ours: Values = {}
    for stage in (
        preprocessing,
        training_forward,
        gradients,
        zero_init,
        generation,
        single_image,
        candidate_ranking,
    ):
        ours.update(stage(golden))
    if dump_to is not None:
        dump(ours, dump_to)
    inputs = dict.fromkeys(INPUTS, INPUT)
    return compare(golden.values, ours, tolerance=tolerance, not_compared=inputs)


@dataclass(frozen=True, slots=True)
class Golden:
    """A case: what the published code was given and what it computed."""

    config: dict[str, Any]
    values: Values
    model: PolyptychSamForConditionalGeneration
    training: PolyptychProcessor
    """Row layout of the published training."""
    asking: PolyptychProcessor
    """Row layout of the published generation."""

    @property
    def image_counts(self) -> list[int]:
        """The published code takes equally many images for all examples."""
        return [self.config["num_images"]] * self.config["batch_size"]

    @property
    def images(self) -> Tensor:
        """(B, 3, J, S, S) -> (B J, 3, S, S)."""
        return self.values["in.pixel_values"].transpose(1, 2).flatten(0, 1)

    def training_batch(self) -> Batch:
        """The published training rows."""
        texts, targets = self.config["text_input"], self.config["text_output"]
        return released_batch(self.training, texts, self.images, self.image_counts, targets)

    def by_image(self, flat: Tensor) -> Tensor:
        """Ours, flat over images (or one per example) -> golden (J, B, ...)."""
        examples, images = self.config["batch_size"], self.config["num_images"]
        if len(flat) == examples:
            return flat.expand(images, *flat.shape)
        return flat.unflatten(0, (examples, images)).transpose(0, 1)


def read_golden(directory: Path, case: str) -> Golden:
    """Load a case, with its weights converted.

    Raises:
        PolyptychError: If there is no such case, or a file of it is missing.
    """
    try:
        cases = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        values = load_file(directory / f"{case}_stages.safetensors")
        weights = load_file(directory / f"{case}_state_dict.safetensors")
        pictures = load_file(directory / "preprocess.safetensors")
        config = cases[case]
    except (OSError, KeyError, SafetensorError, json.JSONDecodeError) as error:
        raise no_case(directory, case, "SAM", error) from error
    values.update({f"preprocess.{name}": value for name, value in pictures.items()})
    for name, search in config["generation"].items():
        values[f"{name}.gen.text"] = as_bytes(search["text"])

    model = PolyptychSamForConditionalGeneration(_our_config(config)).eval()
    converted = convert_released(weights, source=f"case {case}")
    model.load_state_dict(overlay([converted], model.state_dict(), source=f"case {case}"))
    tokenizers = (
        released_language_tokenizer(directory / "tokenizers" / "llm"),
        released_qformer_tokenizer(directory / "tokenizers" / "bert"),
    )
    layout = {
        "image_size": config["vision"]["image_size"],
        "tokens_per_image": config["qformer"]["num_query_tokens"],
        "max_text_tokens": config["max_txt_len"],
        "max_output_tokens": config["max_output_txt_len"],
    }
    return Golden(
        config,
        dict(sorted(values.items())),
        model,
        released_processor(*tokenizers, **layout, training=True),
        released_processor(*tokenizers, **layout),
    )


def _our_config(golden: dict[str, Any]) -> PolyptychSamConfig:
    vision, qformer, llm = (dict(golden[part]) for part in ("vision", "qformer", "llm"))
    vision["num_hidden_layers"] = vision.pop("depth")
    vision["num_attention_heads"] = vision.pop("num_heads")
    vision["intermediate_size"] = int(vision["hidden_size"] * vision.pop("mlp_ratio"))
    for part in (qformer, llm):
        del part["vocab_size_base"]
        part["vocab_size"] = part.pop("vocab_size_after_resize")
    qformer["cross_attention_frequency"] = qformer.pop("cross_attention_freq")
    return PolyptychSamConfig(
        guidance="released",
        num_query_tokens=qformer.pop("num_query_tokens"),
        vision_config={"model_type": "instructblip_vision_model", **vision},
        qformer_config=qformer,
        text_config={"model_type": "llama", **llm},
    )


# --- the stages, each under its golden names -----------------------------------------------------


def preprocessing(golden: Golden) -> Values:
    """Picture -> pixel values at both golden sizes, by the saved image processor."""
    picture = Image.fromarray(golden.values["preprocess.image_uint8_hwc"].numpy())
    return {
        f"preprocess.eval_{size}": released_image_processor(size)([picture], return_tensors="pt")[
            "pixel_values"
        ][0]
        for size in (28, 224)
    }


@torch.no_grad()
def training_forward(golden: Golden) -> Values:
    """The training pass: rows from the tokenizers, every stage, logits and loss."""
    batch, counts = golden.training_batch(), torch.tensor(golden.image_counts)
    with _vision_stages(golden) as vision:
        outputs = golden.model(**batch, return_intermediates=True)
    stages = dict(outputs.intermediates)
    per_image = stages.pop("visual_tokens").unflatten(0, (int(counts.sum()), -1))
    ours = {
        "llm.inputs_embeds": stages.pop("inputs_embeds"),
        "llm.text_input_ids": batch["input_ids"][:, per_image.shape[1] * int(counts[0]) :],
        "llm.attention_mask": batch["attention_mask"],
        "llm.labels": batch["labels"],
        "llm.logits": outputs.logits,
        "llm.loss": outputs.loss,
        **_qformer_text(golden, batch),
        **{name: golden.by_image(value) for name, value in vision.items()},
    }
    stages["vision.ln"], stages["llm_proj.out"] = stages.pop("image_features"), per_image
    for name, value in stages.items():
        ours[name] = golden.by_image(value)
    return {f"fwd.{name}": value for name, value in ours.items()}


def _qformer_text(golden: Golden, batch: Batch) -> Values:
    mask = batch["qformer_attention_mask"]
    queries = mask.new_ones(len(mask), golden.asking.tokens_per_image)
    return {
        "qformer.input_ids": golden.by_image(batch["qformer_input_ids"]),
        "qformer.attention_mask": golden.by_image(torch.cat([queries, mask], dim=1)),
    }


@contextmanager
def _vision_stages(golden: Golden) -> Iterator[Values]:
    """Collects what happens inside the unmodified vision model of transformers."""
    vision, stages = golden.model.vision_encoder.model, {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: stages.update({name: output})

    hooks = [vision.embeddings.patch_embedding.register_forward_hook(keep("vit.patch_embed"))]
    for index, layer in enumerate(vision.encoder.layers):
        hooks.append(layer.register_forward_hook(keep(f"vit.block.{index}")))
    try:
        yield stages
    finally:
        for hook in hooks:
            hook.remove()
    stages["vit.patch_embed"] = stages["vit.patch_embed"].flatten(2).transpose(1, 2)


def gradients(golden: Golden) -> Values:
    """Of the loss, by the six tensors that the published setting trains."""
    model = copy.deepcopy(golden.model)
    trained = freeze_to_released(model)
    names = {
        name: next(iter(convert_released({name.removeprefix("grad."): value})))
        for name, value in golden.values.items()
        if name.startswith("grad.")
    }
    if set(names.values()) != set(trained):
        raise PolyptychError(f"golden gradients are of {sorted(names.values())}, ours of {trained}")
    loss = model(**golden.training_batch()).loss
    wanted = [model.get_parameter(ours) for ours in names.values()]
    return dict(zip(names, torch.autograd.grad(loss, wanted), strict=True))


@torch.no_grad()
def zero_init(golden: Golden) -> Values:
    """Exchange layers at zero: every image is encoded on its own."""
    model = copy.deepcopy(golden.model)
    for layer in ("query_to_w", "w_to_query"):
        for parameter in model.get_submodule(f"connector.guidance.{layer}").parameters():
            parameter.zero_()
    outputs = model(**golden.training_batch(), return_intermediates=True)
    tokens = outputs.intermediates["visual_tokens"]
    tokens = tokens.unflatten(0, (-1, golden.asking.tokens_per_image))
    return {"zero_init.llm_proj.out": golden.by_image(tokens), "zero_init.loss": outputs.loss}


@torch.no_grad()
def generation(golden: Golden) -> Values:
    """Prompt rows, the pass over them, and what each golden search finds."""
    batch = released_batch(
        golden.asking, golden.config["text_input"], golden.images, golden.image_counts
    )
    outputs = golden.model(**batch, return_intermediates=True)
    visual = golden.asking.tokens_per_image * golden.config["num_images"]
    ours = {
        "greedy.llm.inputs_embeds": outputs.intermediates["inputs_embeds"],
        "greedy.llm.attention_mask": batch["attention_mask"],
        "greedy.llm.position_ids": batch["position_ids"],
        "greedy.llm.text_input_ids": batch["input_ids"][:, visual:],
        "greedy.llm.logits": outputs.logits,
        **{f"greedy.{name}": value for name, value in _qformer_text(golden, batch).items()},
    }
    for name, search in golden.config["generation"].items():
        fields = {f.name for f in dataclasses.fields(ReleasedGeneration)}
        settings = ReleasedGeneration(**{k: v for k, v in search["args"].items() if k in fields})
        generated = released_generate(golden.model, batch, settings)
        texts = released_texts(golden.asking, generated, settings)
        ours[f"{name}.gen.sequences"] = generated.sequences
        ours[f"{name}.gen.num_steps"] = torch.tensor(len(generated.scores))
        ours[f"{name}.gen.first_step_scores"] = generated.scores[0]
        ours[f"{name}.gen.all_scores"] = torch.stack(generated.scores)
        ours[f"{name}.gen.text"] = as_bytes(texts)
    return ours


@torch.no_grad()
def single_image(golden: Golden) -> Values:
    """One image given as a picture (no guidance) and as a group of one (guidance by itself)."""
    config, model = golden.config, golden.model
    batch = released_batch(
        golden.training,
        config["text_input"],
        golden.values["single4d.in.pixel_values"],
        [1] * config["batch_size"],
        config["text_output"],
    )
    grouped = model(**batch, return_intermediates=True)
    with model.guidance_disabled():
        alone = model(**batch, return_intermediates=True)
    ours: Values = {"single5d.adaptive.pooled": grouped.intermediates["adaptive.pooled"]}
    for name, outputs in (("single4d", alone), ("single5d", grouped)):
        tokens = outputs.intermediates["visual_tokens"]
        ours[f"{name}.llm_proj.out"] = tokens.unflatten(0, (config["batch_size"], -1))
        ours[f"{name}.loss"] = outputs.loss
    return ours


def candidate_ranking(golden: Golden) -> Values:
    """``predict_class``."""
    ranks = rank_candidates(
        golden.model,
        golden.asking,
        golden.config["text_input"],
        golden.config["predict_class_candidates"],
        golden.images,
        golden.image_counts,
    )
    return {"predict_class.ranks": ranks}
