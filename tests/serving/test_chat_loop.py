"""The conversation at the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyptych.cli import app
from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation.task import GenerationSettings
from polyptych.serving.chat_loop import HELP, chat
from polyptych.serving.conversation import Conversation
from polyptych.testing import tiny_cheetah, tiny_image, tiny_processor

SETTINGS = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_cheetah().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.png", "b.png", "of two words.png")]
    for seed, path in enumerate(paths):
        load_image(tiny_image(seed)).save(path)
    return paths


def typing(*lines: str) -> tuple[Callable[[str], str], list[str]]:
    """A reader that types these lines, and the list of what stood in front of them."""
    left, shown = list(lines), []

    def read(prompt: str) -> str:
        shown.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    return read, shown


def test_questions_pictures_and_a_new_start(folder: Path, pictures: list[Path]) -> None:
    read, shown = typing(
        "what is it?", "", f"/image {pictures[1]} '{pictures[2]}'", "and here?", "/new", "what?"
    )
    said: list[str] = []
    chat(folder, pictures[:1], settings=SETTINGS, read=read, write=said.append)
    talk = Conversation(tiny_cheetah(), tiny_processor(), SETTINGS)
    first, second = talk.ask("what is it?", pictures[:1]), talk.ask("and here?", pictures[1:])
    third = Conversation(tiny_cheetah(), tiny_processor(), SETTINGS).ask("what?")
    assert said == [HELP, first, second, third]
    assert shown == ["[1 pictures] > ", "> ", "> ", "[2 pictures] > ", "> ", "> ", "> "]


def test_mistakes_are_shown_and_the_conversation_goes_on(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(pictures[0].read_bytes()[:40])
    read, _ = typing(
        "/image nothing.png",
        "/image 'open",
        "/what",
        "is it in <image> or <image>?",
        f"/image {torn}",
        "and now?",
        "/quit",
        "never read",
    )
    said: list[str] = []
    chat(folder, settings=SETTINGS, read=read, write=said.append)
    assert said[1] == "polyptych: image nothing.png does not exist"
    assert "No closing quotation" in said[2]
    assert said[3] == HELP
    assert said[4] == "polyptych: the question has 2 <image>, but 0 pictures came"
    assert "torn.png" in said[5]
    talk = Conversation(tiny_cheetah(), tiny_processor(), SETTINGS)
    assert said[6:] == [talk.ask("and now?")]


def test_a_missing_picture_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(PolyptychError, match=r"image none\.png does not exist"):
        chat("no such model", ["none.png"])


def test_command_line(folder: Path, pictures: list[Path]) -> None:
    arguments = ["chat", str(folder), "--image", str(pictures[0]), "--max-new-tokens", "6"]
    arguments += ["--beams", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, input="what is it?\n")
    assert result.exit_code == 0
    expected = Conversation(tiny_cheetah(), tiny_processor(), SETTINGS).ask(
        "what is it?", pictures[:1]
    )
    assert expected in result.output
