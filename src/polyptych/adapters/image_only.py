"""A family's processor for images alone: no torchvision, no packages for video.

Several processors refuse to be built without a video part that needs torchvision, which nothing
here installs. Image classes of transformers that compute with Pillow exist for all families; the
video part's place is filled by one that refuses to be called.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin

from polyptych.adapters.families import Family
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import first_line


class NoVideo:
    """Stands in the video part's place."""

    merge_size = temporal_patch_size = 2
    num_frames = fps = None
    model_input_names: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse.

        Raises:
            PolyptychError: Always.
        """
        raise PolyptychError("videos are not read here, images are")


class _ImageOnly:
    """Mixed into a processor class: lets :class:`NoVideo` pass."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if isinstance(argument, NoVideo):
            return NoVideo
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


@functools.cache
def image_only_class(family: Family) -> type[ProcessorMixin]:
    """The family's processor class, or one of it that needs no video part."""
    processor = getattr(transformers, family.processor)
    if "video_processor" not in processor.get_attributes():
        return processor
    return type(processor.__name__, (_ImageOnly, processor), {"__module__": __name__})


def build_processor(
    family: Family, image_processor: Any, tokenizer: Any, **settings: Any
) -> ProcessorMixin:
    """The family's processor over its two parts."""
    chosen = image_only_class(family)
    parts = {"image_processor": image_processor, "tokenizer": tokenizer}
    if "video_processor" in chosen.get_attributes():
        parts["video_processor"] = NoVideo()
    with _without_number_words(chosen):
        return chosen(**parts, **settings)


def load_processor(path: str, family: Family) -> ProcessorMixin:
    """The family's processor from a folder or hub name.

    Raises:
        PolyptychError: If a part is missing or cannot be read.
    """
    try:
        image_processor: Any = AutoImageProcessor.from_pretrained(path, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(path)
        settings, _ = image_only_class(family).get_processor_dict(path)
    except (OSError, ValueError, ImportError) as error:
        raise PolyptychError(f"{path}: no readable processor: {first_line(error)}") from error
    for part in ("processor_class", "image_processor", "tokenizer", "video_processor", "auto_map"):
        settings.pop(part, None)
    settings.setdefault("chat_template", getattr(tokenizer, "chat_template", None))
    return build_processor(family, image_processor, tokenizer, **settings)


def save_processor(processor: Any, folder: str | Path) -> None:
    """Its two parts and its settings, as any program of transformers reads them."""
    folder = Path(folder)
    template = processor.chat_template
    if processor.tokenizer.chat_template is None:
        processor.tokenizer.chat_template = template
    processor.tokenizer.save_pretrained(folder)
    video = getattr(processor, "video_processor", None)
    try:
        if isinstance(video, NoVideo):
            processor.video_processor = None
        processor.image_processor.save_pretrained(folder)
        processor.to_json_file(folder / "processor_config.json")
    finally:
        if video is not None:
            processor.video_processor = video


@contextmanager
def _without_number_words(processor: type[ProcessorMixin]) -> Iterator[None]:
    """Let SmolVLM's processor be built without the package that spells a video's length."""
    home = importlib.import_module(
        next(
            c for c in processor.__mro__ if c is not processor and issubclass(c, ProcessorMixin)
        ).__module__
    )
    if getattr(home, "num2words", NoVideo) is not None:
        yield
        return
    home.num2words = NoVideo()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        home.num2words = None  # type: ignore[attr-defined]
