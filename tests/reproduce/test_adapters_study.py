"""The study of adapters: equal variants that start as their base, and every stage at toy size."""

from __future__ import annotations

import json

import pytest
import torch

from polyptych.data.records import read_records
from polyptych.errors import PolyptychError
from polyptych.reproduce.adapters.main import grid, main, runs
from polyptych.reproduce.adapters.study import (
    VARIANTS,
    AdaptersSettings,
    AdaptersWorkshop,
    SmallBase,
)
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.tables import all_tables

TOY = AdaptersSettings(
    train=4,
    singles=4,
    validation=2,
    test=2,
    regrouped=4,
    renamed=1,
    seeing_steps=1,
    base_steps=1,
    base_batch_size=2,
    steps=1,
    batch_size=2,
    learning_rates=(1e-3,),
    seeds=(0,),
    bases=(SmallBase("llava", 2), SmallBase("qwen2_vl", 2)),
    sweep=(),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    results = main(root, settings=TOY, workers=1)
    return AdaptersWorkshop(root, TOY, ENCODER), results


def test_every_variant_is_tried_on_every_base(finished):
    _, path = finished
    results = json.loads(path.read_text())
    tried = {(run["condition"]["family"], run["variant"]) for run in results["runs"]}
    assert tried == {(base.family, v) for base in TOY.bases for v in VARIANTS}
    for run in results["runs"]:
        assert run["tasks"].keys() == {"group_captioning", "storytelling"}
    gains = results["summary"]["llava4"]["group_captioning"]["cider[coco]"]
    assert gains.keys() == set(VARIANTS)
    tables = all_tables(path.parent)
    assert {"adapters-llava4", "adapters-qwen2_vl4", "adapters-budgets"} <= tables.keys()
    assert "both over sam" in tables["adapters-llava4"]


@pytest.mark.parametrize("base", TOY.bases, ids=lambda base: base.name)
def test_variants_are_of_one_size_and_start_as_their_base(finished, base):
    shop, path = finished
    sizes = {
        run["added_parameters"]
        for run in json.loads(path.read_text())["runs"]
        if run["condition"]["family"] == base.family
    }
    assert len(sizes) == 1
    examples = list(read_records(shop.data["group_captioning-test"]))
    logits = []
    for run in runs(TOY, dict.fromkeys(VARIANTS, 1e-3), (base,), (0,), "main"):
        model, processor = shop.build(run)
        batch = processor.collate(examples, training=True)
        per_image = (batch["input_ids"] == processor.image_token_id).sum() / batch[
            "image_counts"
        ].sum()
        assert per_image == base.grid**2
        with torch.no_grad():
            logits.append(model(**batch).logits)
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def test_only_the_real_methods_look_at_other_images_and_at_the_question(finished):
    shop, _ = finished
    (one, *_) = read_records(shop.data["group_captioning-test"])
    seen = {}
    for run in runs(TOY, dict.fromkeys(VARIANTS, 1e-3), TOY.bases[:1], (0,), "main"):
        model, processor = shop.build(run)
        found = {}
        for name, module in model.seams.modules.items():
            for weight in module.parameters():
                torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(5))
            module.register_forward_hook(
                lambda m, args, out, name=name, found=found: found.setdefault(name, []).append(out)
            )
        batch = processor.collate([one], training=True)
        other = {**batch, "pixel_values": batch["pixel_values"].clone()}
        other["pixel_values"][-1] += 1.0  # another last picture
        asked = {**batch, "input_ids": batch["input_ids"].clone()}
        asked["input_ids"][0, batch["last_prompt"][0]] += 1  # another question
        with torch.no_grad():
            for changed in (batch, other, asked):
                model(**changed)
        first = TOY.bases[0].grid ** 2  # tokens of the first picture
        guidance, looks = found["sam"], found["vpgc"]
        seen[run.variant] = (
            not torch.equal(guidance[0][:first], guidance[1][:first]),
            not torch.equal(looks[0], looks[2]),
        )
    assert seen == {
        "plain": (False, False),
        "sam": (True, False),
        "vpgc": (False, True),
        "both": (True, True),
    }


def test_finished_runs_are_not_repeated(finished):
    shop, path = finished
    before = path.read_text()
    assert main(shop.root, settings=TOY, workers=1) == path
    assert path.read_text() == before


def test_the_published_study_says_what_it_does():
    settings = AdaptersSettings()
    assert len(settings.seeds) == 5 and {base.family for base in settings.bases} == {
        "llava",
        "qwen2_vl",
    }
    assert len(grid(settings)) == len(settings.learning_rates) * len(VARIANTS)
    assert settings.quick().sweep == ()


def test_real_data_are_refused(tmp_path):
    with pytest.raises(PolyptychError, match="drawn pictures only"):
        main(tmp_path, real=tmp_path)
