"""Decoding steps of small decoders on a CPU: large products instead of many small calls.

One new token for each of five beams is a few dozen products of five rows. At such sizes a general
implementation spends most of its time between them: separate projections, copies of keys and values
that follow the beams, masks made anew. Here weights are put together and laid out once, to be used
until somebody changes them, and beams are branches of one row: an example's new tokens stand side
by side behind its prompt, and a mask says which of them each beam has written, so that the prompt
is kept once and following the beams moves a few bits. (Published as tree attention, SpecInfer,
arXiv 2305.09781.)

The arithmetic is that of transformers' LLaMA, whose results it gives up to float32 rounding; which
decoders have that shape says :func:`has_small_steps`. All others, and large ones, whose time is in
the products anyway, are stepped by transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, Qwen2ForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from polyptych.models.kept_weights import Fingerprint
from polyptych.models.onednn import MAX_PACKED, OneDnnLinear, packed_product

STEPS = 64
"""Steps that fit before keys and values are moved to a larger place."""

PACKED_ROWS = 4
"""With fewer rows the usual product is faster than one of weights that were laid out for it."""

Product = Callable[[Tensor], Tensor]
"""``x W^T + b`` with weights that it knows."""

_SHAPES = (LlamaForCausalLM, Qwen2ForCausalLM)
"""Decoders of equal arithmetic: RMS norms, rotary positions, gated SiLU; biases may differ."""


def acts_on_prompts_only(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook of a decoder that does nothing while single tokens are decoded."""
    hook.acts_on_prompts_only = True  # type: ignore[attr-defined]
    return hook


def has_small_steps(language_model: Any, cache: Cache) -> bool:
    """Whether a prompt's ``cache`` can be gone on from here with the same results.

    Not where gradients are wanted, where a layer was replaced (LoRA) or is watched by a hook, or
    where precision, device, attention windows or the number of parameters speak against it.
    """
    if type(language_model) not in _SHAPES or torch.is_grad_enabled():
        return False
    config, weights = language_model.config, list(language_model.parameters())
    hooks = (
        hook
        for module in language_model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    return (
        sum(weight.numel() for weight in weights) <= MAX_PACKED
        and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        and not torch.is_autocast_enabled("cpu")
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and not cache.offloading
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        and all(type(layer) in (nn.Linear, OneDnnLinear) for layer in _linears(language_model))
        and all(getattr(hook, "acts_on_prompts_only", False) for hook in hooks)
    )


def _linears(language_model: Any) -> Iterator[nn.Module]:
    """What a step multiplies with."""
    yield language_model.lm_head
    for layer in language_model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


class BranchingCache(Cache):
    """What a generation knows and how it goes on: weights, keys and values, who has written what.

    To ``generate`` it is a cache; it is the model that calls :meth:`step`.

    Args:
        language_model: A decoder with small steps.
        prompt: The cache after the prompts were read, one row per example.
        copies: Beams or samples of each example.
    """

    def __init__(self, language_model: Any, prompt: Cache, copies: int) -> None:
        super().__init__(layers=[])
        decoder = language_model.model
        rows = prompt.layers[0].keys.shape[0] * copies  # type: ignore[union-attr]
        self.copies = copies
        self.prompt_length = self.length = prompt.get_seq_length()
        self._rotary = decoder.rotary_emb
        self._layers = [
            _Layer(layer, cached.keys, cached.values, STEPS * copies, rows)  # type: ignore[union-attr, arg-type]
            for layer, cached in zip(decoder.layers, prompt.layers, strict=True)
        ]
        self._norm = decoder.norm
        self._head = _product(rows, language_model.lm_head)
        self._seen: Tensor | None = None  # (B, copies, room), 0 or -inf; known at the first step

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each row: the prompt and what it has written."""
        return self.length

    @property
    def is_compileable(self) -> bool:
        """Nothing here has a fixed shape."""
        return False

    def reorder_cache(self, beam_idx: Int[Tensor, " C"]) -> None:
        """Row i goes on from row ``beam_idx[i]``, which belongs to the same example."""
        if self._seen is not None:
            self._seen = self._seen.flatten(0, 1)[beam_idx].view_as(self._seen)

    def step(
        self,
        inputs_embeds: Float[Tensor, "C 1 D_llm"],
        attention_mask: Int[Tensor, "C L"] | None,
        position_ids: Int[Tensor, "C 1"] | None,
    ) -> Float[Tensor, "C 1 V"]:
        """Read one more token of every row: logits of the next."""
        rows = len(inputs_embeds)
        if position_ids is None:
            position_ids = torch.full((rows, 1), self.length)
        seen = self._see(rows // self.copies, attention_mask)
        rotation = _Rotation(self.copies, *self._rotary(inputs_embeds, position_ids))
        states = inputs_embeds[:, 0]
        # accelerate turns autocast on in forward alone, so that has_small_steps did not see it
        autocast = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False) if autocast else nullcontext():
            for layer in self._layers:
                states = layer(states, rotation, seen)
            logits = self._head(_norm(states, self._norm))
        self.length += 1
        return logits[:, None]

    def _see(self, examples: int, mask: Tensor | None) -> Float[Tensor, "B 1 copies end"]:
        """What every row sees in this step: its prompt, its own tokens, and the newest one."""
        start = self.prompt_length + self.copies * (self.length - self.prompt_length)
        end = start + self.copies
        if self._seen is None:
            self._seen = torch.full((examples, self.copies, self._layers[0].room), -torch.inf)
            read = self._seen[..., : self.prompt_length]
            read.zero_()
            if mask is not None:
                padding = mask[:: self.copies, None, : self.prompt_length] == 0
                read.masked_fill_(padding, -torch.inf)
        if end > self._seen.shape[-1]:
            more = STEPS * self.copies
            self._seen = functional.pad(self._seen, (0, more), value=-torch.inf)
            for layer in self._layers:
                layer.grow(more)
        self._seen.diagonal(offset=start, dim1=1, dim2=2)[:] = 0.0
        return self._seen[:, None, :, :end]


class _Layer:
    """A decoder layer's weights, and the keys and values of all rows (room behind the prompts)."""

    def __init__(self, layer: Any, keys: Tensor, values: Tensor, room: int, rows: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.kv_heads = keys.shape[1]
        self.groups = attention.num_key_value_groups
        self.input_norm, self.post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _product(rows, attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = _product(rows, attention.o_proj)
        self.gate_up = _product(rows, mlp.gate_proj, mlp.up_proj)
        self.down = _product(rows, mlp.down_proj)
        self.kept = torch.zeros(2, *keys.shape[:2], keys.shape[2] + room, self.head_dim)
        self.kept[:, :, :, : keys.shape[2]] = torch.stack([keys, values])  # 0: keys, 1: values

    @property
    def room(self) -> int:
        """Tokens per example that fit."""
        return self.kept.shape[3]

    def grow(self, room: int) -> None:
        """Make room for more tokens."""
        self.kept = functional.pad(self.kept, (0, 0, 0, room))

    def __call__(
        self,
        states: Float[Tensor, "C D_llm"],
        rotation: _Rotation,
        seen: Float[Tensor, "B 1 copies end"],
    ) -> Float[Tensor, "C D_llm"]:
        """The layer's output; the rows' keys and values become the last of those that are seen."""
        states = states + self.output(self._attend(states, rotation, seen))
        mixed = self.gate_up(_norm(states, self.post_norm))
        half = mixed.shape[-1] // 2
        return states + self.down(functional.silu(mixed[:, :half]).mul_(mixed[:, half:]))

    def _attend(
        self,
        states: Float[Tensor, "C D_llm"],
        rotation: _Rotation,
        seen: Float[Tensor, "B 1 copies end"],
    ) -> Float[Tensor, "C heads_D"]:
        examples, _, copies, end = seen.shape
        kv, groups, width = self.kv_heads, self.groups, self.head_dim
        # heads of queries, of keys, of values
        heads = self.qkv(_norm(states, self.input_norm)).view(examples, copies, -1, width)
        queries = heads[:, :, : -2 * kv]
        heads[:, :, :-kv] = rotation(heads[:, :, :-kv])
        new = heads[:, :, -2 * kv :].view(examples, copies, 2, kv, width)
        self.kept[:, :, :, end - copies : end] = new.permute(2, 0, 3, 1, 4)
        keys, values = self.kept[:, :, :, :end]
        queries = queries.transpose(1, 2)
        if groups > 1:  # query heads that share keys are further rows of them
            queries = queries.reshape(examples, kv, groups * copies, width)
            seen = seen.repeat(1, 1, groups, 1)
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, scale=self.scale
        )
        if groups > 1:
            attended = attended.reshape(examples, kv * groups, copies, width)
        return attended.transpose(1, 2).reshape(len(states), -1)


class _Rotation:
    """Rotary positions of one step: pairs of channels lie half a head apart."""

    def __init__(
        self, copies: int, cos: Float[Tensor, "C 1 D"], sin: Float[Tensor, "C 1 D"]
    ) -> None:
        self.half = cos.shape[-1] // 2
        signed = torch.cat([-sin[..., : self.half], sin[..., self.half :]], dim=-1)
        self.cos, self.sin = (x.view(-1, copies, 1, x.shape[-1]) for x in (cos, signed))

    def __call__(self, heads: Float[Tensor, "B copies H D"]) -> Float[Tensor, "B copies H D"]:
        return torch.addcmul(heads * self.cos, heads.roll(self.half, dims=-1), self.sin)


_PRODUCTS: WeakKeyDictionary[nn.Module, tuple[Any, Fingerprint, Product]] = WeakKeyDictionary()
"""First layer of a product -> for how many rows of which library, and what was made of which
weights."""


def _product(rows: int, *layers: nn.Linear) -> Product:
    """Linear layers of one input as one product, kept from one generation to the next."""
    wanted = rows, type(layers[0])
    weights = [weight for layer in layers for weight in (layer.weight, layer.bias)]
    kept = _PRODUCTS.get(layers[0])
    if kept is None or kept[0] != wanted or not kept[1].still_of(*weights):
        kept = wanted, Fingerprint(*weights), _made_product(rows, *layers)
        _PRODUCTS[layers[0]] = kept
    return kept[2]


def _made_product(rows: int, *layers: nn.Linear) -> Product:
    """By the library that the layers multiply with."""
    weight = layers[0].weight.detach()
    if len(layers) > 1:
        weight = torch.cat([layer.weight for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        none = weight.new_zeros(())
        bias = torch.cat(
            [(none if x.bias is None else x.bias).expand(x.out_features) for x in layers]
        )
    if type(layers[0]) is OneDnnLinear and rows >= PACKED_ROWS:
        return packed_product(weight, bias, rows)
    return partial(functional.linear, weight=weight, bias=bias)


def _norm(states: Float[Tensor, "C D_llm"], norm: Any) -> Float[Tensor, "C D_llm"]:
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
