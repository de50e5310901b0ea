"""Asking about pictures: the same answer as from the parts, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.task import GenerationSettings, prompt_text
from polyptych.serving.chat import Chat, ask, question_example
from polyptych.testing import tiny_image, tiny_model, tiny_processor

SETTINGS = GenerationSettings(max_new_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for seed, path in enumerate(paths):
        load_image(tiny_image(seed)).save(path)
    return paths


def test_answer_equals_that_of_the_parts(folder: Path, pictures: list[Path]) -> None:
    question = "What do these pictures share?"
    expected = answer(
        tiny_model(), tiny_processor(), [question_example(pictures, question)], SETTINGS
    )[0]
    assert expected
    assert ask(folder, pictures, question, settings=SETTINGS) == expected
    chat = Chat(folder)
    assert chat.ask(pictures, question, SETTINGS) == expected
    decoded = [Image.open(path) for path in pictures]
    assert chat.ask(decoded, question, SETTINGS) == expected
    assert isinstance(chat.ask([], question, SETTINGS), str)


def test_pictures_stand_in_front_or_where_the_question_puts_them(pictures: list[Path]) -> None:
    front = question_example(pictures, "What is shared?")
    assert prompt_text(front.prompt) == "<image><image>What is shared?"
    assert [image.path for image in front.images] == [str(path) for path in pictures]
    placed = question_example(pictures, "First: <image> Then: <image> What changed?")
    assert prompt_text(placed.prompt) == "First: <image> Then: <image> What changed?"


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "F", "P"])
def test_decoded_images_of_any_mode_are_taken(mode: str) -> None:
    example = question_example([Image.new(mode, (8, 8))], "What is it?")
    assert load_image(example.images[0]).size == (8, 8)


def test_refusals_name_what_is_wrong(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match="the question is empty"):
        question_example(pictures, " <image> <image> ")
    with pytest.raises(PolyptychError, match="has 1 <image>, but 2 pictures came"):
        question_example(pictures, "<image> What?")
    with pytest.raises(PolyptychError, match=r"nowhere\.png does not exist"):
        ask(folder, ["nowhere.png"], "What?")
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    with pytest.raises(PolyptychError, match=r"broken\.png"):
        ask(folder, [broken], "What?", settings=SETTINGS)
