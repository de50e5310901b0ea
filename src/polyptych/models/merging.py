"""An adapter becomes part of its model: a plain folder that needs no PEFT, checked before it stays.

Published scripts merge in half precision and look no further. Here the merged folder is read back
and has to answer as base and adapter do together.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyptych.data.collation import Collator
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import model_hash
from polyptych.models.blip2_conversion import refuse_existing
from polyptych.models.checkpoint import Loader, first_line, load_model
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""PEFT's names."""

BASE = "base.json"
"""Beside an adapter of ours: which model it was learned on."""

Precision = Literal["float32", "float16", "bfloat16"]

TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference of logits that passes, as a share of the largest logit; the rest is rounding
of the stored weights."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What was merged, and how far the result is from base and adapter together."""

    base: str
    folder: Path
    drift: float
    """Largest difference of logits, as a share of the largest one."""
    effect: float
    """The same between the result and the base alone: what the adapter does."""


def describe_base(model: Any) -> dict[str, str]:
    """What tells the model that an adapter is learned on from others, also under another name."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {"type": model.config.model_type, "weights": model_hash(model), "dtype": dtype}


def merge_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    precision: Precision = "float32",
    load: Loader | None = None,
) -> Merge:
    """Put an adapter's weights into its base and save the model with its processor.

    Args:
        adapter: Folder in PEFT's layout.
        out: The new folder; nothing is overwritten, and nothing is left here after an error.
        base: Folder or name of the model; None: the one that the adapter names.
        precision: Type of the stored weights.
        load: What loads the base; for those of transformers, that of
            :mod:`polyptych.adapters.loading`; None: for models of this package.

    Raises:
        PolyptychError: If the adapter cannot be read, belongs to another base, or the merged folder
            does not answer as both together do.
    """
    out, adapter, load = Path(out), Path(adapter), load or load_model
    refuse_existing(out)
    fields = _read_json(adapter / ADAPTER_CONFIG)
    name = str(base or fields.get("base_model_name_or_path") or "")
    if not name:
        raise PolyptychError(f"{adapter}: does not say which model it belongs to; name the base")
    _check_base(adapter, name, load)
    model, processor = load(name)
    probe = probe_inputs(processor)
    alone = _logits(model, probe)
    adapted = _with_adapter(model, adapter)
    before = _logits(adapted, probe)
    merged = adapted.merge_and_unload().requires_grad_(True)  # adapted bases write what learns
    with _saved_aside(out) as partial:
        merged.to(getattr(torch, precision)).save_pretrained(partial)
        processor.save_pretrained(partial)
        after = _logits(load(partial)[0], probe)
        report = Merge(name, out, _distance(after, before), _distance(after, alone))
        if not report.drift <= TOLERANCES[precision]:
            raise PolyptychError(
                f"{out}: not written: its logits are {report.drift:.1e} off those of {name} with "
                f"{adapter}, more than {TOLERANCES[precision]:.0e}"
            )
    return report


def probe_inputs(processor: Any) -> Any:
    """Two prompts for comparing models: with two pictures of noise, and without any."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 48, 48, 3), generator=generator, dtype=torch.uint8)
    pictures = tuple(ImageRef(data=_png(pixels.numpy())) for pixels in noise)
    question = TextBlock("What do these pictures have in common?")
    looking = Message("user", (ImageBlock(), ImageBlock(), question))
    asking = Message("user", (TextBlock("What is a polyptych?"),))
    examples = [Example("pictures", (looking,), pictures), Example("words", (asking,))]
    return Collator(processor, training=False)(examples)


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@torch.inference_mode()
def _logits(model: Any, probe: Any) -> Tensor:
    return model.eval()(**probe, use_cache=False).logits[probe["attention_mask"].bool()].float()


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _with_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter switched on; every tensor of the file in its place."""
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with safe_open(folder / ADAPTER, "pt") as file:
            saved = set(file.keys())
        adapted = PeftModel.from_pretrained(model, folder)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise PolyptychError(f"{folder}: no adapter for this model: {first_line(error)}") from error
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if saved != expected:
        odd = sorted(saved ^ expected)
        raise PolyptychError(
            f"{folder}: no adapter for this model: {len(odd)} tensors have no counterpart: {odd[0]}"
        )
    return adapted


def _check_base(adapter: Path, name: str, load: Loader) -> None:
    if not (adapter / BASE).exists():  # not made here
        return
    noted = _read_json(adapter / BASE)
    found = model_hash(load(name, dtype=getattr(torch, noted["dtype"]))[0])
    if noted["weights"] != found:
        raise PolyptychError(
            f"{adapter} was learned on weights {noted['weights']}; those of {name} are {found}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolyptychError(f"{path.parent}: no adapter here: {error}") from error


@contextmanager
def _saved_aside(out: Path) -> Iterator[Path]:
    """A folder that gets its name at the end, or vanishes."""
    partial = out.with_name(f"{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except OSError as error:
        raise PolyptychError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
