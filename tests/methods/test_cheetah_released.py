"""Published prompts, row layout, tokenizer, sampling and texts, on tiny models and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
import torch
from torch import Tensor

from polyptych.data.tokenization import EncodedExample
from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.released import (
    IMAGE_MARK,
    ReleasedRow,
    chat_content,
    lay_out,
    released_batch,
    released_example,
    released_processor,
    released_tokenizer,
    split_row,
    training_content,
)
from polyptych.methods.cheetah.released_generation import released_generate, released_texts
from polyptych.models.checkpoint import load_processor
from polyptych.schema import IGNORE_INDEX, ImageBlock
from polyptych.testing import TINY_IMAGE_SIZE, TINY_QUERIES, tiny_cheetah

IMAGE, PAD = 99, 0
LAYOUT = {"image_token_id": IMAGE, "tokens_per_image": 2, "pad_token_id": PAD}
WORDS = """###Human: <Img></Img> what is different between these images ###Assistant: the dog sleeps
[INST] <<SYS>> <</SYS>> first second third picture [/INST] a red ball is under the tree###
describe what happens next in the story of mia and the boat"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA-like tokenizer (SentencePiece BPE with byte fallback) over a few words."""
    folder = tmp_path_factory.mktemp("llama")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.splitlines() * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return folder


# --- prompts -------------------------------------------------------------------------------------


def text_of(content) -> str:
    return "".join("#" if isinstance(block, ImageBlock) else block.text for block in content)


@pytest.mark.parametrize(
    ("asked", "trained", "chat"),
    [
        ("<Img><HereForImage></Img> what?", "# what?", "#  what?"),
        ("a <image> b <image> c", "a # b # c", "a  #  b  #  c"),
        ("<ImageHere><ImageHere>x", "##x", "# # x"),
        ("<image> <image> x", "# # x", "# #  x"),
        ("x <image>", "x #", "x  #"),
        ("no image", "no image", "no image"),
    ],
)
def test_chat_has_a_space_at_every_seam_and_training_has_not(asked, trained, chat) -> None:
    assert text_of(training_content(asked)) == trained
    assert text_of(chat_content(asked)) == chat
    example = released_example(asked)
    assert len(example.images) == len(IMAGE_MARK.findall(asked)) == example.messages[0].image_count


# --- layout --------------------------------------------------------------------------------------


def rows() -> list[ReleasedRow]:
    return [ReleasedRow(((1, 11, 12), (13,)), (21,)), ReleasedRow(((1,), (14, 15)), (22, 23))]


def test_training_rows_are_padded_piece_by_piece_and_answers_follow_their_prompts() -> None:
    batch = lay_out(rows(), **LAYOUT, training=True)
    assert batch["input_ids"].tolist() == [
        [1, 11, 12, IMAGE, IMAGE, 13, 21, PAD, PAD],
        [1, PAD, PAD, IMAGE, IMAGE, 14, 15, 22, 23],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 7 + [0, 0], [1, 0, 0] + [1] * 6]
    assert batch["labels"].tolist() == [[-100] * 6 + [21, -100, -100], [-100] * 7 + [22, 23]]
    assert batch["position_ids"].tolist() == [list(range(9))] * 2, "pads count"
    assert batch["last_prompt"].tolist() == [5, 6]
    assert batch["image_counts"].tolist() == [1, 1]


def test_prompts_are_padded_on_the_left_of_each_piece() -> None:
    batch = lay_out(rows(), **LAYOUT, training=False)
    assert batch["input_ids"].tolist() == [
        [1, 11, 12, IMAGE, IMAGE, PAD, 13],
        [PAD, PAD, 1, IMAGE, IMAGE, 14, 15],
    ]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 1, 5], [1, 1, 0, 1, 2, 3, 4]]
    assert batch["last_prompt"].tolist() == [6, 6]
    assert "labels" not in batch


def test_rows_of_different_numbers_of_images_are_refused() -> None:
    with pytest.raises(PolyptychError, match="equally many images in all rows; got 0 and 1"):
        lay_out([*rows(), ReleasedRow(((1, 2),))], **LAYOUT, training=False)


def test_rows_are_cut_at_images_and_before_the_answer() -> None:
    ids = [1, IMAGE, IMAGE, IMAGE, IMAGE, 5, IMAGE, IMAGE, 6, 7, 8]
    row = EncodedExample(ids, [IGNORE_INDEX] * 9 + [7, 8], 8, [], 3, 0)
    assert split_row(row, IMAGE, 2) == ReleasedRow(((1,), (), (5,), (6,)), (7, 8))
    at_the_end = EncodedExample([1, IMAGE, IMAGE], [IGNORE_INDEX] * 3, 2, [], 1, 0)
    assert split_row(at_the_end, IMAGE, 2) == ReleasedRow(((1,), ()))


# --- tokenizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ("vicuna", "llama2"))
def test_pieces_are_tokenized_as_by_sentencepiece(folder: Path, variant: str) -> None:
    """Each piece by itself, with a leading blank of its own, as the published slow tokenizer."""
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ours = released_tokenizer(folder, variant)
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)
    assert ours.pad_token_id == {"vicuna": 2, "llama2": 0}[variant]
    for piece in (
        "###Human: <Img>",
        "</Img> <Img>",
        "</Img>  what is different###Assistant:",
        " ###Assistant: ",
        "[INST] <<SYS>>\n\n<</SYS>>\n\nfirst  <Img>",
        "a red ball###",
        "zebra é 漢",
    ):
        expected = reference.encode(piece)
        assert ours(piece, add_special_tokens=False)["input_ids"] == expected, piece


@pytest.mark.parametrize("variant", ("vicuna", "llama2"))
def test_a_processor_lays_published_rows(folder: Path, variant: str) -> None:
    tokenizer = released_tokenizer(folder, variant)
    settings = {"image_token_id": 340, "tokens_per_image": 2}
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    pixels = torch.zeros(4, 3, 2, 2)
    asked = ["<image> first <image> second", "what is <image> and <image>"]

    chat = released_processor(tokenizer, variant, **settings)
    batch = released_batch(chat, asked, pixels)
    start, end = {
        "vicuna": ("###Human: ", "###Assistant:"),
        "llama2": ("[INST] <<SYS>>\n\n<</SYS>>\n\n", " [/INST]"),
    }[variant]
    pieces = [f"{start}<Img>", "</Img>  first  <Img>", f"</Img>  second{end}"]
    ids = [reference.encode(piece) for piece in pieces]
    expected = [1, *ids[0], 340, 340, *ids[1], 340, 340, *ids[2]]
    assert batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist() == expected
    assert batch["pixel_values"] is pixels
    images = batch["input_ids"] == 340
    assert torch.equal(images[0], images[1]), "images stand in the same columns"

    trainer = released_processor(tokenizer, variant, **settings, training=True)
    batch = released_batch(trainer, asked, pixels, ["a dog", "the red ball"])
    learned = [labels[labels != IGNORE_INDEX].tolist() for labels in batch["labels"]]
    ends = {"vicuna": "###", "llama2": ""}[variant]
    answers = [reference.encode(text + ends) for text in ("a dog", "the red ball")]
    assert learned == [ids + ([2] if variant == "llama2" else []) for ids in answers]


def test_a_saved_processor_makes_the_same_rows(folder: Path, tmp_path: Path) -> None:
    ours = released_processor(released_tokenizer(folder), image_token_id=340, tokens_per_image=2)
    ours.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    for asked in ("<image> first <image>", " zebra é  what"):
        example = released_example(asked)
        assert loaded.encode(example, with_target=False) == ours.encode(example, with_target=False)
    assert loaded.pad_token_id == 2 and loaded.template == "vicuna_v0"


# --- answers -------------------------------------------------------------------------------------


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, TINY_IMAGE_SIZE, TINY_IMAGE_SIZE, generator=generator)


def test_sampling_follows_the_seed_and_greedy_search_may_be_asked_for(folder: Path) -> None:
    model = tiny_cheetah(image_token_id=1000)
    processor = released_processor(
        released_tokenizer(folder), image_token_id=1000, tokens_per_image=TINY_QUERIES
    )
    batch = released_batch(processor, ["<image> what?", "<image> the dog"], pixels(2))
    # Its vocabulary is smaller than the tokenizer's.
    batch["input_ids"] = torch.where(batch["input_ids"] < 320, batch["input_ids"], 5).where(
        batch["input_ids"] != 1000, torch.tensor(1000)
    )
    settings = {"pad_token_id": 2, "max_new_tokens": 5}
    sampled = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sampled.append(released_generate(model, batch, **settings).tolist())
    assert sampled[0] == sampled[1] != sampled[2]
    greedy = {"do_sample": False, "top_p": None, "temperature": None}
    ids = released_generate(model, batch, **settings, **greedy)
    width = batch["input_ids"].shape[1]
    plain = model.generate(**batch, do_sample=False, pad_token_id=2, max_new_tokens=5)[:, width:]
    assert torch.equal(ids, plain)
    assert len(released_texts(processor.tokenizer, ids)) == 2


@pytest.mark.parametrize(
    ("variant", "said", "text"),
    [
        ("vicuna", " the dog sleeps### Human: what", "the dog sleeps"),
        ("vicuna", "###Assistant: x", ""),
        ("vicuna", "a Assistant: the dog", "the dog"),
        ("llama2", "the dog</s></s>", "the dog"),
        ("llama2", "the ### dog", "the ### dog"),
    ],
)
def test_texts_are_cut_where_the_answer_ends(folder: Path, variant, said, text) -> None:
    tokenizer = released_tokenizer(folder, variant)
    ids = torch.tensor([tokenizer(said, add_special_tokens=False)["input_ids"]])
    assert released_texts(tokenizer, ids, variant) == [text]


def test_everyday_answers_end_there_too(folder: Path) -> None:
    processor = released_processor(released_tokenizer(folder), image_token_id=340)
    for said, text in (
        ("the dog### what", "the dog"),
        ("the dog##", "the dog"),
        ("the dog</s>", "the dog"),
        ("the dog", "the dog"),
    ):
        ids = processor.tokenizer(f"{said}", add_special_tokens=False)["input_ids"]
        assert processor.decode_answers(torch.tensor([[7, *ids]]), 1) == [text]
