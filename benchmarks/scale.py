"""On paper: a 7B with LoRA and adapters on 8 and 64 GPUs. Nothing here is measured.

Every number of the table follows from the sizes and assumptions below by the formulas below.
FLOPs are counted as usual: two per product, attention in full; ``tests/test_benchmark_training.py``
holds the decoder's against torch's own counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GB, TERA = 1e9, 1e12

Plan = Literal["FSDP2, ZeRO-3", "DDP"]
"""Frozen weights in shards, gathered layer by layer; or whole on every GPU."""


@dataclass(frozen=True, slots=True)
class Shape:
    """LLaVA-1.5-7B: Vicuna behind CLIP ViT-L/14 at 336 pixels and a projector of two layers."""

    hidden: int = 4096
    layers: int = 32
    intermediate: int = 11008
    vocabulary: int = 32000
    vision_hidden: int = 1024
    vision_layers: int = 24
    vision_tokens: int = 577

    @property
    def decoder(self) -> int:
        """Weights of the decoder's linear layers."""
        per_layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.layers * per_layer

    @property
    def vision(self) -> int:
        """Weights of the vision encoder's linear layers."""
        return self.vision_layers * 12 * self.vision_hidden**2

    @property
    def projector(self) -> int:
        """Weights between the two."""
        return self.hidden * (self.vision_hidden + self.hidden)

    @property
    def frozen(self) -> int:
        """All weights of the base."""
        tables = 2 * self.vocabulary * self.hidden
        return self.decoder + self.vision + self.projector + tables

    def lora(self, rank: int) -> int:
        """Weights of LoRA on the decoder's linear layers."""
        ends = 4 * 2 * self.hidden + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * ends


@dataclass(frozen=True, slots=True)
class Adapters:
    """What the adapters add; counted, see ``adapter_costs.counted``."""

    parameters: int
    flops: float
    """Forward and backward, of one example."""
    kept_bytes: float
    """For the backward pass, of one example."""


@dataclass(frozen=True, slots=True)
class Load:
    """One example, and how it is trained."""

    images: int = 8
    tokens_per_image: int = 576
    text_tokens: int = 256
    rank: int = 16
    checkpointing: bool = True

    @property
    def length(self) -> int:
        """T, positions of a row."""
        return self.images * self.tokens_per_image + self.text_tokens


@dataclass(frozen=True, slots=True)
class Hardware:
    """Assumptions on the machines."""

    name: str = "H100 SXM, 80 GB"
    peak: float = 989 * TERA
    """Dense bf16 FLOP/s of a GPU."""
    utilization: float = 0.4
    """Share of the peak that executed FLOPs reach."""
    node: int = 8
    """GPUs in a node."""
    inside: float = 450 * GB
    """Bytes/s that a GPU takes in by NVLink."""
    between: float = 400 * GB
    """The same in rings through several nodes: 8 network cards of 400 Gbit/s a node, all used."""
    reached: float = 0.7
    """Share of either that collectives reach."""
    runtime: float = 2 * GB
    """CUDA context, communication buffers, fragments."""

    def bandwidth(self, gpus: int) -> float:
        """Bytes/s of a GPU in a collective over so many."""
        return self.reached * (self.inside if gpus <= self.node else self.between)


def forward_flops(shape: Shape, length: int) -> float:
    """Of the decoder and its head over one row."""
    linear = 2 * length * (shape.decoder + shape.vocabulary * shape.hidden)
    return linear + 4 * length**2 * shape.hidden * shape.layers


def backward_flops(shape: Shape, length: int) -> float:
    """With frozen weights: as many as forward; in attention, four products for two, twice."""
    return forward_flops(shape, length) + 4 * length**2 * shape.hidden * shape.layers


def vision_flops(shape: Shape, load: Load) -> float:
    """Frozen, without a backward pass."""
    tokens = shape.vision_tokens
    encoder = 2 * tokens * shape.vision
    encoder += 4 * tokens**2 * shape.vision_hidden * shape.vision_layers
    return load.images * (encoder + 2 * load.tokens_per_image * shape.projector)


def step_flops(shape: Shape, load: Load, adapters: Adapters | None) -> tuple[float, float]:
    """Of one example: what the model needs, and what is executed with layers computed twice."""
    length = load.length
    needed = forward_flops(shape, length) + backward_flops(shape, length)
    needed += 6 * length * shape.lora(load.rank) + vision_flops(shape, load)
    needed += adapters.flops if adapters else 0.0
    again = 2 * length * (shape.decoder + shape.lora(load.rank))
    again += 4 * length**2 * shape.hidden * shape.layers
    return needed, needed + again * load.checkpointing


def trained(shape: Shape, load: Load, adapters: Adapters | None) -> int:
    """Weights that learn."""
    return shape.lora(load.rank) + (adapters.parameters if adapters else 0)


def memory(
    shape: Shape, load: Load, adapters: Adapters | None, plan: Plan, gpus: int, micro: int
) -> float:
    """Bytes on each GPU at the peak of a step.

    Frozen weights in bf16; those that learn with gradient and both moments in fp32. Of activations,
    a layer's input stays with checkpointing, and all of one layer while it is computed again;
    logits come in bf16 and, for the loss, twice in fp32.
    """
    shards = gpus if plan != "DDP" else 1
    weights = 2 * shape.frozen + 16 * trained(shape, load, adapters)
    layer = shape.decoder // shape.layers
    gathered = 0 if plan == "DDP" else 2 * (2 * layer + 2 * shape.vocabulary * shape.hidden)
    tokens = micro * load.length
    inside_layer = 2 * tokens * (10 * shape.hidden + 4 * shape.intermediate)
    if load.checkpointing:
        states = 2 * tokens * shape.hidden * shape.layers + inside_layer
    else:
        states = inside_layer * shape.layers
    logits = (2 + 4 + 4) * tokens * shape.vocabulary
    kept = micro * adapters.kept_bytes if adapters else 0.0
    return weights / shards + gathered + states + logits + kept + Hardware().runtime


def traffic(shape: Shape, load: Load, adapters: Adapters | None, plan: Plan, gpus: int) -> float:
    """Bytes that each GPU takes in per step of one micro-batch.

    Shards: frozen weights come in bf16 for the forward and again for the backward pass, gradients
    of what learns leave in fp32. Whole copies: gradients alone, reduced and spread.
    """
    others = (gpus - 1) / gpus
    learned = trained(shape, load, adapters)
    if plan == "DDP":
        return others * 2 * 4 * learned
    return others * (2 * 2 * (shape.frozen + learned) + 4 * learned)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One row of the table."""

    plan: Plan
    gpus: int
    micro: int
    seconds: float
    """Of a step."""
    communicating: float
    """Seconds that communication takes, beside computation."""
    tokens_per_second: float
    """Of all GPUs, visual tokens included."""
    utilization: float
    """Model FLOPs, without what is computed twice, over the peak."""
    bytes_per_gpu: float
    traffic: float


def estimate(
    plan: Plan,
    gpus: int,
    micro: int,
    adapters: Adapters | None,
    shape: Shape = Shape(),  # frozen values
    load: Load = Load(),
    hardware: Hardware = Hardware(),
) -> Estimate:
    """A step without accumulation; communication hides behind computation where it is shorter."""
    needed, executed = (micro * flops for flops in step_flops(shape, load, adapters))
    computing = executed / (hardware.utilization * hardware.peak)
    taken_in = traffic(shape, load, adapters, plan, gpus)
    communicating = taken_in / hardware.bandwidth(gpus)
    seconds = max(computing, communicating)
    return Estimate(
        plan=plan,
        gpus=gpus,
        micro=micro,
        seconds=seconds,
        communicating=communicating,
        tokens_per_second=gpus * micro * load.length / seconds,
        utilization=needed / seconds / hardware.peak,
        bytes_per_gpu=memory(shape, load, adapters, plan, gpus, micro),
        traffic=taken_in,
    )


def rows(adapters: Adapters) -> list[Estimate]:
    """Both plans on 8 and 64 GPUs, one and four examples at a time."""
    plans: tuple[Plan, ...] = ("FSDP2, ZeRO-3", "DDP")
    return [
        estimate(plan, gpus, micro, adapters)
        for gpus in (8, 64)
        for plan in plans
        for micro in (1, 4)
    ]


def table(adapters: Adapters) -> list[str]:
    """The rows in Markdown, with all assumptions."""
    shape, load, machine = Shape(), Load(), Hardware()
    needed, executed = step_flops(shape, load, adapters)
    without, _ = step_flops(shape, load, None)
    head = (
        "GPUs",
        "plan",
        "examples a GPU",
        "s a step",
        "s of communication, hidden",
        "tokens/s",
        "model FLOPs over peak",
        "GB a GPU",
        "GB taken in by a GPU and step",
    )
    lines = [f"| {' | '.join(head)} |", "| ---: | --- " + "| ---: " * 7 + "|"]
    for row in rows(adapters):
        cells = [
            f"{row.gpus}",
            row.plan,
            f"{row.micro}",
            f"{row.seconds:.2f}",
            f"{row.communicating:.3f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.utilization:.0%}",
            f"{row.bytes_per_gpu / GB:.1f}",
            f"{row.traffic / GB:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    learned, own = trained(shape, load, adapters) / 1e6, adapters.parameters / 1e6
    assumed = (
        f"{machine.name}, {machine.peak / TERA:.0f} TFLOP/s in bf16, of which executed FLOPs reach "
        f"{machine.utilization:.0%}",
        f"a GPU takes in {machine.inside / GB:.0f} GB/s inside a node of {machine.node} and "
        f"{machine.between / GB:.0f} GB/s across nodes (8 cards of 400 Gbit/s); collectives reach "
        f"{machine.reached:.0%} of it",
        f"{machine.runtime / GB:.0f} GB for the runtime",
        f"LLaVA-1.5-7B, {shape.frozen / 1e9:.2f} billion frozen weights in bf16; LoRA of rank "
        f"{load.rank} on the decoder, SAM and VPG-C: {learned:.1f} million weights with gradient "
        f"and moments in fp32, {own:.1f} million of them of SAM and VPG-C",
        f"rows of {load.images} × {load.tokens_per_image} visual and {load.text_tokens} other "
        "tokens; layers computed twice; images encoded in every step; data are there in time; no "
        "accumulation",
    )
    return [
        *lines,
        "",
        f"Assumed: {'; '.join(assumed)}. An example takes {needed / TERA:.0f} TFLOPs "
        f"({executed / TERA:.0f} executed), {needed / without - 1:+.2%} by SAM and VPG-C.",
    ]
