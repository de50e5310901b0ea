"""Answers with retrieved examples: those of the index, shown as they are, and clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyptych.cli import app
from polyptych.data.images import load_image
from polyptych.data.records import read_records, write_records
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.task import GenerationSettings
from polyptych.retrieval.building import build_index
from polyptych.retrieval.encoders import load_encoder
from polyptych.schema import Example, ImageBlock, Message, TextBlock
from polyptych.serving.chat import question_example
from polyptych.serving.chat_loop import chat
from polyptych.serving.conversation import Conversation
from polyptych.serving.shots import ShotFinder, ask_with_shots, listing
from polyptych.testing import (
    tiny_camml,
    tiny_camml_processor,
    tiny_image,
    tiny_llava,
    tiny_llava_processor,
)

SETTINGS = GenerationSettings(num_beams=1, max_new_tokens=6)


def fact(number: int) -> Example:
    """A picture and what is said of it."""
    messages = (
        Message("user", (ImageBlock(), TextBlock("what is this?"))),
        Message("assistant", (TextBlock(f"a red ball, number {number}."),)),
    )
    return Example(f"fact-{number}", messages, (tiny_image(number),))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CaMML, a LLaVA, an index of six facts, and the picture of the third."""
    root = tmp_path_factory.mktemp("grounded")
    for name, model, processor in (
        ("camml", tiny_camml(), tiny_camml_processor()),
        ("llava", tiny_llava(), tiny_llava_processor()),
    ):
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    write_records(root / "facts.jsonl", map(fact, range(6)))
    build_index(map(fact, range(6)), root / "index", load_encoder())
    load_image(tiny_image(2)).save(root / "q.png")
    return root


def test_the_answer_is_that_of_the_nearest_entries(home: Path) -> None:
    result = ask_with_shots(
        home / "camml", home / "index", [home / "q.png"], "what?", top_k=2, settings=SETTINGS
    )
    assert result.shots[0].example.id == "fact-2" and result.shots[0].score > 0.999
    assert len(result.shots) == 2 and result.shots[1].score <= result.shots[0].score
    asked = replace(
        question_example([home / "q.png"], "what?"),
        shots=tuple(shot.example for shot in result.shots),
    )
    expected = answer(tiny_camml(), tiny_camml_processor(), [asked], SETTINGS)[0]
    assert result.text == expected
    lines = listing(result.shots).splitlines()
    assert lines[0].endswith("fact-2") and "number 2." in lines[2]


def test_the_command_lists_shots_and_writes_a_page(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "answer.html"
    words = ["ask", str(home / "camml"), "what?", "--image", str(home / "q.png")]
    words += ["--index", str(home / "index"), "--shots", "2", "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, [*words, "--show-shots", "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert "fact-2" in result.output
    html = page.read_text()
    assert html.count("<img ") == 3 and html.count("data:image/") == 3
    assert "a red ball, number 2." in html and "http" not in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "llava"}, "polyptych_llava reads no shots"),
        ({"top_k": 7}, "7 shots wanted, but the index has 6"),
        ({"images": []}, "is searched by image, and the question has none"),
        ({"index": "nowhere"}, "nowhere"),
    ],
)
def test_refusals_are_one_line(home: Path, changes: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {
        "model": "camml",
        "index": "index",
        "images": [home / "q.png"],
        "top_k": 2,
    } | changes
    with pytest.raises(PolyptychError) as error:
        ask_with_shots(
            home / asked["model"],
            home / asked["index"],
            asked["images"],
            "what?",
            top_k=asked["top_k"],
        )
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_entry_whose_image_is_gone_is_named(home: Path, tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    write_records(facts, map(fact, range(3)))
    build_index(read_records(facts), tmp_path / "index", load_encoder())
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    with pytest.raises(PolyptychError, match=r"shot fact-2: image .* does not exist"):
        ask_with_shots(home / "camml", tmp_path / "index", [home / "q.png"], "what?", top_k=1)


def test_options_of_an_index_need_one(home: Path) -> None:
    result = CliRunner().invoke(app, ["ask", "what?", "--show-shots"])
    assert result.exit_code == 2 and "need an --index" in result.output


def test_a_conversation_keeps_the_shots_of_its_first_question(home: Path) -> None:
    model, processor = tiny_camml(), tiny_camml_processor()
    finder = ShotFinder(home / "index", 2)
    talk = Conversation(model, processor, SETTINGS, finder.find)
    encoded = []
    talk.model.camml.language_perceiver.register_forward_hook(lambda *_: encoded.append(1))
    said = [talk.ask("what is this?", [load_image(tiny_image(2))]), talk.ask("and the color?")]
    assert talk.shots[0].example.id == "fact-2" and len(encoded) == 1
    dialogue = Example(
        "whole",
        talk.messages[:-1],
        talk.images,
        shots=tuple(shot.example for shot in talk.shots),
    )
    assert answer(model, processor, [dialogue], SETTINGS)[0] == said[1]
    bare = Conversation(model, processor, SETTINGS)
    assert bare.ask("what is this?", [load_image(tiny_image(2))]) is not None
    with pytest.raises(PolyptychError, match="reads no shots"):
        Conversation(tiny_llava(), tiny_llava_processor(), SETTINGS, finder.find)


def test_chat_finds_shots_for_the_first_question(home: Path) -> None:
    lines = iter(["what is this?", "/quit"])
    shown: list[str] = []
    chat(
        home / "camml",
        [home / "q.png"],
        settings=SETTINGS,
        index=home / "index",
        shots=2,
        read=lambda _: next(lines),
        write=shown.append,
    )
    result = ask_with_shots(
        home / "camml",
        home / "index",
        [home / "q.png"],
        "what is this?",
        top_k=2,
        settings=SETTINGS,
    )
    assert shown[-1] == result.text
    with pytest.raises(PolyptychError, match="reads no shots"):
        chat(home / "llava", index=home / "index", read=lambda _: "/quit", write=shown.append)
