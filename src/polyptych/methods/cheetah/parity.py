"""Is our VPG-C equal to the published Cheetah code? One line per golden tensor.

The golden folder holds inputs, weights (in the published layout) and every stage's output of the
published code on tiny random models: ``train`` (two rows, teacher forcing), ``single`` (one chat
prompt) and ``batch`` (two). We convert the weights, run our code on the same piece ids, and
compare. Golden tensors per image are (B, n, ...); ours are flat over the images, row by row.
"""

from __future__ import annotations

import copy
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

from polyptych.data.conversation import TEMPLATES, render
from polyptych.methods.cheetah.conversion import convert_released
from polyptych.methods.cheetah.model import (
    PolyptychCheetahConfig,
    PolyptychCheetahForConditionalGeneration,
)
from polyptych.methods.cheetah.released import (
    VARIANTS,
    ReleasedRow,
    freeze_to_released,
    lay_out,
    released_example,
    released_image_processor,
)
from polyptych.models.weights import overlay
from polyptych.parity import INPUT, ParityReport, Values, as_bytes, compare, dump, no_case
from polyptych.schema import Batch, Example

RUNS = ("train", "single", "batch")
_TEXTS = (*((run, "prompts") for run in RUNS), ("train", "targets"))
BOS = 1
"""Before the first piece of training rows; before generated ids, where it was never fed."""


def run(
    directory: str | Path, case: str, dump_to: str | Path | None = None, tolerance: float = 1e-4
) -> ParityReport:
    """Compare our code with the golden data of one case.

    Args:
        directory: The golden folder of Cheetah.
        case: ``a`` (Vicuna) or ``b`` (LLaMA-2).
        dump_to: Where to write our values under the golden names (safetensors).
        tolerance: Largest absolute difference that passes; ids and masks have to be equal.

    Raises:
        PolyptychError: If the folder or case does not exist or is incomplete.
    """
    golden = read_golden(Path(directory), case)
    ours: Values = preprocessing(golden) | prompts(golden)
    for name in RUNS:
        ours |= {f"{name}.{key}": value for key, value in forward(golden, name).items()}
    ours |= training(golden)
    for name in RUNS[1:]:
        ours |= {f"{name}.{key}": value for key, value in generation(golden, name).items()}
    if dump_to is not None:
        dump(ours, dump_to)
    return compare(
        golden.values,
        ours,
        tolerance=tolerance,
        not_compared={name: INPUT for name in golden.values if _is_input(name)},
        where={
            name: golden.values[f"{name.split('.')[0]}.attention_mask"].bool()
            for name in golden.values
            if ".llm." in name  # what pads compute differs between the variants and is never read
        },
    )


def _is_input(name: str) -> bool:
    parts = name.split(".")
    return name == "images" or parts[-1] == "rgb_uint8" or parts[-1] in ("ids", "mask")


@dataclass(frozen=True, slots=True)
class Golden:
    """A case: what the published code was given and what it computed."""

    config: dict[str, Any]
    values: Values
    model: PolyptychCheetahForConditionalGeneration

    def batch(self, run: str) -> Batch:
        """The rows of a run, from its piece ids, in the published layout."""
        config = self.model.config
        count = self.config["n_images"] + 1
        pieces = [self._unpadded(f"{run}.seg{index}") for index in range(count)]
        targets: list[tuple[int, ...]] = [()] * len(pieces[0])
        if run == "train":
            pieces[0] = [(BOS, *piece) for piece in pieces[0]]
            targets = self._unpadded("train.target")
        rows = zip(zip(*pieces, strict=True), targets, strict=True)
        batch = lay_out(
            [ReleasedRow(row, target) for row, target in rows],
            image_token_id=config.image_token_id,
            tokens_per_image=config.num_query_tokens,
            pad_token_id=self.config["special_ids"]["pad"],
            training=run == "train",
        )
        images = self.values["images"][: len(targets)]  # (B, 3, n, S, S)
        batch["pixel_values"] = images.transpose(1, 2).flatten(0, 1)
        return batch

    def _unpadded(self, name: str) -> list[tuple[int, ...]]:
        ids, mask = self.values[f"{name}.ids"], self.values[f"{name}.mask"].bool()
        return [tuple(row[there].tolist()) for row, there in zip(ids, mask, strict=True)]

    def by_image(self, flat: Tensor) -> Tensor:
        """Ours, flat over images -> golden (B, n, ...)."""
        return flat.unflatten(0, (-1, self.config["n_images"]))


def read_golden(directory: Path, case: str) -> Golden:
    """Load a case, with its weights converted.

    Raises:
        PolyptychError: If there is no such case, or a file of it is missing.
    """
    try:
        config = json.loads((directory / case / "config.json").read_text(encoding="utf-8"))
        weights = load_file(directory / case / "state_dict.safetensors")
        inputs = load_file(directory / case / "inputs.safetensors")
        outputs = load_file(directory / case / "outputs.safetensors")
        pictures = load_file(directory / "preprocess.safetensors")
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise no_case(directory, case, "Cheetah", error) from error
    values = {f"preprocess.{name}": value for name, value in pictures.items()}
    values |= {f"{run}.text.{kind}": as_bytes(config["texts"][run][kind]) for run, kind in _TEXTS}
    values |= dict(sorted(inputs.items())) | dict(sorted(outputs.items()))
    model = PolyptychCheetahForConditionalGeneration(our_config(config)).eval()
    converted = convert_released(weights, source=f"case {case}")
    model.load_state_dict(overlay([converted], model.state_dict(), source=f"case {case}"))
    return Golden(config, values, model)


def our_config(golden: dict[str, Any]) -> PolyptychCheetahConfig:
    """The sizes of a golden case as the model takes them."""
    vit, qformer, llm = golden["vit"], golden["qformer"], golden["llm"]
    return PolyptychCheetahConfig(
        injection_layer=golden["update_layer"],
        num_query_tokens=qformer["num_query"],
        instruction_aware=False,
        vision_config={
            "model_type": "instructblip_vision_model",
            "image_size": vit["image"],
            "patch_size": vit["patch"],
            "hidden_size": vit["width"],
            "num_hidden_layers": vit["depth"],
            "num_attention_heads": vit["heads"],
            "intermediate_size": int(vit["width"] * vit["mlp_ratio"]),
        },
        qformer_config={
            "hidden_size": qformer["hidden"],
            "num_hidden_layers": qformer["layers"],
            "num_attention_heads": qformer["heads"],
            "intermediate_size": qformer["intermediate"],
            "cross_attention_frequency": qformer["cross_attention_freq"],
            "layer_norm_eps": qformer["layer_norm_eps"],
        },
        text_config={
            "model_type": "llama",
            "vocab_size": llm["vocab"],
            "hidden_size": llm["hidden"],
            "num_hidden_layers": llm["layers"],
            "num_attention_heads": llm["heads"],
            "num_key_value_heads": llm["kv_heads"],
            "intermediate_size": llm["intermediate"],
            "rms_norm_eps": llm["rms_eps"],
            "rope_theta": llm["rope_base"],
            "bos_token_id": golden["special_ids"]["bos"],
            "eos_token_id": golden["special_ids"]["eos"],
            "pad_token_id": golden["special_ids"]["pad"],
        },
    )


# --- the stages, each under its golden names -----------------------------------------------------


def preprocessing(golden: Golden) -> Values:
    """Picture -> pixel values at both golden sizes, by the saved image processor."""
    ours = {}
    for name in ("up", "down"):
        picture = Image.fromarray(golden.values[f"preprocess.{name}.rgb_uint8"].numpy())
        size = golden.values[f"preprocess.{name}.pixels"].shape[-1]
        pixels = released_image_processor(size)([picture], return_tensors="pt")["pixel_values"]
        ours[f"preprocess.{name}.pixels"] = pixels[0]
    return ours


def prompts(golden: Golden) -> Values:
    """What is asked and answered -> the published texts, by the row templates."""
    variant, raw = VARIANTS[golden.config["variant"]], golden.config["raw"]
    trained = [
        _texts(released_example(asked, answer), variant.training_template)
        for asked, answer in zip(raw["train_in"], raw["train_out"], strict=True)
    ]
    end = "" if TEMPLATES[variant.training_template].answer_end else variant.end_mark  # an id, then
    asked = {
        "single": [_texts(released_example(raw["infer"]), variant.chat_template)[0]],
        "batch": [
            _texts(released_example(text), variant.chat_template)[0] for text in raw["batch"]
        ],
    }
    return {
        "train.text.prompts": as_bytes([prompt for prompt, _ in trained]),
        "train.text.targets": as_bytes([answer + end for _, answer in trained]),
        **{f"{run}.text.prompts": as_bytes(texts) for run, texts in asked.items()},
    }


def _texts(example: Example, template: str) -> tuple[str, str]:
    """A row's prompt, with the published mark for images, and its answer."""
    segments = render(example.messages, template, with_target=example.target is not None)
    texts = [(segment.text or "<HereForImage>", segment.is_target) for segment in segments]
    prompt = "".join(text for text, is_target in texts if not is_target)
    return prompt, "".join(text for text, is_target in texts if is_target)


@torch.no_grad()
def forward(golden: Golden, run: str) -> Values:
    """One pass over the rows of a run: their layout, both looks, every layer, logits."""
    batch = golden.batch(run)
    with _parts(golden.model) as ours:
        outputs = golden.model(**batch, return_intermediates=True)
    found = outputs.intermediates
    ours |= {
        "attention_mask": batch["attention_mask"],
        "guidance_index": batch["last_prompt"],
        "image_spans": _spans(batch["input_ids"][0] == golden.model.config.image_token_id, golden),
        "inputs_embeds": found["inputs_embeds"],
        "vit.ln_vision": found["image_features"],
        "llama_proj": found["visual_tokens"].unflatten(
            0, (-1, golden.model.config.num_query_tokens)
        ),
        "qformer2.query_embeds": found["vpgc.query_embeds"],
        "qformer2.embeddings": found["vpgc.embeddings"],
        "vpgc.guidance_hidden": found["vpgc.guidance_hidden"][:, None],
        "vpgc.guidance": found["vpgc.guidance"][:, None],
        "vpgc.residual": found["vpgc.residual"],
        "llm.layer0.in": found["inputs_embeds"],
        "llm.pre_injection": found["vpgc.before"],
        "llm.post_injection": found["vpgc.after"],
        "llm.logits": outputs.logits,
    }
    for layer in range(golden.config["qformer"]["layers"]):
        ours[f"qformer1.layer{layer}"] = found[f"qformer.layer.{layer}"]
        ours[f"qformer2.layer{layer}"] = found[f"vpgc.qformer.layer.{layer}"]
    if run == "train":
        ours |= {"image_embeds": found["image_features"], "labels": batch["labels"]}
    images = len(batch["pixel_values"])
    per_image = ("vit.", "qformer", "llama_proj", "image_embeds", "vpgc.residual")
    for name, value in ours.items():
        if name.startswith(per_image):
            ours[name] = golden.by_image(value.expand(images, *value.shape[1:]))
    return ours


def _spans(visual: Tensor, golden: Golden) -> Tensor:
    """(n, 2): where each image starts and ends in a row."""
    starts = visual.nonzero()[:: golden.model.config.num_query_tokens, 0]
    return torch.stack([starts, starts + golden.model.config.num_query_tokens], dim=1)


@contextmanager
def _parts(model: PolyptychCheetahForConditionalGeneration) -> Iterator[Values]:
    """Collects what happens inside the unmodified parts; of the Q-Former, in its first look."""
    stages: Values = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
            stages.setdefault(name, output[0] if isinstance(output, tuple) else output)

        return hook

    vision: Any = model.vision_encoder.model
    decoder: Any = model.get_decoder()
    watched = {
        "vit.patch_embed": vision.embeddings.patch_embedding,
        **{f"vit.block{i}": layer for i, layer in enumerate(vision.encoder.layers)},
        "qformer1.embeddings": model.connector.qformer.embedding_norm,
        **{f"llm.layer{i}.out": layer for i, layer in enumerate(decoder.layers)},
        "llm.norm": decoder.norm,
    }
    hooks = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    try:
        yield stages
    finally:
        for hook in hooks:
            hook.remove()
    stages["vit.patch_embed"] = stages["vit.patch_embed"].flatten(2).transpose(1, 2)
    stages["qformer1.query_embeds"] = model.connector.qformer.query_tokens


def training(golden: Golden) -> Values:
    """Loss, with and without VPG-C, and its gradients by the five tensors that are trained."""
    model = copy.deepcopy(golden.model)
    freeze_to_released(model)
    batch = golden.batch("train")
    names = {
        name: next(iter(convert_released({name.removeprefix("train.grad."): value})))
        for name, value in golden.values.items()
        if name.startswith("train.grad.")
    }
    loss = model(**batch).loss
    gradients = torch.autograd.grad(loss, [model.get_parameter(ours) for ours in names.values()])
    with torch.no_grad(), model.vpgc_disabled():
        without = model(**batch).loss
    return {
        "train.loss": loss.detach()[None],
        "train.loss_without_residual": without[None],
        **dict(zip(names, gradients, strict=True)),
    }


@torch.no_grad()
def generation(golden: Golden, run: str) -> Values:
    """Greedy ids and the logits of every step, from the cache; three beams; without residuals."""
    model: Any = golden.model
    batch = golden.batch(run)

    def generate(**settings: Any) -> tuple[Tensor, Any]:
        outputs = model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=golden.config["max_new_tokens"],
            eos_token_id=golden.config["special_ids"]["eos"],
            pad_token_id=golden.config["special_ids"]["pad"],
            return_dict_in_generate=True,
            output_logits=True,
            **settings,
        )
        new = outputs.sequences[:, batch["input_ids"].shape[1] :]
        return torch.cat([new.new_full((len(new), 1), BOS), new], dim=1), outputs.logits

    greedy, logits = generate()
    ours = {"generated_ids": greedy, "step_logits": torch.stack(logits, dim=1)}
    if run == "single":
        ours["generated_ids_beam3"] = generate(num_beams=3)[0]
    with model.vpgc_disabled():
        ours["generated_ids_without_residual"] = generate()[0]
    return ours
