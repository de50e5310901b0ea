"""The comparison over NLVR's boxes, and on a box drawn here."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from polyptych.methods.cheetah.discriminative import SourcePicture
from polyptych.reproduce.cheetah.main import main
from polyptych.reproduce.cheetah.nlvr_boxes import (
    GROUND,
    RGB,
    BoxEditor,
    BoxEdits,
    BoxMasks,
    BoxTargets,
    Shape,
    Statements,
    caption_of,
)
from polyptych.reproduce.cheetah.nlvr_encoder import LOOKS, cell_labels, train_box_encoder
from polyptych.reproduce.cheetah.real import REAL_SETTINGS, BoxReadout, true_or_false
from polyptych.reproduce.cheetah.study import VARIANTS
from polyptych.reproduce.tables import all_tables
from polyptych.schema import IGNORE_INDEX, ImageRef

BOX = (Shape("square", "yellow", 20, 10, 70), Shape("square", "blue", 30, 60, 20))


def picture() -> Image.Image:
    pixels = np.full((100, 100, 3), GROUND, dtype=np.uint8)
    for shape in BOX:
        pixels[shape.y : shape.y + shape.size, shape.x : shape.x + shape.size] = RGB[shape.color]
    return Image.fromarray(pixels)


def test_a_caption_names_the_largest_first():
    assert caption_of(BOX) == "two shapes: a large blue square and a medium yellow square."
    assert caption_of(BOX[:1]) == "one shape: a medium yellow square."


@pytest.mark.parametrize("kind", ["delete", "modify"])
def test_an_edit_changes_one_shape_and_says_so(kind):
    image, source = picture(), SourcePicture("b", ImageRef(data=b""), "")
    found = BoxMasks({"b": BOX})(source, image)
    assert [region.mask.sum() for region in found.objects] == [400, 900]
    edit = BoxEdits({"b": BOX})(source, found.objects[0], kind, random.Random(0))
    after = np.asarray(BoxEditor()(image, edit, 0))
    changed = (after != np.asarray(image)).any(-1)
    assert (changed == found.objects[0].mask).all()
    wanted = GROUND if kind == "delete" else RGB[edit.change["new_color"]]
    assert (after[changed] == wanted).all()
    assert all("a medium yellow square" in text for text in BoxTargets()(edit))


def test_cells_are_asked_for_the_shape_over_their_middle():
    looks, sizes = cell_labels(BOX).reshape(2, 12, 12)
    assert looks[9, 2] == LOOKS.index(("square", "yellow")) and sizes[9, 2] == 1
    assert looks[3, 8] == LOOKS.index(("square", "blue")) and sizes[3, 8] == 2
    assert looks[0, 0] == 0 and sizes[0, 0] == IGNORE_INDEX


def test_a_box_with_one_shape_is_not_asked_for_the_looks_of_a_second():
    torch.manual_seed(0)
    readout, tokens = BoxReadout(3, 8), torch.randn(2, 3, 8, requires_grad=True)
    one = [{"kind": s.kind, "color": s.color, "size": s.size, "x": s.x, "y": s.y} for s in BOX[:1]]
    readout.loss(tokens, [one, one]).backward()
    for column, head in enumerate(readout.looks):
        asked = head.weight.grad is not None and bool(head.weight.grad.any())
        assert asked == (column <= 3)  # kind, color, size of the first; of the second: none there


def test_saying_both_words_is_wrong():
    assert true_or_false("True.", {"answer": "true"})
    assert not true_or_false("true or false", {"answer": "true"})
    assert not true_or_false("", {"answer": "true"})


@pytest.mark.shared_data
def test_the_whole_comparison_on_a_few_statements(shared_dir, tmp_path, monkeypatch):
    source = shared_dir / "data" / "nlvr"
    if not source.exists():
        pytest.skip(f"no NLVR in {shared_dir}")
    few = tmp_path / "few" / "nlvr"
    few.mkdir(parents=True)
    (few / "images").symlink_to(source / "images")
    for name, count in (("dev", 40), ("test", 4)):
        lines = (source / f"{name}.jsonl").read_text().splitlines()[:count]
        (few / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(
        "polyptych.reproduce.cheetah.main.train_box_encoder", partial(train_box_encoder, steps=2)
    )
    settings = replace(
        REAL_SETTINGS,
        seeing_steps=2,
        base_steps=2,
        base_batch=2,
        steps=1,
        seeds=(0,),
        edited_per_step=1,
        captions_per_step=1,
    )
    results = main(tmp_path / "out", real=few.parent, settings=settings, workers=1)
    content = json.loads(results.read_text())
    assert [run["variant"] for run in content["runs"]] == sorted(VARIANTS)
    record = content["runs"][0]["tasks"]["statements"]
    assert record["examples"] == 4 and record["controls"].keys() == {
        "shuffled_pictures",
        "no_pictures",
    }
    assert "cheetah-real" in all_tables(results.parent)
    train, held_out = (Statements(few, split).lines for split in ("train", "validation"))
    assert len(train) + len(held_out) == 40
    assert not {e["directory"] for e in train} & {e["directory"] for e in held_out}
