"""From messages to padded rows: literal rows, labels on answers only, images never cut."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from polyptych.data.collation import Collator
from polyptych.data.conversation import TEMPLATES, Segment, render
from polyptych.data.tokenization import EncodedExample, TokenizationSettings, encode_example
from polyptych.errors import PolyptychError
from polyptych.schema import (
    IGNORE_INDEX,
    Block,
    Example,
    ImageBlock,
    ImageRef,
    Message,
    Role,
    TextBlock,
)
from polyptych.testing import tiny_examples, tiny_image, tiny_processor

IMAGE = 999


class Words:
    """A tokenizer of whole words; their ids count up from 10 in order of first use."""

    bos_token_id: int | None = 1
    eos_token_id = 2
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        words = text.replace(":", " :").replace("?", " ?").split()
        return {"input_ids": [self.ids.setdefault(word, 10 + len(self.ids)) for word in words]}

    def read(self, ids: Sequence[int]) -> str:
        names = {number: word for word, number in self.ids.items()}
        names |= {1: "<s>", 2: "</s>", 3: "[CLS]", 4: "[SEP]", IMAGE: "#"}
        return " ".join(names[number] for number in ids)


class Bert(Words):
    cls_token_id, sep_token_id = 3, 4


def message(role: Role, text: str) -> Message:
    """A turn; ``<>`` marks the place of an image."""
    blocks: list[Block] = []
    for index, piece in enumerate(text.split("<>")):
        if index:
            blocks.append(ImageBlock())
        if piece:
            blocks.append(TextBlock(piece))
    return Message(role, tuple(blocks))


def example(*turns: str, images: int | None = None) -> Example:
    """Turns of user and assistant, in turn, with as many images as places."""
    roles: tuple[Role, ...] = ("user", "assistant")
    messages = tuple(message(roles[i % 2], text) for i, text in enumerate(turns))
    count = sum(m.image_count for m in messages) if images is None else images
    return Example("e1", messages, tuple(ImageRef(path=f"{i}.png") for i in range(count)))


def encode(
    e: Example, *, with_target: bool = True, qformer: Words | None = None, **options: Any
) -> tuple[EncodedExample, Words]:
    words = Words()
    options = {"tokens_per_image": 2, **options}
    encoded = encode_example(
        e,
        tokenizer=words,
        qformer_tokenizer=qformer or words,
        image_token_id=IMAGE,
        settings=TokenizationSettings(**options),
        with_target=with_target,
    )
    return encoded, words


def learned(encoded: EncodedExample, words: Words) -> str:
    return words.read([label for label in encoded.labels if label != IGNORE_INDEX])


# Templates


def test_the_row_of_the_docstring() -> None:
    messages = [message("user", "<>What is it?")]
    assert render(messages, "qa", with_target=False) == [
        Segment("question: "),
        Segment(None),
        Segment("What is it? answer: "),
    ]


def test_plain_puts_nothing_between_prompt_and_answer() -> None:
    messages = [message("user", "Look: <>"), message("assistant", "a dog")]
    assert render(messages, "plain", with_target=True) == [
        Segment("Look: "),
        Segment(None),
        Segment("a dog", is_target=True),
    ]


def test_several_turns_are_all_answers() -> None:
    messages = [message(r, t) for r, t in (("user", "a"), ("assistant", "b")) * 2]  # type: ignore[arg-type]
    texts = [(s.text, s.is_target) for s in render(messages, "qa", with_target=True)]
    assert texts == [
        ("question: a answer: ", False),
        ("b", True),
        ("\nquestion: a answer: ", False),
        ("b", True),
    ]
    asked = [(s.text, s.is_target) for s in render(messages, "qa", with_target=False)]
    assert asked == [*texts[:2], ("\nquestion: a answer: ", False)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_asked_is_where_the_trained_row_begins(template: str) -> None:
    messages = [message("user", "one <> two <>three"), message("assistant", "four")]
    trained = render(messages, template, with_target=True)
    assert [s for s in trained if not s.is_target] == render(messages, template, with_target=False)


@pytest.mark.parametrize(
    ("template", "trained", "asked"),
    [
        (
            "vicuna_v0_training",
            ["###Human: <Img>", None, "</Img> a ###Assistant: ", "b###", "Human: c ###Assistant: "],
            "Human: c ###Assistant: ",
        ),
        (
            "vicuna_v0",
            ["###Human: <Img>", None, "</Img> a###Assistant:", "b###", "Human: c###Assistant:"],
            "Human: c###Assistant:",
        ),
        (
            "llama2",
            [
                "[INST] <<SYS>>\n\n<</SYS>>\n\n<Img>",
                None,
                "</Img> a [/INST]",
                "b",
                "<s>[INST] c [/INST]",
            ],
            "<s>[INST] c [/INST]",
        ),
    ],
)
def test_templates_with_marks_around_images(
    template: str, trained: list[str | None], asked: str
) -> None:
    turns = (("user", "<> a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    messages = [message(r, t) for r, t in turns]  # type: ignore[arg-type]
    end = TEMPLATES[template].answer_end or ""
    row = render(messages, template, with_target=True)
    assert [s.text for s in row] == [*trained, f"d{end}"]
    assert [s.text for s in row if s.is_target] == [f"b{end}", f"d{end}"]
    assert render(messages, template, with_target=False)[-1] == Segment(asked)


# Rows


def test_the_literal_row_of_the_docstring() -> None:
    e = example("<><>what is shared?", "a dog")
    encoded, words = encode(e, template="qa")
    row = "<s> question : # # # # what is shared ? answer : a dog </s>"
    assert words.read(encoded.input_ids) == row
    assert learned(encoded, words) == "a dog </s>"
    assert words.read(encoded.input_ids[: encoded.last_prompt + 1]).endswith("answer :")
    assert encoded.visual_prefix == 0
    assert encoded.image_count == 2
    assert not encoded.cut

    asked, words = encode(e, template="qa", with_target=False)
    assert words.read(asked.input_ids) == row.removesuffix(" a dog </s>")
    assert asked.last_prompt == len(asked.input_ids) - 1
    assert set(asked.labels) == {IGNORE_INDEX}


def test_images_first_moves_images_not_text() -> None:
    encoded, words = encode(example("one <> two <> three", "four"), layout="images_first")
    assert words.read(encoded.input_ids) == "# # # # <s> one two three four </s>"
    assert learned(encoded, words) == "four </s>"
    assert encoded.visual_prefix == 4
    assert encoded.input_ids[encoded.last_prompt] == words.ids["three"]


def test_images_first_keeps_the_order_of_turns() -> None:
    e = example("one <> two", "three", "four <>", "five")
    encoded, words = encode(e, layout="images_first")
    assert words.read(encoded.input_ids) == "# # # # <s> one two three </s> four five </s>"
    assert learned(encoded, words) == "three </s> five </s>"
    assert encoded.input_ids[encoded.last_prompt] == words.ids["four"]
    encoded, words = encode(e, layout="images_first", max_prompt_tokens=3, with_target=False)
    assert words.read(encoded.input_ids) == "# # # # <s> </s> four"


def test_no_bos_where_the_tokenizer_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "bos_token_id", None)
    encoded, words = encode(example("<> a b", "c"))
    assert words.read(encoded.input_ids) == "# # a b c </s>"


def test_the_instruction_is_what_the_user_said() -> None:
    bert = Bert()
    encoded, _ = encode(example("one <> two", "three", "four?", "five"), qformer=bert)
    assert bert.read(encoded.instruction_ids) == "[CLS] one two four ? [SEP]"


@pytest.mark.parametrize(
    ("layout", "kept"),
    [("interleaved", "[CLS] one two [SEP]"), ("images_first", "[CLS] three four [SEP]")],
)
def test_a_long_instruction_is_cut_inside_its_special_tokens(layout: str, kept: str) -> None:
    bert = Bert()
    encoded, _ = encode(
        example("one two three four", "x"), qformer=bert, layout=layout, max_instruction_tokens=4
    )
    assert bert.read(encoded.instruction_ids) == kept


def test_limits_of_the_released_code() -> None:
    """Prompts are cut from their beginning (bos counts), answers from their end."""
    encoded, words = encode(
        example("<> one two three four", "five six seven"),
        layout="images_first",
        max_prompt_tokens=3,
        max_target_tokens=2,
    )
    assert words.read(encoded.input_ids) == "# # <s> three four five six"
    assert learned(encoded, words) == "five six"


# Errors


@pytest.mark.parametrize(("places", "images"), [(2, 1), (0, 1), (1, 3)])
def test_another_number_of_images_names_both(places: int, images: int) -> None:
    e = example("<>" * places + "what?", images=images)
    message = f"example e1: {places} image placeholders for {images} images"
    with pytest.raises(PolyptychError, match=message):
        encode(e)


@pytest.mark.parametrize("text", ["<>", " <> "])
def test_an_empty_instruction_is_refused(text: str) -> None:
    with pytest.raises(PolyptychError, match="example e1: the instruction is empty"):
        encode(example(text, "an answer"))


# Cutting


def test_middle_words_go_first_then_the_first_then_the_question(
    caplog: pytest.LogCaptureFixture,
) -> None:
    e = example("a b <> c d <> e f <> g h", "i")
    whole = "<s> a b # # c d # # e f # # g h i </s>"
    rows = {
        17: whole,
        16: "<s> a b # # d # # e f # # g h i </s>",
        14: "<s> a b # # # # f # # g h i </s>",
        13: "<s> a b # # # # # # g h i </s>",
        12: "<s> b # # # # # # g h i </s>",
        10: "<s> # # # # # # h i </s>",
    }
    for length, row in rows.items():
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            encoded, words = encode(e, max_length=length)
        assert words.read(encoded.input_ids) == row, length
        assert learned(encoded, words) == "i </s>"
        assert encoded.input_ids.count(IMAGE) == 6
        removed = 17 - length
        said = (
            f"example e1: cut {removed} prompt tokens (of 17) to fit a context of {length}; "
            "image tokens are kept"
        )
        assert encoded.cut == (said if removed else "")
        assert [record.getMessage() for record in caplog.records] == ([said] if removed else [])


@pytest.mark.parametrize("layout", ["interleaved", "images_first"])
def test_images_that_do_not_fit_are_refused_with_both_numbers(layout: str) -> None:
    e = example("<><><> what?", "yes")
    with pytest.raises(PolyptychError, match=r"example e1: 9 tokens .* context of 8"):
        encode(e, max_length=8, layout=layout)


TURNS = st.lists(
    st.lists(st.sampled_from(["<>", " a ", " b c ", " d: e? "]), min_size=1, max_size=6).map(
        "".join
    ),
    min_size=1,
    max_size=5,
)


@given(
    turns=TURNS,
    layout=st.sampled_from(["interleaved", "images_first"]),
    template=st.sampled_from(sorted(TEMPLATES)),
    tokens=st.integers(1, 3),
    with_target=st.booleans(),
    room=st.integers(0, 8),
)
@settings(max_examples=200, deadline=None)
def test_whatever_the_example(
    turns: list[str], layout: str, template: str, tokens: int, with_target: bool, room: int
) -> None:
    """Labels stand on answers only, images are whole, and a cut row has exactly the room given."""
    e = example("ask " + turns[0], *(t.replace("<>", "") + " x" for t in turns[1:]))
    options = {"layout": layout, "template": template, "tokens_per_image": tokens}
    full, words = encode(e, with_target=with_target, **options)
    limit = max(1, len(full.input_ids) - room)
    try:
        row, words = encode(e, with_target=with_target, max_length=limit, **options)
    except PolyptychError:
        fixed = 1 + full.input_ids.count(IMAGE) + sum(x != IGNORE_INDEX for x in full.labels)
        assert fixed > limit
        return
    assert len(row.input_ids) == len(row.labels) == limit
    assert row.input_ids.count(IMAGE) == tokens * len(e.images) == full.input_ids.count(IMAGE)
    assert row.input_ids.count(1) == 1
    for token, label in zip(row.input_ids, row.labels, strict=True):
        assert label in (token, IGNORE_INDEX)
        assert label != IMAGE
    assert learned(row, words) == learned(full, words)
    assert bool(row.cut) == (limit < len(full.input_ids))
    end = TEMPLATES[template].answer_end
    answer = words((e.target or "") + (end or ""), add_special_tokens=False)["input_ids"]
    expected = [*answer, *([] if end else [2])] if with_target and e.target is not None else []
    assert row.input_ids[row.last_prompt + 1 :] == expected


# Batches


class Fixed:
    """A processor whose rows are given."""

    pad_token_id, instruction_pad_token_id = 0, 7

    def encode(self, example: Example, *, with_target: bool) -> EncodedExample:
        raise NotImplementedError

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[image.size[0]] for image in images])


def row(ids: list[int], answer: int = 0, prefix: int = 0, instruction: int = 1) -> EncodedExample:
    labels = [IGNORE_INDEX] * (len(ids) - answer) + ids[len(ids) - answer :]
    return EncodedExample(
        ids, labels, len(ids) - answer - 1, [5] * instruction, ids.count(IMAGE), prefix
    )


def test_training_rows_are_padded_on_the_right() -> None:
    rows = [row([1, IMAGE, 11, 12], answer=2), row([1, 13], answer=1, instruction=3)]
    batch = Collator(Fixed(), training=True).pad(rows)
    assert batch["input_ids"].tolist() == [[1, IMAGE, 11, 12], [1, 13, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 11, 12], [-100, 13, -100, -100]]
    assert batch["last_prompt"].tolist() == [1, 0]
    assert batch["image_counts"].tolist() == [1, 0]
    assert batch["qformer_input_ids"].tolist() == [[5, 7, 7], [5, 5, 5]]
    assert batch["qformer_attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert "position_ids" not in batch


def test_prompts_are_padded_on_the_left() -> None:
    batch = Collator(Fixed(), training=False).pad([row([1, IMAGE, 11, 12]), row([1, 13])])
    assert batch["input_ids"].tolist() == [[1, IMAGE, 11, 12], [0, 0, 1, 13]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["last_prompt"].tolist() == [3, 3]
    assert "labels" not in batch
    assert "position_ids" not in batch


def test_images_first_is_padded_between_images_and_text() -> None:
    """As the released SAM does; positions go on where the images end."""
    rows = [row([IMAGE, IMAGE, 1, 11, 12], prefix=2), row([IMAGE, 1, 13], prefix=1)]
    batch = Collator(Fixed(), training=False).pad(rows)
    assert batch["input_ids"].tolist() == [[IMAGE, IMAGE, 1, 11, 12], [IMAGE, 0, 0, 1, 13]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 1, 1]]
    positions = batch["position_ids"]
    assert positions[0].tolist() == [0, 1, 2, 3, 4]
    assert positions[1][batch["attention_mask"][1] == 1].tolist() == [0, 1, 2]
    assert batch["last_prompt"].tolist() == [4, 4]


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=5), training=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_batch_of_mixed_image_counts(counts: list[int], training: bool) -> None:
    """Each row of a batch is the row alone with pads around; images lie flat, in order."""
    examples = [
        Example(
            f"e{i}",
            (message("user", "<> then " * n + "what?"), message("assistant", "a " * (i + 1))),
            tuple(tiny_image(10 * i + j) for j in range(n)),
        )
        for i, n in enumerate(counts)
    ]
    for layout in ("interleaved", "images_first"):
        processor = tiny_processor(layout=layout)
        batch = Collator(processor, training=training)(examples)
        assert batch["image_counts"].tolist() == counts
        assert ("pixel_values" in batch) == (sum(counts) > 0)
        alone = [Collator(processor, training=training)([e]) for e in examples]
        pixels = [b["pixel_values"] for b in alone if "pixel_values" in b]
        if pixels:
            assert torch.equal(batch["pixel_values"], torch.cat(pixels))
        for index, single in enumerate(alone):
            mask = batch["attention_mask"][index].bool()
            assert torch.equal(batch["input_ids"][index, mask], single["input_ids"][0])
            assert batch["input_ids"][index].eq(processor.image_token_id).sum() == 3 * counts[index]
            last = int(batch["last_prompt"][index])
            assert batch["input_ids"][index, last] == single["input_ids"][0, single["last_prompt"]]
            if training:
                assert torch.equal(batch["labels"][index, mask], single["labels"][0])
                assert (batch["labels"][index, ~mask] == IGNORE_INDEX).all()


def test_cached_features_take_the_place_of_pixels() -> None:
    class Features:
        def get(self, refs: Sequence[ImageRef]) -> Tensor:
            return torch.zeros(len(refs), 2, 3)

    examples = tiny_examples(3)
    batch = Collator(tiny_processor(), training=True, features=Features())(examples)
    assert "pixel_values" not in batch
    assert batch["image_features"].shape == (sum(len(e.images) for e in examples), 2, 3)


def test_an_unreadable_picture_names_its_example() -> None:
    (e,) = tiny_examples(1, (1,))
    broken = Example(e.id, e.messages, (ImageRef(data=b"no picture"),))
    with pytest.raises(PolyptychError, match="example tiny-0: image given as bytes"):
        Collator(tiny_processor(), training=True)([broken])
