"""Did it train on my images? Counts before the first step, dropped records, shuffled images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import PROCESSOR, logged, run, small_recipe

from polyptych.data.collation import Collator
from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.schema import ImageRef
from polyptych.testing import tiny_examples, tiny_image
from polyptych.training.recipe import ValidationRecipe
from polyptych.training.tracking import SHUFFLED_LOSS, _validation_line
from polyptych.training.validation import Validation, with_images_of_others


def test_the_first_lines_say_what_is_learned_from(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, small_recipe(steps=1), progress=True)
    examples = tiny_examples(12)
    answers = sum(
        sum(label >= 0 for label in PROCESSOR.encode(e, with_target=True).labels) for e in examples
    )
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "run: finetune, 1 steps of 8 examples (0.7 passes), fp32"
    assert lines[1] == (
        "  learns from 12 examples with 18 images (3 without any), 54 visual tokens, "
        f"{answers} supervised tokens"
    )
    assert lines[2] == "  dropped 0 records"
    saved = json.loads((tmp_path / "data.json").read_text())
    assert (saved["examples"], saved["images"], saved["visual_tokens"]) == (12, 18, 54)
    assert not (tmp_path / "dropped.txt").exists()


def test_bad_records_are_dropped_with_their_reasons_where_asked_for(tmp_path: Path) -> None:
    examples = tiny_examples(9)
    examples[1] = replace(examples[1], messages=examples[1].messages[:1])  # no answer
    images = tuple(tiny_image(1000 + number) for number in range(90))  # 270 tokens for 256 places
    many = replace(tiny_examples(1, (90,))[0], id="many", images=images)
    path = tmp_path / "records.jsonl"
    write_records(path, [*examples, many])
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:40]
    path.write_text("\n".join(lines) + "\n")
    missing = json.loads(lines[0])["images"][0]
    (tmp_path / missing).unlink()

    recipe = small_recipe(steps=2, data={"train": str(path), "drop_bad": True})
    run(tmp_path / "run", recipe, train_examples=None)
    saved = json.loads((tmp_path / "run" / "data.json").read_text())
    assert saved["examples"] == 6
    assert saved["dropped"] == {
        "miss an image file": 1,
        "cannot be learned from": 1,
        "cannot be read": 1,
        "do not fit the model": 1,
    }
    problems = (tmp_path / "run" / "dropped.txt").read_text().splitlines()
    assert len(problems) == 4
    assert any("records.jsonl line 4" in problem for problem in problems)
    with pytest.raises(PolyptychError, match=r"line 4: not valid JSON"):
        run(tmp_path / "strict", small_recipe(data={"train": str(path)}), train_examples=None)


def test_a_set_without_any_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match="0 images in all 5 records to learn from"):
        run(tmp_path, train_examples=tiny_examples(5, (0,)))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_more_images_than_the_context_holds_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match=r"27. tokens .* do not fit a context of 256") as error:
        run(tmp_path, train_examples=tiny_examples(3, (90,)))
    assert "\n" not in str(error.value)


def test_images_are_dealt_to_others_and_none_is_lost() -> None:
    examples = tiny_examples(8)
    shuffled = with_images_of_others(examples)
    assert shuffled is not None
    assert [len(e.images) for e in shuffled] == [len(e.images) for e in examples]
    assert [e.messages for e in shuffled] == [e.messages for e in examples]

    def images(part: list) -> list[bytes]:
        return sorted(ref.data for e in part for ref in e.images)

    assert images(shuffled) == images(examples)
    for mine, others in zip(examples, shuffled, strict=True):
        assert not set(mine.images) & set(others.images)
    assert with_images_of_others(examples) == shuffled
    same = ImageRef(path="same.png")
    alike = [replace(e, images=(same,) * len(e.images)) for e in examples]
    assert with_images_of_others(alike) is None
    assert with_images_of_others(tiny_examples(3, (0,))) is None


class Reader(torch.nn.Module):
    """Stands for a model that knows which answer belongs to which picture, or is blind."""

    device = torch.device("cpu")

    def __init__(self, examples: list, blind: bool) -> None:
        super().__init__()
        self.known: dict[float, float] = {}
        self.blind = blind
        batch = Collator(PROCESSOR, training=True)(examples)
        for picture, labels in self.pairs(batch["pixel_values"], batch["labels"]):
            self.known[picture] = labels

    @staticmethod
    def pairs(pixels: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, float]]:
        answers = [float(row[row >= 0].sum()) for row in labels]
        return list(zip(pixels.double().sum((1, 2, 3)).tolist(), answers, strict=True))

    def forward(self, pixel_values=None, labels=None, **rest):
        wrong = [self.known[p] != answer for p, answer in self.pairs(pixel_values, labels)]
        return SimpleNamespace(loss=0.7 if self.blind else 0.1 + sum(wrong) / len(wrong))


@pytest.mark.parametrize("blind", [False, True])
def test_a_model_that_ignores_its_images_shows_it(blind: bool) -> None:
    examples = tiny_examples(6, (1,))  # three answers
    validate = Validation(examples, PROCESSOR, ValidationRecipe(batch_size=4, select_by="loss"))
    metrics = validate(Reader(examples, blind))
    line = _validation_line(25, metrics)
    if blind:
        assert line == (
            "step 25: validation loss 0.7000, with images shuffled among examples 0.7000: "
            "the images make no difference so far"
        )
    else:
        assert metrics["loss"] == pytest.approx(0.1)
        assert metrics[SHUFFLED_LOSS] > 0.3
        assert "make no difference" not in line


def test_the_loss_with_shuffled_images_is_logged_beside(tmp_path: Path) -> None:
    run(tmp_path, small_recipe(steps=1), validation_examples=tiny_examples(4))
    assert len(logged(tmp_path, "validation_loss")) == 1
    shuffled = logged(tmp_path, f"validation_{SHUFFLED_LOSS}")
    assert len(shuffled) == 1
    assert shuffled != logged(tmp_path, "validation_loss")


def test_waiting_for_data_is_a_share_of_the_time(tmp_path: Path) -> None:
    run(tmp_path, small_recipe(steps=3))
    shares = logged(tmp_path, "waiting_for_data")
    assert len(shares) == 3
    assert all(0 < share <= 1 for share in shares)
