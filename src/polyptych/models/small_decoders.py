"""Small decoders on a CPU: prompts and decoding steps by few large products.

One new token for each of five beams is a few dozen products of five rows. At such sizes a general
implementation spends most of its time between them: separate projections, copies of keys and values
that follow the beams, masks made anew. Here weights are put together and laid out once, to be used
until somebody changes them; of a prompt, the last layer reads what its last word needs; and beams
are branches of one row: an example's new tokens stand side by side behind its prompt, and a mask
says which of them each beam has written, so that the prompt is kept once and following the beams
moves a few bits. (Published as tree attention, SpecInfer, arXiv 2305.09781.)

The arithmetic is that of transformers' LLaMA, whose results it gives up to float32 rounding; which
decoders have that shape says :func:`is_small_decoder`. All others, and large ones, whose time is in
the products anyway, are left to transformers.
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
from transformers import DynamicCache, LlamaForCausalLM, Qwen2ForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from polyptych.models.kept_weights import Fingerprint
from polyptych.models.onednn import MAX_PACKED, OneDnnLinear, packed_product

STEPS = 64
"""Steps that fit before keys and values are moved to a larger place."""

Product = Callable[[Tensor], Tensor]
"""``x W^T + b`` with weights that it knows."""

_SHAPES = (LlamaForCausalLM, Qwen2ForCausalLM)
"""Decoders of equal arithmetic: RMS norms, rotary positions, gated SiLU; biases may differ."""


def acts_on_prompts_only(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook of a decoder that does nothing while single tokens are decoded."""
    hook.acts_on_prompts_only = True  # type: ignore[attr-defined]
    return hook


def is_small_decoder(language_model: Any, cache: Cache | None, *, prompt: bool = False) -> bool:
    """Whether this module goes on from ``cache`` with the same results; or reads the ``prompt``.

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
        and (cache is None or all(type(layer) is DynamicLayer for layer in cache.layers))
        and (cache is None or not cache.offloading)
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        and all(type(layer) in (nn.Linear, OneDnnLinear) for layer in _linears(language_model))
        and all(not prompt and getattr(hook, "acts_on_prompts_only", False) for hook in hooks)
    )


def _linears(language_model: Any) -> Iterator[nn.Module]:
    """What a step multiplies with."""
    yield language_model.lm_head
    for layer in language_model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def is_prompt(
    language_model: Any,
    inputs_embeds: Float[Tensor, "C T D_llm"],
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = None,
    logits_to_keep: int | Tensor = 0,
    **others: Any,
) -> bool:
    """Whether a language model's inputs ask for nothing but what :func:`read_prompt` gives."""
    return (
        not any(value is not None for value in others.values())
        and bool(use_cache)
        and isinstance(logits_to_keep, int)
        and logits_to_keep == 1
        and len(inputs_embeds) == 1
        and (attention_mask is None or (attention_mask.ndim == 2 and bool(attention_mask.all())))
        and (position_ids is None or torch.equal(position_ids, _places(inputs_embeds)))
        and (
            past_key_values is None
            or (type(past_key_values) is DynamicCache and past_key_values.get_seq_length() == 0)
        )
        and is_small_decoder(language_model, past_key_values, prompt=True)
    )


def _places(row: Float[Tensor, "1 T D_llm"]) -> Int[Tensor, "1 T"]:
    return torch.arange(row.shape[1])[None]


def read_prompt(
    language_model: Any, inputs_embeds: Float[Tensor, "1 T D_llm"], cache: Cache | None = None
) -> CausalLMOutputWithPast:
    """Read one prompt without padding into a cache: logits (1, 1, V) behind its last word."""
    decoder, cache = language_model.model, DynamicCache() if cache is None else cache
    layers = [_Layer(layer) for layer in decoder.layers]
    rotation = _Rotation(*decoder.rotary_emb(inputs_embeds, _places(inputs_embeds)))
    states = inputs_embeds
    for index, layer in enumerate(layers):
        queries, keys, values = (part.transpose(1, 2) for part in layer.heads(states, rotation))
        cache.update(keys, values, index)
        last = layer is layers[-1]
        if last:  # nobody asks for what stands before the last word
            queries, states = queries[:, :, -1:], states[:, -1:]
        if layer.groups > 1:
            keys, values = (x.repeat_interleave(layer.groups, dim=1) for x in (keys, values))
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=not last, scale=layer.scale
        )
        states = layer.mixed(states, attended.transpose(1, 2).flatten(2))
    logits = _product(language_model.lm_head)(_norm(states, decoder.norm))
    return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


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
        self.copies = copies
        self.prompt_length = self.length = prompt.get_seq_length()
        self._rotary = decoder.rotary_emb
        self._layers = [_Layer(layer) for layer in decoder.layers]
        self._kept = [
            _with_room(layer.keys, layer.values, STEPS * copies)  # type: ignore[union-attr, arg-type]
            for layer in prompt.layers
        ]
        self._norm = decoder.norm
        self._head = _product(language_model.lm_head)
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
        with torch.inference_mode():  # as in beam_search: less to keep book of
            logits = self._step(inputs_embeds, attention_mask, position_ids)
        return logits.clone()  # an ordinary tensor

    def _step(
        self,
        inputs_embeds: Float[Tensor, "C 1 D_llm"],
        attention_mask: Int[Tensor, "C L"] | None,
        position_ids: Int[Tensor, "C 1"] | None,
    ) -> Float[Tensor, "C 1 V"]:
        rows = len(inputs_embeds)
        if position_ids is None:
            position_ids = torch.full((rows, 1), self.length)
        seen = self._see(rows // self.copies, attention_mask)
        rotation = _Rotation(
            *(
                x.view(-1, self.copies, x.shape[-1])
                for x in self._rotary(inputs_embeds, position_ids)
            )
        )
        states = inputs_embeds.view(-1, self.copies, inputs_embeds.shape[-1])
        # accelerate turns autocast on in forward alone, so that is_small_decoder did not see it
        autocast = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False) if autocast else nullcontext():
            for layer, kept in zip(self._layers, self._kept, strict=True):
                states = layer.mixed(states, _attend(layer, states, kept, rotation, seen))
            logits = self._head(_norm(states, self._norm))
        self.length += 1
        return logits.view(rows, 1, -1)

    def _see(self, examples: int, mask: Tensor | None) -> Float[Tensor, "B 1 copies end"]:
        """What every row sees in this step: its prompt, its own tokens, and the newest one."""
        start = self.prompt_length + self.copies * (self.length - self.prompt_length)
        end = start + self.copies
        if self._seen is None:
            self._seen = torch.full((examples, self.copies, self._kept[0].shape[3]), -torch.inf)
            read = self._seen[..., : self.prompt_length]
            read.zero_()
            if mask is not None:
                padding = mask[:: self.copies, None, : self.prompt_length] == 0
                read.masked_fill_(padding, -torch.inf)
        if end > self._seen.shape[-1]:
            more = STEPS * self.copies
            self._seen = functional.pad(self._seen, (0, more), value=-torch.inf)
            self._kept = [functional.pad(kept, (0, 0, 0, more)) for kept in self._kept]
        self._seen.diagonal(offset=start, dim1=1, dim2=2)[:] = 0.0
        return self._seen[:, None, :, :end]


class _Layer:
    """A decoder layer's arithmetic but for what it attends to."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.groups = attention.num_key_value_groups
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.input_norm, self.post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = _product(attention.o_proj)
        self.gate_up = _product(mlp.gate_proj, mlp.up_proj)
        self.down = _product(mlp.down_proj)

    def heads(
        self, states: Float[Tensor, "B T D_llm"], rotation: _Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, heads, D), the first two at their positions."""
        kv = self.kv_heads
        heads = self.qkv(_norm(states, self.input_norm)).unflatten(-1, (-1, self.head_dim))
        heads[:, :, :-kv] = rotation(heads[:, :, :-kv])
        return heads[:, :, : -2 * kv], heads[:, :, -2 * kv : -kv], heads[:, :, -kv:]

    def mixed(
        self, states: Float[Tensor, "B T D_llm"], attended: Float[Tensor, "B T heads_D"]
    ) -> Float[Tensor, "B T D_llm"]:
        """The layer's output."""
        states = states + self.output(attended)
        both = self.gate_up(_norm(states, self.post_norm))
        half = both.shape[-1] // 2
        return states + self.down(functional.silu(both[..., :half]).mul_(both[..., half:]))


def _with_room(
    keys: Float[Tensor, "B H T D"], values: Float[Tensor, "B H T D"], room: int
) -> Float[Tensor, "2 B H room D"]:
    """Keys and values of prompts, with room behind them."""
    length = keys.shape[2]
    kept = keys.new_zeros(2, *keys.shape[:2], length + room, keys.shape[3])
    kept[0, :, :, :length], kept[1, :, :, :length] = keys, values
    return kept


def _attend(
    layer: _Layer,
    states: Float[Tensor, "B copies D_llm"],
    kept: Float[Tensor, "2 B H room D"],
    rotation: _Rotation,
    seen: Float[Tensor, "B 1 copies end"],
) -> Float[Tensor, "B copies heads_D"]:
    """What each row attends to; its own keys and values become the last that are kept."""
    copies, end = seen.shape[2:]
    queries, keys, values = layer.heads(states, rotation)
    kept[0, :, :, end - copies : end] = keys.transpose(1, 2)
    kept[1, :, :, end - copies : end] = values.transpose(1, 2)
    queries = queries.transpose(1, 2)
    if layer.groups > 1:  # query heads that share keys are further rows of them
        queries = queries.reshape(len(states), layer.kv_heads, -1, layer.head_dim)
        seen = seen.repeat(1, 1, layer.groups, 1)
    all_keys, all_values = kept[:, :, :, :end]
    attended = functional.scaled_dot_product_attention(
        queries, all_keys, all_values, attn_mask=seen, scale=layer.scale
    )
    if layer.groups > 1:
        attended = attended.reshape(len(states), -1, copies, layer.head_dim)
    return attended.transpose(1, 2).flatten(2)


class _Rotation:
    """Rotary positions: pairs of channels lie half a head apart."""

    def __init__(self, cos: Float[Tensor, "B T D"], sin: Float[Tensor, "B T D"]) -> None:
        self.half = cos.shape[-1] // 2
        signed = torch.cat([-sin[..., : self.half], sin[..., self.half :]], dim=-1)
        self.cos, self.sin = cos[:, :, None], signed[:, :, None]

    def __call__(self, heads: Float[Tensor, "B T H D"]) -> Float[Tensor, "B T H D"]:
        return torch.addcmul(heads * self.cos, heads.roll(self.half, dims=-1), self.sin)


_PRODUCTS: WeakKeyDictionary[nn.Module, tuple[type, Fingerprint, Product]] = WeakKeyDictionary()
"""First layer of a product -> by which library, and what was made of which weights."""


def _product(*layers: nn.Linear) -> Product:
    """Linear layers of one input as one product, kept from one call to the next."""
    weights = [weight for layer in layers for weight in (layer.weight, layer.bias)]
    kept = _PRODUCTS.get(layers[0])
    if kept is None or kept[0] is not type(layers[0]) or not kept[1].still_of(*weights):
        kept = type(layers[0]), Fingerprint(*weights), _made_product(*layers)
        _PRODUCTS[layers[0]] = kept
    return kept[2]


def _made_product(*layers: nn.Linear) -> Product:
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
    if type(layers[0]) is OneDnnLinear:
        return packed_product(weight, bias)
    return partial(functional.linear, weight=weight, bias=bias)


def _norm(states: Float[Tensor, "B T D_llm"], norm: Any) -> Float[Tensor, "B T D_llm"]:
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
