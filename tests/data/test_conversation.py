"""The template of LLaVA-1.5: literal rows, and the published token ids and labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaTokenizer

from polyptych.data.conversation import TEMPLATES, Segment, render
from polyptych.data.readers.llava import parse_llava
from polyptych.data.tokenization import TokenizationSettings, encode_example
from polyptych.schema import ImageBlock, Message, TextBlock

SYSTEM = TEMPLATES["vicuna_v1"].system


def user(*blocks: str | None) -> Message:
    return Message("user", tuple(ImageBlock() if b is None else TextBlock(b) for b in blocks))


def answer(text: str) -> Message:
    return Message("assistant", (TextBlock(text),))


def test_a_conversation_in_vicuna_v1() -> None:
    messages = [user(None, "Q1"), answer("A1"), user("Q2"), answer("A2")]
    assert render(messages, "vicuna_v1", with_target=True) == [
        Segment(f"{SYSTEM} USER: "),
        Segment(None),
        Segment("\nQ1 ASSISTANT:"),
        Segment("A1", is_target=True),
        Segment("USER: Q2 ASSISTANT:"),
        Segment("A2", is_target=True),
    ]
    assert render(messages, "vicuna_v1", with_target=False)[-1] == Segment("USER: Q2 ASSISTANT:")


def test_images_in_front_end_their_line_once_and_images_in_the_text_do_not() -> None:
    def between(*blocks: str | None) -> str:
        pieces = render([user(*blocks)], "vicuna_v1", with_target=False)
        row = "".join("#" if piece.text is None else piece.text for piece in pieces)
        return row.removeprefix(f"{SYSTEM} USER: ").removesuffix(" ASSISTANT:")

    assert between(None, "What?") == "#\nWhat?"
    assert between(None, "\nWhat?") == "#\nWhat?"
    assert between(None, None, "What?") == "#\n#\nWhat?"
    assert between("First ", None, ", then ", None) == "First #, then #"


def test_a_system_message_takes_the_place_of_the_usual_one() -> None:
    own = Message("system", (TextBlock("Be brief."),))
    pieces = render([own, user("Why?")], "vicuna_v1", with_target=False)
    assert pieces == [Segment("Be brief. USER: Why? ASSISTANT:")]
    # A template without a system text has no special place for it.
    pieces = render([own, user("Why?")], "qa", with_target=False)
    assert pieces == [Segment("question: Be brief.\nquestion: Why? answer: ")]


@pytest.mark.shared_data
def test_rows_equal_the_published_ones(shared_dir: Path) -> None:
    """Token ids and labels of the released code, every placeholder one token (-200) as there."""
    folder = shared_dir / "golden" / "camml" / "data"
    golden = json.loads((folder / "samples.json").read_text("utf-8"))
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True)
    settings = TokenizationSettings(tokens_per_image=1, template="vicuna_v1")
    compared = 0
    for recipe in ("train_camml", "train_camml_sqa"):
        for item in golden[recipe]["items"]:
            turns = item["transformed_turns"]
            if turns[0]["from"] != "human":
                continue  # the released code drops such a turn together with its placeholder
            images = ["q"] * sum(turn["value"].count("<image>") for turn in turns)
            example = parse_llava({"id": "1", "conversations": turns, "image": images}, "", "")
            row = encode_example(
                example,
                tokenizer=tokenizer,
                qformer_tokenizer=tokenizer,
                image_token_id=-200,
                settings=settings,
                with_target=True,
            )
            assert row.input_ids == item["input_ids"]
            assert row.labels == item["labels"]
            compared += 1
    assert compared == 6
