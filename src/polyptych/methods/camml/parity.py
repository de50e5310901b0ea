"""Is our CaMML equal to the published code? One line per golden tensor.

The golden folder holds inputs, weights (in the published layout) and every stage's output of the
published code on tiny random models, with B = 2 examples of K shots each: ``img_txt`` (the second
question is text only), ``img_img``, both examples of ``img_txt`` alone, and a greedy answer. The
published code calls its perceivers shot by shot; ours see all shots in one batch, flat: the k-th
shots of all examples are rows k, k + K, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionConfig

from polyptych.methods.camml.conversion import BERT_SIZES, config_from_released, convert_released
from polyptych.methods.camml.model import (
    PolyptychCammlConfig,
    PolyptychCammlForConditionalGeneration,
)
from polyptych.models.weights import overlay
from polyptych.parity import INPUT, ParityReport, Values, compare, dump, no_case
from polyptych.schema import IGNORE_INDEX, Batch, Shots

RUNS = ("img_txt", "img_img")
PLACEHOLDER = -200
"""The first of a row is the context's place, the second the image's."""
PAD = 0
NEW_TOKENS = 6
"""Of the golden greedy answer."""


def run(
    directory: str | Path, case: str, dump_to: str | Path | None = None, tolerance: float = 1e-4
) -> ParityReport:
    """Compare our code with the golden data of one case.

    Args:
        directory: The golden folder of CaMML.
        case: ``a`` (1 shot, linear projector) or ``b`` (3 shots, MLP projector).
        dump_to: Where to write our values under the golden names (safetensors).
        tolerance: Largest absolute difference that passes; ids, labels and masks have to be equal.

    Raises:
        PolyptychError: If the folder or case does not exist or is incomplete.
    """
    golden = read_golden(Path(directory), case)
    ours = stages(golden)
    for name in RUNS:
        ours |= {f"{name}.{key}": value for key, value in forward(golden, name).items()}
    for row in range(len(golden.values["images"])):
        ours |= {f"single{row}.{key}": value for key, value in single(golden, row).items()}
    ours["generate.output_ids"] = generation(golden)
    if dump_to is not None:
        dump(ours, dump_to)
    return compare(
        golden.values,
        ours,
        tolerance=tolerance,
        not_compared=dict.fromkeys(golden.inputs, INPUT),
        where={
            f"{name}.{key}": golden.values[f"{name}.spliced_attention_mask"].bool()
            for name in RUNS
            for key in ("inputs_embeds", "logits")  # what pads hold is never read
        },
    )


@dataclass(frozen=True, slots=True)
class Golden:
    """A case: what the published code was given and what it computed."""

    config: dict[str, Any]
    values: Values
    inputs: frozenset[str]
    """Names of the values that it was given."""
    model: PolyptychCammlForConditionalGeneration

    @property
    def shots(self) -> int:
        """K."""
        return self.config["shots"]

    def batch(self, run: str) -> Batch:
        """Both rows of a run, with their shots."""
        rows = [self._row(run, row) for row in range(2)]
        ids, labels, mask = (
            pad_sequence([row[part] for row in rows], batch_first=True, padding_value=fill)
            for part, fill in enumerate((PAD, IGNORE_INDEX, 0))
        )
        counts = torch.stack([(row[0] == self.model.config.image_token_id).any() for row in rows])
        return Batch(
            input_ids=ids,
            labels=labels,
            attention_mask=mask,
            image_counts=counts.long(),
            pixel_values=self.values["images"][counts],
            **self.shots_of(range(2)),
        )

    def single(self, row: int) -> Batch:
        """One row of ``img_txt`` alone, without its padding."""
        ids, labels, mask = (part[None] for part in self._row("img_txt", row))
        there = mask[0].bool()
        batch = Batch(
            input_ids=ids[:, there],
            labels=labels[:, there],
            attention_mask=mask[:, there],
            **self.shots_of([row]),
        )
        if bool((ids == self.model.config.image_token_id).any()):
            batch["pixel_values"] = self.values["images"][row : row + 1]
            batch["image_counts"] = torch.ones(1, dtype=torch.long)
        return batch

    def spliced(self, ids: Tensor, *aligned: Tensor) -> tuple[Tensor, ...]:
        """Ids with one reserved id per context and visual token; other rows 0 or ignored there."""
        config = self.model.config
        assert config.tokens_per_image is not None  # a ViT
        kinds = (
            (config.context_token_id, config.context_tokens),
            (config.image_token_id, config.tokens_per_image),
        )
        places = (ids == PLACEHOLDER).nonzero()[:, 0].tolist()
        starts = [0, *(place + 1 for place in places)]
        ends = [*places, len(ids)]
        parts: list[list[Tensor]] = [[] for _ in range(1 + len(aligned))]
        fills = (IGNORE_INDEX, 1)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            for kept, row in zip(parts, (ids, *aligned), strict=True):
                kept.append(row[start:end])
            if index < len(places):
                reserved, length = kinds[index]
                parts[0].append(ids.new_full((length,), reserved))
                for kept, fill in zip(parts[1:], fills, strict=False):
                    kept.append(ids.new_full((length,), fill))
        return tuple(torch.cat(kept) for kept in parts)

    def _row(self, run: str, row: int) -> tuple[Tensor, ...]:
        names = ("input_ids", "labels", "attention_mask")
        ids, labels, mask = (self.values[f"{run}.{name}"][row] for name in names)
        return self.spliced(ids, labels, mask)

    def shots_of(self, rows: Any) -> Shots:
        """The shots of these examples, without padding that is no row's of them."""
        texts = [
            self.values[f"context_ids.shot{shot}"][row][self._text_mask(shot, row)]
            for row in rows
            for shot in range(self.shots)
        ]
        ids = pad_sequence(texts, batch_first=True, padding_value=PAD)
        lengths = torch.tensor([len(text) for text in texts])
        return Shots(
            shot_counts=torch.tensor([self.shots for _ in rows]),
            shot_input_ids=ids,
            shot_attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            shot_image_counts=torch.ones(len(texts), dtype=torch.long),
            shot_pixel_values=torch.cat([self.values["images_ret"][row] for row in rows]),
        )

    def _text_mask(self, shot: int, row: int) -> Tensor:
        return self.values[f"context_mask.shot{shot}"][row].bool()


def read_golden(directory: Path, case: str) -> Golden:
    """Load a case, with its weights converted.

    Raises:
        PolyptychError: If there is no such case, or a file of it is missing.
    """
    folder = directory / case
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "state_dict.safetensors")
        inputs = load_file(folder / "inputs.safetensors")
        outputs = load_file(folder / "outputs.safetensors")
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise no_case(directory, case, "CaMML", error) from error
    model = PolyptychCammlForConditionalGeneration(our_config(config)).eval()
    converted = convert_released(weights, source=f"case {case}")
    model.load_state_dict(overlay([converted], model.state_dict(), source=f"case {case}"))
    values = dict(sorted(inputs.items())) | dict(sorted(outputs.items()))
    return Golden(config, values, frozenset(inputs), model)


def our_config(golden: dict[str, Any]) -> PolyptychCammlConfig:
    """The sizes of a golden case as the model takes them."""
    fields = {
        **golden["llm"],
        "mm_vision_tower": "clip",
        "mm_projector_type": golden["projector"],
        "mm_vision_select_layer": golden["vision_select_layer"],
        "mm_vision_select_feature": golden["vision_select_feature"],
        **{f"perceiver_{name}": golden[f"perceiver_{name}"] for name in ("querys", "layers")},
        "perceiver_hidden_size": golden["perceiver_hidden"],
    }
    bert = {
        **BERT_SIZES,
        "num_attention_heads": golden["bert"]["heads"],
        "intermediate_size": golden["bert"]["inter"],
        "cross_attention_frequency": golden["perceiver_cross_attention_freq"],
        "layer_norm_eps": golden["perceiver_layer_norm_eps"],
        "hidden_act": golden["perceiver_hidden_act"],
    }
    return config_from_released(fields, CLIPVisionConfig(**golden["clip"]), bert=bert)


# --- the stages, each under its golden names -----------------------------------------------------


@torch.no_grad()
def stages(golden: Golden) -> Values:
    """From pixels and words to context tokens, as in ``img_txt``."""
    model: Any = golden.model
    shots: Any = golden.shots_of(range(2))
    images = golden.values["images"]
    query: Values = {}
    model.encode_images(
        images, image_counts=torch.ones(len(images), dtype=torch.long), record=query
    )
    with _parts(model) as parts:
        tokens = model.encode_shots(**shots)
        model.camml.context_tokens(tokens, shots["shot_counts"])
    patches = model.config.tokens_per_image
    ours = {
        "vision_tower.call0": parts.pop("vision_tower"),
        "vision_tower.call1": query["image_features"],
        "mm_projector.call0": query["visual_tokens"].unflatten(0, (-1, patches)),
        "mm_projector.call1": parts.pop("mm_projector"),
        "context_proj_vision": parts.pop("context_proj_vision"),
        "context_proj_text": parts.pop("context_proj_text"),
    }
    parts["image_proj_to_perceiver"] = parts["image_proj_to_perceiver"].unflatten(0, (-1, patches))
    for name, value in parts.items():
        if name.startswith("context_perceiver"):  # both passes in one, vision first
            ours |= {f"{name}.call{index}": half for index, half in enumerate(value.chunk(2))}
            continue
        for shot in range(golden.shots):
            call = f".call{shot}" if golden.shots > 1 else ""
            length = golden.values[f"context_ids.shot{shot}"].shape[1]
            width = length if name.startswith(("language", "text")) else patches
            ours[f"{name}{call}"] = value[shot :: golden.shots, :width]
    return {f"stage.{name}": value for name, value in ours.items()}


@contextmanager
def _parts(model: PolyptychCammlForConditionalGeneration) -> Iterator[Values]:
    """Collects what happens inside, under the published names."""
    found: Values = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[name] = output

        return hook

    camml = model.camml
    watched: dict[str, Any] = {
        "vision_tower": model.vision_encoder,
        "mm_projector": model.connector.layers,
        "image_proj_to_perceiver": camml.image_projection,
        "text_proj_to_perceiver": camml.text_projection,
        "context_proj_vision": camml.context_perceiver.vision_projection,
        "context_proj_text": camml.context_perceiver.text_projection,
    }
    for name in ("vision_perceiver", "language_perceiver", "context_perceiver"):
        perceiver: Any = camml.get_submodule(name)
        watched |= {name: perceiver.layers[-1], f"{name}.embeddings": perceiver.embedding_norm}
        for index, layer in enumerate(perceiver.layers):
            watched[f"{name}.layer{index}.self_attn_out"] = layer.self_attention_norm
            if layer.has_cross_attention:
                watched[f"{name}.layer{index}.cross_attn_out"] = layer.cross_attention_norm
            watched[f"{name}.layer{index}.out"] = layer.query_ffn
    hooks = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def forward(golden: Golden, run: str) -> Values:
    """Both rows of a run: their layout, embeddings, logits, loss."""
    batch: Any = golden.batch(run)
    outputs = golden.model(**batch, return_intermediates=True)
    return {
        "inputs_embeds": outputs.intermediates["inputs_embeds"],
        "spliced_labels": batch["labels"],
        "spliced_attention_mask": batch["attention_mask"],
        "logits": outputs.logits,
        "loss": outputs.loss[None],
    }


@torch.no_grad()
def single(golden: Golden, row: int) -> Values:
    """A row alone: no other text that its own could be padded to."""
    batch: Any = golden.single(row)
    outputs = golden.model(**batch, return_intermediates=True)
    return {
        "context_tokens": outputs.intermediates["context_tokens"],
        "logits": outputs.logits,
        "loss": outputs.loss[None],
    }


@torch.no_grad()
def generation(golden: Golden) -> Tensor:
    """The greedy answer behind the prompt as it was given."""
    prompt = golden.values["generate.input_ids"]
    (ids,) = golden.spliced(prompt[0])
    model: Any = golden.model
    answer = model.generate(
        input_ids=ids[None],
        attention_mask=torch.ones_like(ids)[None],
        pixel_values=golden.values["images"][:1],
        image_counts=torch.ones(1, dtype=torch.long),
        **golden.shots_of([0]),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=PAD,
    )
    return torch.cat([prompt, answer[:, len(ids) :]], dim=1)
