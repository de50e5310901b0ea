"""The two harnesses through stand-ins of their contracts; they themselves are not installed."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from polyptych.data.images import load_image
from polyptych.data.records import IMAGE_TOKEN
from polyptych.errors import PolyptychError
from polyptych.evaluation.task import GenerationSettings, prompt_text
from polyptych.integrations import lmms_eval, vlmevalkit
from polyptych.integrations.devices import best_device
from polyptych.integrations.lmms_eval import cut, settings_of
from polyptych.integrations.messages import chat_example, parts_example
from polyptych.serving import answerers

RED, BLUE = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))


class Echo:
    """An answerer that says what it was asked: images by their color, at their places."""

    name = hash = "echo"
    tokens_per_image = 1
    ignores: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.batches: list[tuple[int, GenerationSettings]] = []
        self.device = ""

    def answer(self, examples: Any, settings: GenerationSettings) -> list[str]:
        self.batches.append((len(examples), settings))
        return [self._said(example) for example in examples]

    def _said(self, example: Any) -> str:
        text = prompt_text(example.prompt)
        for image in example.images:
            color = "red" if load_image(image).getpixel((0, 0)) == (255, 0, 0) else "blue"
            text = text.replace("<image>", f"({color})", 1)
        return text

    def context(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    answerer = Echo()

    def load(*_: Any, device: str, **__: Any) -> Echo:
        answerer.device = device
        return answerer

    monkeypatch.setattr(answerers, "load_answerer", load)
    return answerer


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:end]))
        module.__path__ = []  # type: ignore[attr-defined]
        if end == len(parts):
            vars(module).update(contents)
        if module.__name__ not in sys.modules or end == len(parts):
            monkeypatch.setitem(sys.modules, module.__name__, module)


# lmms-eval


class StandInLmms:
    """lmms_eval.api.model.lmms as its registry and evaluator use it."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@dataclass
class StandInManifest:
    model_id: str
    chat_class_path: str
    aliases: tuple[str, ...]


@dataclass
class Request:
    args: tuple[Any, ...]


@pytest.fixture
def lmms_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    lmms_eval._chat_class.cache_clear()
    stand_in(monkeypatch, "lmms_eval.api.model", lmms=StandInLmms)
    stand_in(monkeypatch, "lmms_eval.models.registry_v2", ModelManifest=StandInManifest)


def requests_for(documents: list[Any], options: list[dict[str, Any]]) -> list[Request]:
    def to_messages(document: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": document}]

    return [
        Request(("context", to_messages, option, number, "toy", "test"))
        for number, option in enumerate(options)
    ]


@pytest.mark.usefixtures("lmms_installed")
def test_lmms_eval_finds_the_chat_class() -> None:
    (manifest,) = lmms_eval.manifests()
    assert manifest.model_id == "polyptych"
    module, _, name = manifest.chat_class_path.rpartition(".")
    found = getattr(sys.modules[module], name)
    assert issubclass(found, StandInLmms)
    assert found.is_simple is False, "its registry refuses chat models that say otherwise"


def test_the_entry_point_is_declared() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(
        r'\[project\.entry-points\."lmms_eval\.models"\]\npolyptych = '
        r'"polyptych\.integrations\.lmms_eval:manifests"',
        text,
    )
    installed = [p for p in entry_points(group="lmms_eval.models") if p.name == "polyptych"]
    for point in installed:
        assert point.load() is lmms_eval.manifests


@pytest.mark.usefixtures("lmms_installed")
def test_requests_of_six_arguments_keep_the_order_of_images_and_answers(echo: Echo) -> None:
    def image(picture: Image.Image) -> dict[str, Any]:
        return {"type": "image", "url": picture}

    def text(words: str) -> dict[str, Any]:
        return {"type": "text", "text": words}

    documents = [
        [image(RED), text(" then "), image(BLUE), text(" END which is first?")],
        [image(BLUE), text(" then "), image(RED), text(" END which is first?")],
        [text("no picture")],
        [text("other settings")],
    ]
    plain, longer = {"max_new_tokens": 8, "until": [" END"]}, {"max_new_tokens": 9}
    model = lmms_eval.PolyptychChat(pretrained="any", batch_size="2")
    model.task_dict = {"toy": {"test": documents}}
    answers = model.generate_until(requests_for(documents, [plain, plain, plain, longer]))
    assert answers == ["(red) then (blue)", "(blue) then (red)", "no picture", "other settings"]
    assert [size for size, _ in echo.batches] == [2, 1, 1]
    assert [settings.max_new_tokens for _, settings in echo.batches] == [8, 8, 9]
    with pytest.raises(NotImplementedError, match="generate text"):
        model.loglikelihood([])


@pytest.mark.usefixtures("lmms_installed")
def test_several_processes_are_told_the_device(echo: Echo) -> None:
    """Under torchrun its evaluator makes the tensors it gathers on ``lm.device``."""
    model = lmms_eval.PolyptychChat(pretrained="any")
    assert torch.zeros(1, device=model.device).device.type == echo.device
    assert lmms_eval.PolyptychChat(pretrained="any", device="meta").device == echo.device == "meta"


def test_options_of_generation_and_stop_marks() -> None:
    assert settings_of({"temperature": 0, "do_sample": True, "max_new_tokens": 16}) == (
        GenerationSettings(max_new_tokens=16)
    )
    sampled = settings_of({"temperature": 0.7, "top_p": 0.9, "num_beams": None})
    assert (sampled.do_sample, sampled.temperature, sampled.top_p) == (True, 0.7, 0.9)
    assert cut("yes\n\nno", ["\n\n", "x"]) == "yes"
    assert cut("yes", None) == "yes"


# VLMEvalKit


class StandInBaseModel:
    """vlmeval.vlm.base.BaseModel: generate() hands the parts on."""

    INTERLEAVE = False

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        return self.generate_inner(message, dataset)  # type: ignore[attr-defined]


def test_the_launcher_of_vlmevalkit_registers_a_model_that_sees_all_images(
    echo: Echo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vlmevalkit._model_class.cache_clear()
    table: dict[str, Any] = {}
    stand_in(monkeypatch, "vlmeval.config", supported_VLM=table)
    stand_in(monkeypatch, "vlmeval.vlm.base", BaseModel=StandInBaseModel)
    (tmp_path / "run.py").write_text("print('started')\n")
    monkeypatch.chdir(tmp_path)
    launcher = re.search(r"((?:    .*\n){5})\n    python run_polyptych", vlmevalkit.__doc__ or "")
    assert launcher is not None
    exec("\n".join(line.strip() for line in launcher[1].splitlines()), {})

    assert isinstance(table["polyptych"], partial)
    model = table["polyptych"]()
    assert model.INTERLEAVE is True
    assert echo.device == best_device()
    paths = []
    for number, picture in enumerate((RED, BLUE)):
        picture.save(tmp_path / f"{number}.png")
        paths.append({"type": "image", "value": str(tmp_path / f"{number}.png")})
    words = [{"type": "text", "value": " or "}, {"type": "text", "value": "?"}]
    first = model.generate([paths[0], words[0], paths[1], words[1]], dataset="BLINK")
    second = model.generate([paths[1], words[0], paths[0], words[1]], dataset="BLINK")
    assert (first, second) == ("(red) or (blue)?", "(blue) or (red)?")


# Messages


def test_permuted_images_are_another_prompt() -> None:
    def block(picture: Image.Image) -> dict[str, Any]:
        return {"type": "image", "url": picture}

    words = {"type": "text", "text": "differ how?"}
    one = chat_example("a", [{"role": "user", "content": [block(RED), block(BLUE), words]}])
    two = chat_example("a", [{"role": "user", "content": [block(BLUE), block(RED), words]}])
    assert one.messages == two.messages
    assert one.images == two.images[::-1]
    assert one.images != two.images


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["<image> left of <image>?"], "<image> left of <image>?"),
        (["<image>: this\n", "<image>: that"], "<image>: this\n<image>: that"),
        (["one mark <image>"], "<image><image>one mark image"),
        (["no mark"], "<image><image>no mark"),
    ],
)
def test_images_before_a_text_go_to_its_marks(texts: list[str], expected: str) -> None:
    pictures = [{"type": "image", "url": picture} for picture in (RED, BLUE)]
    words = [{"type": "text", "text": text} for text in texts]
    example = chat_example("a", [{"role": "user", "content": [*pictures, *words]}])
    assert prompt_text(example.messages) == expected
    assert len(example.images) == 2
    assert not any(IMAGE_TOKEN in message.text for message in example.messages)


def test_marks_beside_interleaved_images_are_words() -> None:
    picture = {"type": "image", "url": RED}
    words = {"type": "text", "text": "the mark <image> means"}
    example = chat_example("a", [{"role": "user", "content": [words, picture]}])
    assert prompt_text(example.messages) == "the mark image means<image>"
    alone = chat_example("a", [{"role": "system", "content": "each <image> is drawn"}])
    assert prompt_text(alone.messages) == "each image is drawn"


def test_odd_messages_are_refused() -> None:
    with pytest.raises(PolyptychError, match="images and text only, got 'video'"):
        chat_example("a", [{"role": "user", "content": [{"type": "video", "url": "x"}]}])
    with pytest.raises(PolyptychError, match="no role 'tool'"):
        chat_example("a", [{"role": "tool", "content": "x"}])
    assert parts_example("a", [{"type": "text", "value": "hi"}]).messages[0].text == "hi"
