"""``adapt``: a vision-language model of transformers with any of the methods on it.

The model stays the object and the class it was, in name and in weights; no modeling file is
touched. What is added: hooks at the seams (:class:`polyptych.adapters.base.BaseVLM`), one child
with the methods' modules, and a ``generate`` that knows the names of our batches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from polyptych.adapters.base import METHODS, OWN_INPUTS, SHOT_PREFIX, BaseVLM
from polyptych.adapters.camml import Camml
from polyptych.adapters.families import FAMILIES, Family, family_of
from polyptych.adapters.files import (
    CONFIG_FILE,
    check_base,
    describe_base,
    is_of_method,
    load_weights,
    read_adapter_config,
    save_adapter,
)
from polyptych.adapters.image_only import load_processor
from polyptych.adapters.method import SEAM_ORDER, BaseSizes, Method
from polyptych.adapters.placeholders import context_placeholder
from polyptych.adapters.processor import FamilyProcessor
from polyptych.adapters.sam import Sam
from polyptych.adapters.vpgc import VpgC
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import first_line

METHOD_TYPES: dict[str, type] = {kind.name: kind for kind in (Sam, Camml, VpgC)}
"""Methods by the name that recipes, files and the command line call them."""


class Adapted(NamedTuple):
    """What :func:`adapt` gives back."""

    model: Any
    """The base with the methods on it; a ``PreTrainedModel`` and an :class:`AdaptedModel`."""
    processor: FamilyProcessor | None
    """None where a model was given without one."""


class AdaptedModel:
    """What an adapted base can do beyond its class; mixed into it by :func:`adapt`."""

    seams: BaseVLM
    methods: dict[str, Method]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's, and takes ``last_prompt``, ``image_counts`` and ``shot_*`` along.

        Raises:
            PolyptychError: For a prefill in chunks, of which no method sees the whole prompt.
        """
        config = kwargs.get("generation_config") or self.generation_config  # type: ignore[attr-defined]
        chunk = kwargs.get("prefill_chunk_size") or getattr(config, "prefill_chunk_size", None)
        if chunk and self.seams.enabled:
            raise PolyptychError(
                f"a prefill in chunks of {chunk} tokens: methods need the whole prompt at once"
            )
        names = [n for n in kwargs if n in OWN_INPUTS or n.startswith(SHOT_PREFIX)]
        with self.seams.given({name: kwargs.pop(name) for name in names}):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def methods_disabled(self) -> Iterator[None]:
        """The base, bit for bit, inside the block."""
        with self.seams.disabled():
            yield

    def save_pretrained(
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write the adapter's files; the base's weights too, where any of them learn.

        Args:
            save_directory: The folder.
            state_dict: All weights, where the model itself holds only a part of them.
            **kwargs: For transformers, where the base is written.
        """
        model: Any = self
        weights = dict(model.state_dict() if state_dict is None else state_dict)
        own = {name: weights.pop(name) for name in [*weights] if is_of_method(name)}
        if self.methods:
            base = describe_base(model.config, weights)
            context = self.seams.context_token_id
            save_adapter(save_directory, base, own, self.methods, context)
        if any(p.requires_grad for n, p in model.named_parameters() if not is_of_method(n)):
            super().save_pretrained(  # type: ignore[misc]
                save_directory, state_dict=weights, save_original_format=False, **kwargs
            )


def adapt(
    model_or_path: Any,
    methods: Sequence[Method] | None = None,
    *,
    adapter: str | Path | None = None,
    processor: Any = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Adapted:
    """Put methods on a base; they act as guidance, context, layer, in whatever order named.

    Untrained methods leave the base as it was (CaMML: questions without shots). They alone learn,
    unless more is unfrozen.

    Args:
        model_or_path: A model of a known family; or a folder or hub name of one; or a folder that
            an adapted model was saved in, with the methods it has.
        methods: Any of them, each once; None: those of the folder.
        adapter: Folder of methods for a base that is given beside it.
        processor: The family's own processor, where a model is given.
        seed: Decides the methods' first weights.
        dtype: Type of a loaded base.

    Raises:
        PolyptychError: If the family is not known, needs code of its own, or has no weights; if two
            methods want the same name or placeholder; if an adapter belongs to another base.
    """
    is_path = isinstance(model_or_path, str | Path)
    if adapter is None and is_path and Path(model_or_path, CONFIG_FILE).exists():
        adapter = model_or_path
    record = None if adapter is None else read_adapter_config(adapter)
    if record is not None:
        if methods is not None:
            raise PolyptychError(
                f"{adapter} has the methods {', '.join(record['methods'])}; {len(methods)} more "
                "were named"
            )
        methods = [
            _method_type(name, str(adapter))(**sizes) for name, sizes in record["methods"].items()
        ]
    model = model_or_path
    if is_path:
        base = _base_of(str(model_or_path), record)
        model = load_base(base, dtype)
        parts = next(path for path in (adapter, base) if path == base or _has_tokenizer(path))
        processor = processor or load_processor(str(parts), family_of(model.config.model_type))
    if record is not None:
        check_base(model, record, adapter)
    attach(model, methods or (), processor, seed, record["context_token_id"] if record else None)
    if adapter is not None:
        load_weights(model, adapter)
    if processor is None:
        return Adapted(model, None)
    return Adapted(model, FamilyProcessor.of(processor, model))


def attach(
    model: Any,
    methods: Sequence[Method],
    processor: Any = None,
    seed: int = 0,
    context_token_id: int | None = None,
) -> None:
    """Put methods on a model in memory; see :func:`adapt`."""
    family = family_of(model.config.model_type)
    if isinstance(model, AdaptedModel):
        raise PolyptychError(
            f"this model has the methods {', '.join(model.methods)} already; adapt the base once"
        )
    chosen = _in_order(methods)
    if any(method.seam == "context" for method in chosen) and context_token_id is None:
        context_token_id = context_placeholder(model, processor)
    sizes = BaseSizes.of(model.config)
    model.seams = seams = BaseVLM(model, _marker_ids(family, processor), context_token_id)
    model.methods = {method.name: method.fitted(sizes) for method in chosen}
    if chosen:
        model.requires_grad_(False)
    weight = model.get_input_embeddings().weight
    for name, method in model.methods.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = method.build(sizes).to(weight.device)
        module.train(model.training)
        seams.modules[name] = module
        if method.seam == "guidance":
            seams.on_visual_tokens(name)
        elif method.seam == "context":
            seams.on_context(name)
        else:
            seams.on_layer(method.layer, name)
    model.__class__ = _adapted_class(model.__class__)
    reserved = {model.config.image_token_id, context_token_id} - {None}
    suppressed = set(model.generation_config.suppress_tokens or ())
    model.generation_config.suppress_tokens = sorted(suppressed | reserved)


def method_modules(model: Any) -> list[str]:
    """Names of the methods' modules, for PEFT's ``modules_to_save``."""
    return [f"{METHODS}.{name}" for name in model.methods]


def load_base(path: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A base from a folder or the hub, by transformers' own classes only.

    Raises:
        PolyptychError: If it is of an unknown family, needs code of its own, or cannot be read.
    """
    try:
        fields = PreTrainedConfig.get_config_dict(path)[0]
    except OSError as error:
        raise PolyptychError(
            f"{path}: no model here, nor on the hub: {first_line(error)}"
        ) from error
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        if fields.get("auto_map"):
            raise PolyptychError(
                f"{path}: a {kind!r} that brings code of its own (trust_remote_code), which is "
                f"never run; known: {', '.join(FAMILIES)}"
            )
        family_of(kind)
    load: Any = AutoModelForImageTextToText.from_pretrained
    try:
        model, info = load(path, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise PolyptychError(f"{path}: weights cannot be read: {first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            names = sorted(map(str, info[problem]))
            raise PolyptychError(
                f"{path}: {len(names)} {problem.replace('_', ' ')} in the weights: {names[0]} ..."
            )
    return model.eval()


def methods_by_name(names: str) -> list[Method]:
    """``"sam,vpgc"`` -> the methods with their default sizes.

    Raises:
        PolyptychError: For an unknown name.
    """
    return [_method_type(name.strip(), "--methods")() for name in names.split(",")]


def _method_type(name: str, where: str | Path) -> Any:
    if name not in METHOD_TYPES:
        raise PolyptychError(f"{where}: no method {name!r}; known: {', '.join(METHOD_TYPES)}")
    return METHOD_TYPES[name]


def _in_order(methods: Sequence[Method]) -> list[Method]:
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise PolyptychError(f"{names.count(name)} methods are called {name!r}; 1 can be")
    context = [method.name for method in methods if method.seam == "context"]
    if len(context) > 1:
        raise PolyptychError(
            f"{len(context)} methods want the context's placeholder: {', '.join(context)}; 1 can"
        )
    return sorted(methods, key=lambda method: SEAM_ORDER.index(method.seam))


def _base_of(path: str, record: dict[str, Any] | None) -> str:
    """Where the base's weights are: in the folder itself, or where its adapter says."""
    if record is None or Path(path, "config.json").exists():
        return path
    name = record["base"]["name"]
    if not name:
        raise PolyptychError(
            f"{path}: an adapter without its base, which had no name: adapt(BASE, adapter={path!r})"
        )
    return name


def _has_tokenizer(path: str | Path | None) -> bool:
    return path is not None and Path(path, "tokenizer_config.json").exists()


def _marker_ids(family: Family, processor: Any) -> dict[str, list[int]]:
    if processor is None:
        return {}
    tokenizer = processor.tokenizer
    ids = {"prompt_end": _prompt_end_ids(processor, family.prompt_end)}
    if family.end_marker is not None:
        ids["end_marker"] = [tokenizer.convert_tokens_to_ids(family.end_marker)]
    return ids


def _prompt_end_ids(processor: Any, prompt_end: str) -> list[int]:
    """The ids that end a prompt, as they come out where they stand: behind a question."""

    def ids(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    asked = ""
    if processor.chat_template is not None:
        asked = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    if not asked.endswith(prompt_end):
        return ids(prompt_end)
    whole, before = ids(asked), ids(asked.removesuffix(prompt_end))
    shared = next(
        (place for place, pair in enumerate(zip(whole, before, strict=False)) if len({*pair}) > 1),
        len(before),
    )
    return whole[shared:]


@functools.cache
def _adapted_class(base: type) -> type:
    """The base's class under its own name, so that whoever asks for names finds the base."""
    return type(base.__name__, (AdaptedModel, base), {"__module__": base.__module__})
