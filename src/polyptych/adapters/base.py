"""The seams of a base: where methods meet a vision-language model of transformers, untouched.

Three hooks, registered once. The one before the model sees ids and images together, in training
and in every form of generation: there guidance changes the visual tokens, and there the record of
the prefill begins. One after the table of embeddings puts context tokens at their placeholders. One
before decoder layer k adds what VPG-C found. Steps of single new tokens pass through unseen.

What is known of a prefill lies on the object between the hooks: one call at a time per model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyptych.adapters.families import Family, family_of
from polyptych.adapters.numbering import FlatPrefill, find_prompt_end, number_images
from polyptych.errors import PolyptychError

METHODS = "polyptych_methods"
"""The child of a base that holds the methods' modules, each under its method's name."""

SHOT_PREFIX = "shot_"
OWN_INPUTS = ("last_prompt", "image_counts")
"""Names in a batch that are ours; so is everything that begins with :data:`SHOT_PREFIX`."""


class BaseVLM:
    """One base with its hooks.

    Args:
        model: A model of a known family; gets hooks and a child for the methods.
        marker_ids: Token ids of the family's ``end_marker`` and ``prompt_end``; None where no
            tokenizer told them.
        context_token_id: Placeholder id of context tokens.

    Raises:
        PolyptychError: If the family is not known, or its classes cannot be fed visual tokens.
    """

    def __init__(
        self,
        model: Any,
        marker_ids: Mapping[str, list[int]],
        context_token_id: int | None,
    ) -> None:
        self.family: Family = family_of(model.config.model_type)
        self.inner = model.base_model
        self.layers = model.get_decoder().layers
        self.image_token_id: int = model.config.image_token_id
        self.context_token_id = context_token_id
        self.marker_ids = marker_ids
        self._forward_names = [*inspect.signature(self.inner.forward).parameters]
        if "mm_encoder_outputs" not in self._forward_names:
            raise PolyptychError(
                f"{type(self.inner).__name__} of this transformers takes no mm_encoder_outputs, "
                "which methods hand visual tokens over by; 5.23 is tested"
            )
        if self.family.grouping == "marker" and "end_marker" not in marker_ids:
            raise PolyptychError(
                f"{model.config.model_type}: images end behind {self.family.end_marker!r}, whose "
                "id only the tokenizer knows; give the processor"
            )
        self.guidance: list[str] = []
        self.context: list[str] = []
        self.at_layer: list[tuple[int, str]] = []
        self.enabled = True
        self.prefill: FlatPrefill | None = None
        self._given: Mapping[str, Any] = {}
        self._context_tokens: Tensor | None = None
        self._touches = False
        self.inner.add_module(METHODS, nn.ModuleDict())
        self.inner.register_forward_pre_hook(self._before, with_kwargs=True)
        self.inner.register_forward_hook(self._after, always_call=True)
        model.get_input_embeddings().register_forward_hook(self._embedded)

    # What methods add. Modules are looked up by name in every call: PEFT may have put a trained
    # copy in the place of the one that was added.

    @property
    def modules(self) -> nn.ModuleDict:
        """The methods' modules as they are now, by name."""
        return cast("nn.ModuleDict", getattr(self.inner, METHODS))

    def on_visual_tokens(self, name: str) -> None:
        """Guidance: ``module(prefill) -> (N, D_llm)`` is added to the visual tokens."""
        self.guidance.append(name)

    def on_context(self, name: str) -> None:
        """Context: ``module(words, mask, visual tokens, lengths, counts) -> (X, C, D_llm)``."""
        self.context.append(name)

    def on_layer(self, layer: int, name: str) -> None:
        """Before decoder layer k: ``module(hidden, prefill) -> (N, D_llm)`` is added."""
        self.at_layer.append((layer, name))
        hook = _LayerHook(self, layer, name)
        self.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)

    @contextmanager
    def given(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Inputs of ours for the calls inside, where they cannot be passed by name."""
        before, self._given = self._given, inputs
        try:
            yield
        finally:
            self._given = before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base as it was, bit for bit, inside the block."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    # Hooks.

    def _before(
        self, inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Some families hand the ids over by position.
        args, kwargs = (), {**dict(zip(self._forward_names, args, strict=False)), **kwargs}
        names = [name for name in kwargs if name in OWN_INPUTS or name.startswith(SHOT_PREFIX)]
        own = {**self._given, **{name: kwargs.pop(name) for name in names}}
        self.prefill = self._context_tokens = None
        ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        if not self.enabled:
            return args, kwargs
        if ids is None:
            if kwargs.get("pixel_values") is not None or kwargs.get("mm_encoder_outputs"):
                raise PolyptychError(
                    "images with inputs_embeds alone: methods find images by input_ids; give these"
                )
            return args, kwargs
        known = 0 if cache is None else int(cache.get_seq_length())
        self._touches = known == 0 and torch.is_grad_enabled() and inner.training
        if self.context and known == 0:
            self._context_tokens = self._read_shots(ids, own)
        ready = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if kwargs.get("pixel_values") is not None:
            ready, kwargs["pixel_values"] = self.encode_images(kwargs), None
        if ready is None:
            return args, kwargs
        if known:
            raise PolyptychError(
                f"images after {known} cached tokens: methods need the whole prompt at once; "
                "compute it anew, without chunks"
            )
        self.prefill = self._read_images(ids, ready, own)
        for name in self.guidance:
            residual = self.modules[name](self.prefill).to(self.prefill.image_features.dtype)
            self.prefill.image_features = self.prefill.image_features + residual
        guided = _replaced(ready, self.prefill.visual_tokens)
        kwargs["mm_encoder_outputs"] = {**(kwargs.get("mm_encoder_outputs") or {}), "image": guided}
        return args, kwargs

    def _after(self, *unused: Any) -> None:
        self.prefill = self._context_tokens = None
        self._touches = False

    def _embedded(self, table: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Context tokens at their placeholders; every trained weight is touched in every pass."""
        context, self._context_tokens = self._context_tokens, None
        if context is not None:
            here = args[0] == self.context_token_id
            output = output.masked_scatter(here[..., None], context.to(output.dtype))
        if self._touches:
            # A batch without images would leave the methods out, and its processes would wait.
            self._touches = False
            weights = [p for p in self.modules.parameters() if p.requires_grad]
            touched = [weight.sum() for weight in weights]
            output = (
                output + 0.0 * torch.stack(touched).sum().to(output.dtype) if touched else output
            )
        return output

    # What is known at a prefill.

    def encode_images(self, inputs: Mapping[str, Any]) -> Any:
        """The vision output, with finished visual tokens, by the family's own code."""
        taken = inspect.signature(self.inner.get_image_features).parameters
        known = {n: inputs[n] for n in taken if n != "kwargs" and inputs.get(n) is not None}
        return self.inner.get_image_features(**known, return_dict=True)

    def _read_images(
        self, ids: Int[Tensor, "C T"], output: Any, own: Mapping[str, Any]
    ) -> FlatPrefill:
        tokens, entry_lengths = _flat(output)
        mask = ids == self.image_token_id
        marker = self.marker_ids.get("end_marker")
        counts, lengths = number_images(
            ids, mask, entry_lengths, self.family.grouping, marker[0] if marker else None
        )
        told = _per_row(own.get("image_counts"), ids)
        if told is not None and not torch.equal(told.to(counts), counts):
            row = int((told.to(counts) != counts).nonzero()[0])
            raise PolyptychError(
                f"row {row} of the batch: {int(counts[row])} images by its placeholders, "
                f"{int(told[row])} by image_counts"
            )
        last = _per_row(own.get("last_prompt"), ids)
        if last is None and self.at_layer:
            if "prompt_end" not in self.marker_ids:
                raise PolyptychError(
                    f"VPG-C is guided by the last prompt token; {len(ids)} rows came without "
                    "last_prompt, and no tokenizer told how prompts end"
                )
            end = torch.tensor(self.marker_ids["prompt_end"], device=ids.device)
            last = find_prompt_end(ids, end, counts > 0)
        return FlatPrefill(mask, counts, lengths, tokens, last)

    def _read_shots(
        self, ids: Int[Tensor, "C T"], own: Mapping[str, Any]
    ) -> Float[Tensor, "N D_llm"] | None:
        """Context tokens of all rows, flat in the order of their placeholders."""
        places = torch.eq(ids, cast("int", self.context_token_id)).sum(1)
        shots = {n.removeprefix(SHOT_PREFIX): v for n, v in own.items() if _is_shot(n)}
        if not shots:
            if int(places.sum()):
                raise PolyptychError(f"{int(places.sum())} context placeholders, but 0 shots")
            return None
        counts = shots["counts"]
        words = self.inner.get_input_embeddings()(shots["input_ids"])
        pictures = shots["input_ids"] == self.image_token_id
        visual, lengths = words.new_zeros(0, words.shape[-1]), pictures.sum(1)
        if shots.get("pixel_values") is not None:
            visual, _ = _flat(self.encode_images(shots))
        if int(lengths.sum()) != len(visual):
            raise PolyptychError(
                f"{int(lengths.sum())} image placeholders in the shots for {len(visual)} visual "
                "tokens"
            )
        read = shots["attention_mask"].bool() & ~pictures
        (name,) = self.context
        context = self.modules[name](words, read, visual, lengths, counts)
        per_row = torch.zeros_like(counts).masked_fill(counts > 0, context.shape[1])
        copies = len(ids) // len(counts)
        if not torch.equal(places, per_row.repeat_interleave(copies).to(places)):
            raise PolyptychError(
                f"{places.tolist()} context placeholders in the rows for "
                f"{per_row.tolist()} context tokens"
            )
        return context.repeat_interleave(copies, dim=0).flatten(0, 1)


class _LayerHook:
    """Adds what a method finds to the states of the visual tokens before a decoder layer."""

    def __init__(self, base: BaseVLM, layer: int, name: str) -> None:
        self.base, self.layer, self.name = base, layer, name

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        prefill = self.base.prefill
        if prefill is None:
            return None
        hidden, *rest = args
        if hidden.shape[:2] != prefill.visual_mask.shape:
            raise PolyptychError(
                f"layer {self.layer} sees {hidden.shape[1]} of {prefill.visual_mask.shape[1]} "
                "positions: methods need the whole prompt at once, without chunks"
            )
        residual = self.base.modules[self.name](hidden, prefill)
        return (prefill.add_to_visual_tokens(hidden, residual), *rest), kwargs


def _is_shot(name: str) -> bool:
    return name.startswith(SHOT_PREFIX)


def _flat(output: Any) -> tuple[Float[Tensor, "N D_llm"], list[int]]:
    """The visual tokens of a vision output, and how many each entry has."""
    parts = list(output.pooler_output)  # (U, Q, D), or a list or tuple of (n, D)
    return torch.cat(parts), [len(part) for part in parts]


def _replaced(output: Any, tokens: Float[Tensor, "N D_llm"]) -> Any:
    """The vision output with other visual tokens; the caller's own is left alone."""
    old, new = output.pooler_output, copy.copy(output)
    if torch.is_tensor(old):
        new.pooler_output = tokens.view_as(old)
    else:
        new.pooler_output = list(tokens.split([len(part) for part in old]))
    return new


def _per_row(values: Tensor | None, ids: Tensor) -> Tensor | None:
    """Values per example as values per row: a beam search has several rows of each."""
    if values is None:
        return None
    return values.to(ids.device).repeat_interleave(len(ids) // len(values))
