"""Rows of pairs against the published rule for tokens and labels: the whole dialogue as one string.

The rule, in the specification's words: the row is ``{system} USER: <image>\\n{question} ASSISTANT:
{answer}</s>``, cut into chunks at the image, tokenized chunk by chunk, bos kept of the first alone.
The instruction has as many tokens as the text up to ``ASSISTANT: `` (with blank) less two.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaTokenizer

from polyptych.data.conversation import TEMPLATES
from polyptych.schema import ImageBlock, Message, PreferencePair, TextBlock
from polyptych.testing import tiny_image, tiny_llava_processor
from polyptych.training.branching import CHOSEN, PROMPT, REJECTED
from polyptych.training.preference_data import PreferenceCollator

PLACES = 16

CASES = [
    ("What is on the mat?", "A dog.", "A cat."),
    ("Describe the picture in detail.", "There are 2 boats,\nand a pier.", "Ein Café."),
    ("What color?", "red", "\nBlue and green."),
    ("Wie heißt das?\nAnswer shortly.", "(a) 3.5", "It's “odd”."),
]


@pytest.fixture(scope="module")
def tokenizer(shared_dir: Path) -> LlamaTokenizer:
    folder = shared_dir / "golden" / "camml" / "data"
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True)
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def published(tokenizer: LlamaTokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids (each visual token one -200) and the answer's labels, by the published rule."""
    system = TEMPLATES["vicuna_v1"].system
    prompt = f"{system} USER: <image>\n{question} ASSISTANT: "

    def ids_of(text: str) -> list[int]:
        first, *rest = (
            tokenizer(chunk, add_special_tokens=False)["input_ids"]
            for chunk in text.split("<image>")
        )
        joined = [tokenizer.bos_token_id, *first]
        for chunk in rest:
            joined += [-200, *chunk]
        return joined

    row = ids_of(f"{prompt}{answer}</s>")
    instruction = len(ids_of(prompt)) - 2
    labels = row[1 + instruction :]
    wide = [token for one in row for token in ([one] * PLACES if one == -200 else [one])]
    return wide, labels


@pytest.mark.shared_data
def test_rows_and_labels_are_those_of_the_published_rule(tokenizer: LlamaTokenizer) -> None:
    processor = tiny_llava_processor()
    processor.tokenizer = processor.qformer_tokenizer = tokenizer
    processor.image_token_id, processor.max_length = -200, None
    assert processor.tokens_per_image == PLACES
    pairs = [
        PreferencePair(
            str(number),
            (Message("user", (ImageBlock(), TextBlock(question))),),
            chosen,
            rejected,
            (tiny_image(number),),
        )
        for number, (question, chosen, rejected) in enumerate(CASES)
    ]
    batch = PreferenceCollator(processor, pairs)([{"index": i} for i in range(len(pairs))])
    branch, real = batch["branch"], batch["attention_mask"].bool()
    for row, (question, *answers) in enumerate(CASES):
        for side, answer in zip((CHOSEN, REJECTED), answers, strict=True):
            ids, labels = published(tokenizer, question, answer)
            here = real[row] & ((branch == PROMPT) | (branch == side))
            assert batch["input_ids"][row][here].tolist() == ids
            scored = batch["scored_answers"] == row + (side == REJECTED) * len(CASES)
            assert batch["scored_targets"][scored].tolist() == labels
            positions = batch["position_ids"][row][here]
            assert torch.equal(positions, torch.arange(len(ids)))
