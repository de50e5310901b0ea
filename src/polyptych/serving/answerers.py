"""Who can be asked: our models, any model of transformers, a server, a Python function.

load_answerer("storybook-sam")                                    bundled, a folder, a hub name
load_answerer("http://localhost:8000/v1", api_model="my-model")   any server of OpenAI's API
load_answerer("my_module:my_function")                            function(prompt, images) -> str
load_answerer("runs/mm_vet/judge.jsonl")                          what was answered before
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation.answering import Answerer, digest
from polyptych.evaluation.task import GenerationSettings, prompt_text
from polyptych.schema import Example

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

ASSUMED_TOKENS = 256
"""Length of an image where nobody says; only used to put similar lengths together."""

AnswerFunction = Callable[[str, list[Image.Image]], str]
"""A prompt with ``<image>`` where its images stand, and the images in that order, to an answer."""


def load_answerer(
    name: str | None = None, *, device: str = "cpu", api_model: str | None = None
) -> Answerer:
    """Find out what a name means and load it.

    Args:
        name: See the head of this module; None for the bundled default.
        device: Where a model in memory computes.
        api_model: What the server calls the model; servers only, and optional where it has one.

    Raises:
        PolyptychError: If there is no such thing, or it cannot be loaded.
    """
    if name is not None and _is_address(name):
        from polyptych.serving.api import ApiModel

        return ApiModel(name, api_model)
    if api_model is not None:
        raise PolyptychError(f"a model's name for a server, but {name!r} is no http:// address")
    if name is not None and _is_function(name):
        return FunctionAnswerer(*name.split(":"))
    if name is not None and _is_record(name):
        from polyptych.evaluation.judge import RecordedJudge

        return RecordedJudge(name)
    return _load_model(name, device)


def is_in_memory(name: str | None) -> bool:
    """Whether a name means a model that is loaded here, so that a device matters."""
    return name is None or not (_is_address(name) or _is_function(name) or _is_record(name))


def _is_record(name: str) -> bool:
    return name.endswith(".jsonl")


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _is_function(name: str) -> bool:
    return _FUNCTION.fullmatch(name) is not None and not Path(name).exists()


def _load_model(name: str | None, device: str) -> Answerer:
    """One of our models, an adapted one, or one of transformers; torch is imported only here."""
    from polyptych.adapters.adapt import adapt
    from polyptych.adapters.files import CONFIG_FILE
    from polyptych.evaluation.local_model import LocalModel
    from polyptych.models.checkpoint import check_family, check_folder, load_model, resolve
    from polyptych.serving.transformers_model import TransformersModel

    path = resolve(name)
    if Path(path, CONFIG_FILE).exists():
        model, processor = adapt(path)
        return LocalModel(model.to(device), processor, Path(path).name)
    check_folder(path, "config.json", "model")
    try:
        check_family(path)
    except PolyptychError as ours:
        try:
            return TransformersModel.load(path, device=device)
        except PolyptychError as theirs:
            raise PolyptychError(f"{ours}; and {theirs}") from theirs
    return LocalModel(*load_model(name, device=device), Path(path).name)


class FunctionAnswerer:
    """A Python function ``(prompt, images) -> answer``, asked one example at a time.

    Args:
        module: Its module, looked for in the current folder, too.
        function: Its name there.

    Raises:
        PolyptychError: If it cannot be imported.
    """

    tokens_per_image = ASSUMED_TOKENS
    ignores = frozenset(GenerationSettings.__dataclass_fields__)

    def __init__(self, module: str, function: str) -> None:
        self.name = f"{module}:{function}"
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise PolyptychError(f"{self.name}: cannot import {module}: {error}") from error
        self._function: AnswerFunction | None = getattr(found, function, None)
        if not callable(self._function):
            raise PolyptychError(f"{self.name}: {module} has no function {function!r}")
        try:
            source = inspect.getsource(found)
        except (OSError, TypeError):  # compiled or built in
            source = str(getattr(found, "__version__", ""))
        self.hash = digest(self.name, source)

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """Ask it about each example; the settings are its own affair."""
        return [self._ask(example) for example in examples]

    def _ask(self, example: Example) -> str:
        assert self._function is not None
        images = [load_image(image, where=f"example {example.id!r}") for image in example.images]
        answer = self._function(prompt_text(example.prompt), images)
        if not isinstance(answer, str):
            raise PolyptychError(
                f"{self.name}: example {example.id!r}: expected a text, got {type(answer).__name__}"
            )
        return answer

    def context(self) -> dict[str, Any]:
        """Its name and the hash of its module's source."""
        return {"model": {"name": self.name, "type": "function", "hash": self.hash}}
