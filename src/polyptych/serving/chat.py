"""Asking a model about pictures, from Python or the command line; no web code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from polyptych.data.records import IMAGE_TOKEN
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.task import GenerationSettings
from polyptych.models.checkpoint import load_model
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})

Picture = str | Path | Image.Image
"""A file or a decoded image."""

SETTINGS = GenerationSettings(num_beams=3, max_new_tokens=64)


class Chat:
    """A loaded model that answers one question after another; each stands for itself.

    Args:
        model: A folder, a hub name, the name of a bundled model, or None for the default one.
        device: Where to compute.

    Raises:
        PolyptychError: If the model cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None, *, device: str = "cpu") -> None:
        self.model, self.processor = load_model(model, device=device)

    def ask(
        self,
        images: Sequence[Picture],
        question: str,
        settings: GenerationSettings = SETTINGS,
    ) -> str:
        """Answer a question about some pictures.

        Args:
            images: In order; may be empty.
            question: May place the pictures with ``<image>``; otherwise they stand in front.
            settings: Decoding.

        Raises:
            PolyptychError: For an empty question, a picture that cannot be read, or another number
                of ``<image>`` than pictures.
        """
        return answer(self.model, self.processor, [question_example(images, question)], settings)[0]


def ask(
    model_path: str | Path | None,
    images: Sequence[Picture],
    question: str,
    *,
    settings: GenerationSettings = SETTINGS,
    device: str = "cpu",
) -> str:
    """Load a model and answer one question; see :class:`Chat`."""
    example = question_example(images, question)  # refuses bad input before the model is loaded
    model, processor = load_model(model_path, device=device)
    return answer(model, processor, [example], settings)[0]


def question_example(images: Sequence[Picture], question: str) -> Example:
    """The question as an example.

    ``["a.png", "b.png"], "What is shared?"`` becomes ``user: <a.png><b.png>What is shared?``

    Raises:
        PolyptychError: As :meth:`Chat.ask`, but for the content of files.
    """
    pieces = question.split(IMAGE_TOKEN)
    if not "".join(pieces).strip():
        raise PolyptychError("the question is empty")
    if len(pieces) == 1:
        pieces = [""] * len(images) + pieces
    if len(pieces) - 1 != len(images):
        raise PolyptychError(
            f"the question has {len(pieces) - 1} {IMAGE_TOKEN}, but {len(images)} pictures came"
        )
    blocks: list[TextBlock | ImageBlock] = []
    for index, piece in enumerate(pieces):
        if index:
            blocks.append(ImageBlock())
        if piece:
            blocks.append(TextBlock(piece))
    return Example(
        id="question",
        messages=(Message("user", tuple(blocks)),),
        images=tuple(_reference(image) for image in images),
    )


def _reference(image: Picture) -> ImageRef:
    if not isinstance(image, Image.Image):
        path = Path(image)
        if not path.is_file():
            raise PolyptychError(f"image {path} does not exist")
        return ImageRef(path=str(path))
    buffer = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())
