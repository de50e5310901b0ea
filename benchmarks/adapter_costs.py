"""What SAM and VPG-C as adapters cost in training, beside LoRA, on a base of LLaVA's shape.

Measured at a moderate width, where time and memory of the base mean something; alone, against the
number of images; and counted at the shape of a 7B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from measuring import measure, peak_bytes
from polyptych.adapters.adapt import adapt
from polyptych.adapters.lora import lora_config
from polyptych.adapters.method import BaseSizes, Method
from polyptych.adapters.numbering import FlatPrefill
from polyptych.adapters.sam import Sam
from polyptych.adapters.tiny import TinySizes, tiny_family
from polyptych.adapters.vpgc import VpgC
from polyptych.schema import Example, ImageBlock, Message, TextBlock
from polyptych.testing import tiny_image
from scale import Adapters, Load, Shape, memory, step_flops

BASE, BOTH = "LoRA alone", "LoRA, SAM and VPG-C"

VARIANTS: dict[str, tuple[Method, ...]] = {
    BASE: (),
    "SAM": (Sam(),),
    "VPG-C": (VpgC(),),
    BOTH: (Sam(), VpgC()),
}

SIZES = TinySizes(
    side=336,
    patch=14,  # 576 visual tokens an image
    vision_width=256,
    vision_layers=4,
    width=512,
    layers=24,
    heads=8,
    positions=8192,
)
"""As deep as the smallest bases in use; what the methods add does not grow with the depth."""


def learner(methods: Sequence[Method], sizes: TinySizes) -> tuple[Any, Any]:
    """The base with LoRA and the methods, all of which learn; and its processor."""
    model, processor = tiny_family("llava", sizes=sizes)
    adapted = adapt(model, methods, processor=processor)
    torch.manual_seed(0)  # equal LoRA whatever the methods
    return get_peft_model(adapted.model, lora_config(adapted.model)).train(), adapted.processor


def example(images: int) -> Example:
    """A question over so many images, and its answer."""
    question = (*[ImageBlock()] * images, TextBlock("what do these pictures have in common?"))
    answer = Message("assistant", (TextBlock("a red ball is in every picture"),))
    pictures = tuple(tiny_image(seed) for seed in range(images))
    return Example("e", (Message("user", question), answer), pictures)


def step(model: Any, batch: dict[str, Tensor]) -> None:
    """Forward and backward."""
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()


def held_bytes(model: nn.Module) -> int:
    """Weights, and AdamW's two moments of those that learn."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights + sum(8 * p.numel() for p in model.parameters() if p.requires_grad)


def measured(images: int, repeats: int, sizes: TinySizes = SIZES) -> list[dict[str, Any]]:
    """Processor time of a step and all bytes at its peak, without the methods and with both."""
    models: dict[str, Any] = {}
    for name in (BASE, BOTH):
        models[name], processor = learner(VARIANTS[name], sizes)
        batch = processor.collate([example(images)], training=True)
    tasks = {name: partial(step, model, batch) for name, model in models.items()}
    times = measure(tasks, repeats, 120.0, summarize=min)
    rows = []
    for name, model in models.items():
        model.zero_grad()
        held = held_bytes(model)
        peak = held + peak_bytes(tasks[name])
        row = {"variant": name, "images": images, "held_mib": held / 2**20, "mib": peak / 2**20}
        rows.append({**row, **times[name]})
        model.zero_grad()
    return rows


# The modules alone.


def module_of(method: Method, hidden_size: int, layers: int = 32) -> nn.Module:
    """A method's module on a decoder of this width, its last linear no longer zero."""
    sizes = BaseSizes(hidden_size, layers, layers // 2, 0)
    torch.manual_seed(0)
    module = method.fitted(sizes).build(sizes)
    for weight in module.parameters():
        if not weight.any() and weight.ndim > 1:
            nn.init.normal_(weight, std=0.02)
    return module


def call_of(
    method: Method,
    module: nn.Module,
    images: int,
    tokens: int,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], Tensor]:
    """A pass of the module over one example; as in training, only VPG-C's inputs have gradients."""
    width = next(p.shape[-1] for p in module.parameters() if p.ndim == 1)
    learns = method.seam == "layer"
    visual = torch.randn(images * tokens, width, dtype=dtype, requires_grad=learns)
    prefill = FlatPrefill(
        torch.ones(1, images * tokens, dtype=torch.bool),
        torch.tensor([images]),
        torch.full((images,), tokens),
        visual,
        torch.tensor([images * tokens - 1]),
    )
    if not learns:
        return partial(module, prefill)
    hidden = torch.randn(1, images * tokens, width, dtype=dtype, requires_grad=True)
    return partial(module, hidden, prefill)


def kept_bytes(call: Callable[[], Tensor]) -> int:
    """What a pass keeps for its backward pass, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(kept.values())


def by_images(
    counts: Sequence[int], repeats: int, hidden_size: int = 512, tokens: int = 576
) -> list[dict[str, Any]]:
    """Processor time of a forward and backward pass of each module, and the bytes it keeps."""
    rows = []
    for name in ("SAM", "VPG-C"):
        (method,) = VARIANTS[name]
        module = module_of(method, hidden_size)
        for images in counts:
            call = call_of(method, module, images, tokens)
            result = measure({name: _backward(call)}, repeats, 20.0, summarize=min)[name]
            kept = kept_bytes(call) / 2**20
            rows.append({"variant": name, "images": images, "kept_mib": kept, **result})
    return rows


def _backward(call: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: call().sum().backward()


def counted(load: Load, shape: Shape = Shape()) -> Adapters:  # noqa: B008  # frozen value
    """SAM + VPG-C at a base's real width.

    FLOPs by torch's counter, which knows unfused attention alone; bytes in bf16, as recipes train.
    """
    parameters, flops, kept = 0, 0.0, 0
    for method in VARIANTS[BOTH]:
        module = module_of(method, shape.hidden, shape.layers)
        parameters += sum(p.numel() for p in module.parameters())
        sizes = (load.images, load.tokens_per_image)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call_of(method, module, *sizes)().sum().backward()
        flops += counter.get_total_flops()
        with torch.autocast("cpu", torch.bfloat16):
            kept += kept_bytes(call_of(method, module, *sizes, dtype=torch.bfloat16))
    return Adapters(parameters, flops, kept)


def share_of_7b(images: int) -> dict[str, float]:
    """What the adapters add to a step of the 7B on one GPU, as shares.

    Bytes with all activations kept, and with layers computed twice.
    """
    load, shape = Load(images=images), Shape()
    adapters = counted(load)

    def more(with_adapters: float, without: float) -> float:
        return with_adapters / without - 1

    shares = {"images": images}
    shares["flops"] = more(*(step_flops(shape, load, own)[0] for own in (adapters, None)))
    for name, twice in (("bytes", False), ("bytes_checkpointing", True)):
        one = replace(load, checkpointing=twice)
        shares[name] = more(*(memory(shape, one, own, "DDP", 1, 1) for own in (adapters, None)))
    return shares
