"""Several processes: how a run is spread over them, and what keeps them in step.

What a run learns does not depend on any of this: every optimizer step takes the same examples,
whoever computes them. So the choice is an argument of the run and no field of its recipe.

ddp    every process holds the whole model and averages gradients
fsdp2  the decoder's layers (one by one) and all the rest (together) are sharded, PyTorch's FSDP2
zero2  gradients and the optimizer are sharded, by DeepSpeed
zero3  the weights, too

The settings of each are the JSON file of that name in ``configs/``: fields of transformers'
``TrainingArguments``. A path of such a file may stand for the name.
"""

from __future__ import annotations

import importlib.util
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, TrainingArguments

from polyptych.errors import PolyptychError

PARALLEL = ("ddp", "fsdp2", "zero2", "zero3")
"""Shipped ways to spread a run."""


def process_count() -> int:
    """Processes of this run, as ``torchrun`` and the other launchers say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_processes() -> bool:
    """Leave the group of processes, if there is one; whether this is the one that speaks."""
    state = PartialState()
    is_main = state.is_main_process
    state.destroy_process_group()
    return is_main


def parallel_arguments(name: str) -> dict[str, Any]:
    """Fields of ``TrainingArguments`` for a shipped way or a file of one's own.

    Raises:
        PolyptychError: If there is no such way or file, it needs several processes and there is
            one, or a package is missing.
    """
    shipped = files("polyptych.training").joinpath("configs", f"{name}.json")
    try:
        fields = json.loads((shipped if name in PARALLEL else Path(name)).read_text())
    except OSError:
        raise PolyptychError(
            f"parallel {name!r} is neither a file nor one of {', '.join(PARALLEL)}"
        ) from None
    except ValueError as error:
        raise PolyptychError(f"{name}: not valid JSON: {error}") from error
    if "fsdp" in fields and process_count() == 1:
        raise PolyptychError(
            f"{name} needs several processes, there is 1: torchrun --nproc-per-node N"
        )
    if "deepspeed" in fields and importlib.util.find_spec("deepspeed") is None:
        raise PolyptychError(f"{name} needs DeepSpeed: pip install deepspeed")
    return fields


def shard_decoder_layers(args: TrainingArguments, model: PreTrainedModel) -> None:
    """Say which layers FSDP shards one by one: the decoder's, which every batch passes through.

    The default is also the vision encoder's, which a process without a picture passes by, while
    the others wait for its share of the weights.
    """
    if args.fsdp_plugin_args is not None:
        layers: Any = model.get_decoder().layers
        args.fsdp_plugin_args["transformer_cls_names_to_wrap"] = [type(layers[0]).__name__]


def keep_in_step(model: PreTrainedModel, *, whole_weights: bool = True) -> RemovableHandle:
    """Let every trained parameter take part in every loss, by a zero where it has no other part.

    A process whose batch has no picture (or no pair of pictures, or no shots) has no gradient for
    what reads them, and the others wait for it forever; on one process the optimizer would skip
    these parameters, on two it would not. Only what lies outside the decoder is concerned.

    Args:
        model: Gets a hook; to be called after its trained parameters are chosen and before it is
            wrapped.
        whole_weights: False where weights are sharded also inside ``forward`` (ZeRO-3): then a
            batch without pictures is refused, since nothing would keep the processes in step.

    Returns:
        What takes the hook away.
    """
    decoder: Any = model.get_decoder()
    always = {id(parameter) for parameter in decoder.parameters()}
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in always
    ]

    def add_zero(model: nn.Module, inputs: Any, output: Any) -> None:
        if names and torch.is_grad_enabled():
            # Looked up at every call: FSDP2 puts other tensors in place inside forward.
            zero = 0.0 * torch.stack([model.get_parameter(name).sum() for name in names]).sum()
            from_it = "logits" if output.loss is None else "loss"  # what the loss comes from
            output[from_it] = output[from_it] + zero.to(output[from_it].dtype)

    def refuse_text(model: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        counts = inputs.get("image_counts")
        if torch.is_grad_enabled() and counts is not None and int(counts.sum()) == 0:
            raise PolyptychError(
                f"a batch of {len(counts)} examples has 0 images; under ZeRO-3 the other processes "
                "would wait for this one forever: use zero2 or fsdp2, or a larger micro_batch_size"
            )

    if whole_weights:
        return model.register_forward_hook(add_zero)
    return model.register_forward_pre_hook(refuse_text, with_kwargs=True)
