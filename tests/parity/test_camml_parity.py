"""CaMML against the golden data of its published code."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil, LlamaTokenizer

from polyptych.data.collation import Collator
from polyptych.data.conversation import shot_text
from polyptych.data.readers.llava import parse_llava
from polyptych.data.tokenization import TokenizationSettings, encode_example
from polyptych.errors import PolyptychError
from polyptych.methods.camml.conversion import convert_checkpoint, convert_released, to_released
from polyptych.methods.camml.parity import read_golden, run
from polyptych.models.llava_conversion import pad_to_square
from polyptych.models.processor import PolyptychProcessor
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

CASES = ("a", "b")

# Fused attention and one batch over all shots sum in another order than the published code.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden" / "camml"


@pytest.mark.shared_data
@pytest.mark.parametrize("case", CASES)
def test_every_golden_tensor_is_met(golden_dir: Path, tmp_path: Path, case: str) -> None:
    report = run(golden_dir, case, dump_to=tmp_path / "ours.safetensors", tolerance=TOLERANCE)
    assert report.passed, str(report)
    outputs = load_file(golden_dir / case / "outputs.safetensors")
    assert {comparison.name for comparison in report.compared} == outputs.keys()
    assert load_file(tmp_path / "ours.safetensors").keys() >= outputs.keys()


@pytest.mark.shared_data
def test_a_changed_weight_is_noticed(golden_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(golden_dir / "b", tmp_path / "b", copy_function=shutil.copyfile)
    (tmp_path / "b").chmod(0o755)
    file = tmp_path / "b" / "state_dict.safetensors"
    weights = load_file(file)
    weights["context_proj_text.bias"][3] += 0.5
    file.unlink()
    save_file(weights, file)
    failed = {c.name for c in run(tmp_path, "b").comparisons if not c.ok}
    assert {"stage.context_proj_text", "img_txt.logits", "single1.loss"} <= failed
    assert not failed & {"stage.context_proj_vision", "stage.language_perceiver.call2"}


@pytest.mark.shared_data
def test_an_unknown_case_is_refused(golden_dir: Path) -> None:
    with pytest.raises(PolyptychError, match="no golden case 'z' of CaMML here"):
        run(golden_dir, "z")


@pytest.mark.shared_data
def test_fixed_gives_each_example_what_it_gets_alone(golden_dir: Path) -> None:
    """The golden batch leaks pads; with ``fixed`` it equals the golden single runs."""
    golden = read_golden(golden_dir, "b")
    batch = golden.batch("img_txt")
    with torch.no_grad():
        golden.model.config.behavior = "fixed"
        found = golden.model(**batch, return_intermediates=True).intermediates["context_tokens"]
    for row in range(2):
        alone = golden.values[f"single{row}.context_tokens"][0]
        torch.testing.assert_close(found[row], alone, atol=TOLERANCE, rtol=0)
    together = torch.cat(
        [golden.values[f"stage.context_proj_{kind}"] for kind in ("vision", "text")], dim=1
    )
    assert (found - together).abs().max() > 1e-2


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.parametrize("case", CASES)
def test_weights_go_there_and_back(golden_dir: Path, case: str) -> None:
    published = load_file(golden_dir / case / "state_dict.safetensors")
    back = to_released(convert_released(published))
    dead = {
        name
        for name in published
        if name.endswith(("position_ids", "inv_freq")) or ".cls.predictions." in name
    }
    assert back.keys() == published.keys() - dead
    assert all(torch.equal(back[name], published[name]) for name in back)


@pytest.mark.shared_data
@pytest.mark.parametrize("case", CASES)
def test_a_converted_folder_gives_the_golden_logits(
    golden_dir: Path, tmp_path: Path, case: str
) -> None:
    golden = read_golden(golden_dir, case)
    weights = golden_dir / case / "state_dict.safetensors"
    convert_checkpoint(tmp_path / "camml", parts=[weights], config=golden.model.config)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "camml").eval()
    assert model.config.behavior == "released"
    with torch.no_grad():
        logits = model(**golden.single(1)).logits
    torch.testing.assert_close(logits, golden.values["single1.logits"], atol=TOLERANCE, rtol=0)


# --- rows ----------------------------------------------------------------------------------------

RECIPES = (("train_camml", "released_instruction"), ("train_camml_sqa", "released_science"))
MARK, PLACE = -200, -201
"""The published placeholder, and ours for the context."""


def examples_of(recipe: dict) -> list[tuple[dict, Example]]:
    """Golden items whose first turn is a question, with their shots as examples."""
    pairs = []
    for item in recipe["items"]:
        sample = item["sample"]
        if sample["conversations"][0]["from"] != "human":
            continue  # the published code drops such a turn together with its placeholder
        example = parse_llava(sample, "", "")
        shots = tuple(
            Example(f"shot {n}", (Message("user", (TextBlock(text),)),), (ImageRef(f"r{n}.png"),))
            for n, text in enumerate(item["context"])
        )
        pairs.append((item, Example(example.id, example.messages, example.images, shots=shots)))
    return pairs


@pytest.mark.shared_data
@pytest.mark.parametrize(("recipe", "context"), RECIPES)
def test_rows_equal_the_published_ones(golden_dir: Path, recipe: str, context: str) -> None:
    """Token ids and labels of both recipes, from the raw samples, text-only questions too."""
    golden = json.loads((golden_dir / "data" / "samples.json").read_text("utf-8"))
    tokenizer = LlamaTokenizer.from_pretrained(golden_dir / "data", legacy=True)
    pairs = examples_of(golden[recipe])
    assert len(pairs) == 3
    for item, example in pairs:
        row = encode_example(
            example,
            tokenizer=tokenizer,
            qformer_tokenizer=tokenizer,
            image_token_id=MARK,
            context_token_id=PLACE,
            settings=TokenizationSettings(
                tokens_per_image=1,
                template="vicuna_v1",
                context_tokens=1,
                context_template=context,
            ),
            with_target=True,
        )
        assert [MARK if token == PLACE else token for token in row.input_ids] == item["input_ids"]
        assert row.labels == item["labels"]
        assert row.input_ids.count(PLACE) == 1
        assert row.input_ids.index(PLACE) == item["input_ids"].index(MARK)  # before the image
        words = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in item["context"]]
        assert row.shots == tuple([tokenizer.bos_token_id, *ids] for ids in words)


@pytest.mark.shared_data
def test_a_batch_equals_the_published_one(golden_dir: Path) -> None:
    """Rows, labels, mask, and the pixels of questions and shots."""
    folder = golden_dir / "data"
    golden = load_file(folder / "collated.safetensors")
    recipe = json.loads((folder / "samples.json").read_text("utf-8"))["train_camml"]
    clip = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = PolyptychProcessor(
        pad_to_square(clip),
        LlamaTokenizer.from_pretrained(folder, legacy=True, pad_token="<unk>"),
        image_token_id=MARK,
        tokens_per_image=1,
        template="vicuna_v1",
        context_tokens=1,
        context_token_id=PLACE,
        context_template="released_instruction",
    )
    examples = [here(example, folder) for _, example in examples_of(recipe)]
    batch: Any = Collator(processor, training=True)(examples)
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == PLACE, MARK)
    assert torch.equal(ids, golden["input_ids"])
    assert torch.equal(batch["labels"], golden["labels"])
    assert torch.equal(batch["attention_mask"], golden["attention_mask"])
    assert batch["image_counts"].tolist() == [1, 1, 0]
    assert batch["shot_counts"].tolist() == [3, 3, 3]
    # A question without an image has none here, and zeros in the release.
    torch.testing.assert_close(batch["pixel_values"], golden["images"][:2], atol=1e-6, rtol=0)
    assert not golden["images"][2].any()
    shots = batch["shot_pixel_values"].unflatten(0, (3, 3))
    torch.testing.assert_close(shots[0], golden["images_ret.0"], atol=1e-6, rtol=0)
    assert torch.equal(shots[0], shots[1]) and torch.equal(shots[0], shots[2])


def here(example: Example, folder: Path) -> Example:
    """The example with its images where they are; its shots are rows 2, 0 and 1 of the index."""

    def placed(path: str) -> tuple[ImageRef, ...]:
        return (ImageRef(path=str(folder / path)),)

    shots = tuple(
        replace(shot, messages=with_image(shot.messages), images=placed(f"r{row}.png"))
        for shot, row in zip(example.shots, (2, 0, 1), strict=True)
    )
    images = placed("q.png") if example.images else ()
    return replace(example, images=images, shots=shots)


def with_image(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A shot whose image is told of, too."""
    return (replace(messages[0], content=(ImageBlock(), *messages[0].content)), *messages[1:])


def test_shots_become_one_text() -> None:
    turns = [
        Message("user", (TextBlock(" Why? "),)),
        Message("assistant", (TextBlock("So."),)),
        Message("user", (TextBlock("And?"),)),
    ]
    assert shot_text(turns, "released_instruction") == "Why?So.And?"
    assert shot_text(turns, "instruction") == "Why?\nSo.\nAnd?"
