"""What the conversion commands are given, checked before anything is read at length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyptych.cli.common import check_choice, hide_bars
from polyptych.errors import PolyptychError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt")

_FELT_NOT_SEEN = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps")
"""Fields of a decoder that change what it computes, but no tensor's shape."""


def is_way_back(to: str, parts: Sequence[Path], out: Path) -> bool:
    """Whether ours becomes theirs.

    Raises:
        PolyptychError: If there is something at ``out``, or more than one folder goes back.
    """
    from polyptych.models.blip2_conversion import refuse_existing

    check_choice("--to", to, ("polyptych", "original"))
    refuse_existing(out)
    hide_bars()
    if to == "original" and len(parts) != 1:
        raise PolyptychError(f"--to original takes 1 folder of ours; got {len(parts)} parts")
    return to == "original"


def our_weights(folder: Path, model_type: str) -> dict[str, Any]:
    """The tensors of one of our folders.

    Raises:
        PolyptychError: If it holds a model of another type, or cannot be read.
    """
    from polyptych.models.weights import read_weights

    _require_type(folder, model_type)
    return read_weights(folder)


def _require_type(folder: Path, model_type: str) -> None:
    found = _fields(folder).get("model_type")
    if found != model_type:
        raise PolyptychError(f"{folder}: a model of type {found!r}; {model_type!r} is needed")


def _fields(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise PolyptychError(f"{folder}: no model here (no config.json)")
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise PolyptychError(f"{file}: no readable config: {error}") from error


def sizes_of(recipe: str, config_class: Any) -> Any:
    """The config in a recipe.

    Args:
        recipe: Name or path.
        config_class: The method's.

    Raises:
        PolyptychError: If there is no such recipe, or it is one of another method.
    """
    from polyptych.recipes import load_recipe

    fields = dict(load_recipe(recipe).model.config)
    found = fields.pop("model_type", None)
    if found != config_class.model_type:
        raise PolyptychError(
            f"--sizes {recipe}: a model of type {found!r}; {config_class.model_type!r} is needed"
        )
    return config_class(**fields)


def folder_with(option: str, places: Sequence[Path], chosen: Path | None) -> Path:
    """The folder that was chosen for a tokenizer, or the first that has one.

    Args:
        option: Name of the option that chooses.
        places: Where to look otherwise.
        chosen: What was chosen.

    Raises:
        PolyptychError: If none has one.
    """
    candidates = places if chosen is None else [chosen]
    for folder in candidates:
        if any((folder / file).is_file() for file in _TOKENIZER_FILES):
            return folder
    names = ", ".join(map(str, candidates))
    hint = f"; give --{option} DIR" if chosen is None else ""
    raise PolyptychError(f"no tokenizer ({', '.join(_TOKENIZER_FILES)}) in {names}{hint}")


def check_fit(out: Path, parts: Sequence[Path], config: Any, processor: Any) -> None:
    """Refuse what no shape of a tensor tells: places, words, and how a decoder computes.

    Args:
        out: Named in errors.
        parts: Folders among them say how their decoder computes.
        config: The model's.
        processor: What is saved beside the weights.

    Raises:
        PolyptychError: Naming what differs and both values.
    """
    from polyptych.models.checkpoint import check_agreement

    check_agreement(str(out), config, processor)
    text = config.text_config
    tables = [("tokenizer", processor.tokenizer, text)]
    if getattr(config, "instruction_aware", False):
        tables.append(("Q-Former's tokenizer", processor.qformer_tokenizer, config.qformer_config))
    for name, tokenizer, sizes in tables:
        if len(tokenizer) > sizes.vocab_size:
            raise PolyptychError(
                f"{out}: the {name} has {len(tokenizer)} words, the model takes {sizes.vocab_size}"
            )
    for part in parts:
        if not (part / "config.json").is_file():
            continue
        fields = _fields(part)
        fields = fields.get("text_config", fields)
        if fields.get("model_type") != text.model_type:
            continue
        for name in _FELT_NOT_SEEN:
            found = fields.get(name)
            if found not in (None, getattr(text, name, found)):
                raise PolyptychError(
                    f"{part}: {name} {found}, the sizes say {getattr(text, name)}; "
                    "choose others with --sizes"
                )


def open_llava(source: str, to: str, vision_tower: Path | None, pad: bool) -> tuple[Any, Any]:
    """A LLaVA of any layout with its processor, in the type in which it is stored.

    Args:
        source: Folder or hub name.
        to: What it is to become.
        vision_tower: See :func:`polyptych.models.llava_conversion.read_llava`.
        pad: Whether pictures are padded to squares whatever the checkpoint says.

    Raises:
        PolyptychError: If it is no LLaVA, or one of ours is to become one of ours.
    """
    from polyptych.models.checkpoint import check_agreement, check_family, load_model, resolve
    from polyptych.models.llava import PolyptychLlavaConfig
    from polyptych.models.llava_conversion import WORD_TABLES, local_folder, read_llava
    from polyptych.models.weights import read_weights

    folder = local_folder(resolve(source))
    _fields(folder)
    if check_family(str(folder)) == "llava":
        ratio: Any = "pad" if pad else None
        model, processor = read_llava(
            folder, dtype=None, vision_tower=vision_tower, image_aspect_ratio=ratio
        )
        check_agreement(str(folder), model.config, processor)
        return model, processor
    if vision_tower is not None or pad or to == "polyptych":
        raise PolyptychError(f"{folder}: a folder of ours; only --to llava-hf or original")
    _require_type(folder, PolyptychLlavaConfig.model_type)
    stored = read_weights(folder)[WORD_TABLES[0]].dtype
    return load_model(folder, dtype=stored)
