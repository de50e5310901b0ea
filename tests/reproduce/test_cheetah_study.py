"""The Cheetah study's promises: what captions say, fair variants, and runs that can be taken up."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from polyptych.data.collation import Collator
from polyptych.data.records import read_records
from polyptych.reproduce.answers import feature_cache
from polyptych.reproduce.base import hinted_tokens
from polyptych.reproduce.cheetah.backbone import fresh_backbone
from polyptych.reproduce.cheetah.detail_questions import detail_correct, make_detail_question
from polyptych.reproduce.cheetah.main import grid, main, main_runs, sweeps
from polyptych.reproduce.cheetah.salience import (
    ThingHints,
    by_size,
    captions_for,
    make_caption,
    named_things,
)
from polyptych.reproduce.cheetah.sets import asks_for_named
from polyptych.reproduce.cheetah.study import (
    VARIANTS,
    CheetahSettings,
    CheetahWorkshop,
    Placement,
)
from polyptych.reproduce.runs import best_rates, execute
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.tables import all_tables
from polyptych.reproduce.workshop import Run
from polyptych.storybook.graph import ThingSpec, find_things, scene_from_json
from polyptych.storybook.scenes import Scene, Thing, scene_to_json
from polyptych.storybook.vocabulary import COLORS, KINDS, PERSON
from polyptych.training.data import TrainingData

TINY = CheetahSettings(
    captions=70,
    changes=8,
    details=8,
    requestioned=12,
    recaptioned=6,
    edited=8,
    validation=2,
    test=4,
    seeing_steps=2,
    base_steps=2,
    base_batch=2,
    steps=2,
    grid_steps=1,
    edited_per_step=2,
    captions_per_step=3,
    seeds=(0, 1),
    layers=(1,),
    shares=(0.5,),
    learning_rates=(1e-3, 3e-3),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("cheetah")
    results = main(root, settings=TINY, workers=1)
    return CheetahWorkshop(root, TINY, ENCODER), results


# --- What captions say, and what is asked ---------------------------------------------------------


def test_a_caption_names_place_and_the_two_largest_things():
    things = (
        Thing("cup", "red", "small", 0.2, 0.8),
        Thing("bus", "blue", "large", 0.5, 0.7),
        Thing("cat", "pink", "medium", 0.8, 0.8),
    )
    scene = Scene("beach", things)
    assert named_things(scene) == [1, 2]
    captions = captions_for(scene)
    assert "we see a blue bus and a pink cat on the beach." in captions
    assert not any("cup" in caption for caption in captions)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_detail_questions_have_one_answer_that_the_picture_shows(split):
    seen = Counter()
    for index in range(60):
        story = make_detail_question(random.Random(f"{split}{index}"), split)
        truth = story.metadata
        asked = story.messages[0].text
        scene = story.scenes[int(asked.rstrip("? doing")[-1]) - 1]
        assert detail_correct(story.target, truth)
        seen[truth["question"], truth["named"]] += 1
        answer = story.target.rstrip(".").split()[-1]
        if truth["question"] == "act":
            assert [t.act for t in scene.things if t.act] == [answer] and not truth["named"]
            continue
        spec = ThingSpec(color=answer) if truth["question"] == "color" else ThingSpec(kind=answer)
        word = asked.split(" thing in picture")[0].split()[-1]
        if truth["question"] == "color":
            spec = ThingSpec(kind=asked.split(" in picture")[0].split()[-1])
        else:
            spec = ThingSpec(color=word)
        (found,) = find_things(scene, spec)  # the question is about one thing only
        assert answer in (scene.things[found].kind, scene.things[found].color)
        assert (found in named_things(scene)) == truth["named"]
    assert len(seen) == 5 and min(seen.values()) >= 3


def test_an_answer_with_a_second_color_is_wrong():
    truth = {"question": "color", "answer": "red"}
    assert detail_correct("Red.", truth) and detail_correct("it is red", truth)
    assert not detail_correct("red and blue.", truth)
    assert not detail_correct("", truth)


# --- Fair variants --------------------------------------------------------------------------------


def test_all_variants_start_as_the_backbone_with_equally_many_parameters(finished):
    shop, _ = finished
    sizes = set()
    for variant in VARIANTS:
        model, processor = shop.build(Run(variant, 1, 1e-3, 2, Placement(), "main"))
        sizes.add(sum(p.numel() for p in model.parameters()))
        learning = {name for name, p in model.named_parameters() if p.requires_grad}
        assert learning and all(name.startswith("vpgc.") for name in learning)
    examples = list(read_records(shop.data["detail_questions-test"]))
    batch = Collator(processor, training=False, features=feature_cache(shop, model, processor))(
        examples
    )
    with torch.inference_mode():
        ours = model(**batch).logits
        with model.vpgc_disabled():
            torch.testing.assert_close(ours, model(**batch).logits, atol=0, rtol=0)
    assert len(sizes) == 1


def test_every_step_holds_the_same_number_of_examples_in_exact_shares(finished):
    shop, _ = finished
    for variant, edited in (("captions", 0), ("random", 2), ("discriminative", 2)):
        recipe = shop.recipe(Run(variant, 0, 1e-3, 3, Placement(), "main"))
        assert recipe.global_batch_size == 5
        order = TrainingData(recipe).train
        for step in range(3):
            part = [order[index] for index in range(5 * step, 5 * step + 5)]
            pairs = [example for example in part if len(example.images) == 2]
            assert len(part) == 5 and len(pairs) == edited


def test_a_smaller_share_takes_the_first_of_the_edited_pictures(finished):
    shop, _ = finished
    whole = shop.recipe(Run("discriminative", 0, 1e-3, 3, Placement(), "main")).data.train[0]
    half = shop.recipe(Run("discriminative", 0, 1e-3, 3, Placement(3, 0.5), "sweep")).data.train[0]
    assert half.path == whole.path and 0 < half.limit == round(whole.limit / 2)


def test_test_sets_are_read_by_no_run_that_chooses(finished):
    _, results = finished
    for run in json.loads(results.read_text())["runs"]:
        expected = TINY.validation if run["purpose"] == "grid" else TINY.test
        assert run["tasks"]["change_captioning"]["examples"] == expected


# --- Runs -----------------------------------------------------------------------------------------


def test_every_run_is_recorded_and_compared(finished):
    shop, results = finished
    content = json.loads(results.read_text())
    counts = Counter(run["purpose"] for run in content["runs"])
    assert counts == {"grid": 3 * 2, "main": 4 * 2, "sweep": 2 + 1}
    assert set(best_rates(shop, results)) == set(VARIANTS[1:])
    row = content["summary"]["k3"]["detail_questions"]["unnamed_accuracy[detail]"]
    assert {"gain", "paired_bootstrap"} <= row["discriminative"].keys()
    assert row["discriminative"]["over"].keys() == {"captions", "random"}
    run = next(r for r in content["runs"] if r["purpose"] == "main")
    parts = run["tasks"]["change_captioning"]["by_salience"].values()
    assert sum(part["count"] for part in parts) == TINY.test


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    shop, results = finished
    monkeypatch.setattr("polyptych.reproduce.runs.train", lambda *_, **__: pytest.fail("trained"))
    rates = best_rates(shop, results)
    for run in main_runs(TINY, rates):
        assert execute(shop, run)["name"] == run.name


def test_runs_of_a_study_have_folders_of_their_own():
    rates = dict.fromkeys(VARIANTS, 1e-3)
    settings = replace(TINY, learning_rates=(1e-3, 2e-3))
    runs = [*grid(settings), *main_runs(settings, rates), *sweeps(settings, rates)]
    assert len({run.name for run in runs}) == len(runs)


def test_tables_of_all_parts(finished):
    _, results = finished
    tables = all_tables(results.parent)
    assert "| k1 | detail questions |" in tables["cheetah-layers"]
    assert "| k3d0.5 |" in tables["cheetah-shares"]
    assert "discriminative over captions" in tables["cheetah-main"]
    assert tables["cheetah-detail-by_salience"].count("\n") == 4


def test_the_changed_thing_is_looked_up_where_it_is(finished):
    shop, _ = finished
    for example in read_records(shop.data["change_captioning-test"]):
        change, scenes = example.metadata["change"], example.metadata["scenes"]
        added = change["type"] == "add"
        scene = scene_from_json(scenes[added])
        names = ("new_kind", "new_color") if added else ("kind", "color")
        caption = captions_for(scene)[0]
        thing = f"{change[names[1]]} {change[names[0]]}"
        assert (thing in caption) == asks_for_named(example)


# --- A Q-Former that can be asked ---------------------------------------------------------------


def test_a_hint_means_one_thing_of_its_picture():
    hints, rng = ThingHints(16), random.Random(0)
    scenes = [make_caption(random.Random(n), "train").scenes[0] for n in range(60)]
    truths = [scene_to_json(scene) for scene in scenes]
    hints.ways.weight.data.copy_(torch.arange(len(hints.ways.weight))[:, None].expand(-1, 16))
    drawn, wanted = hints.draw(truths, rng)
    kinds, ways = (PERSON, *KINDS), drawn[:, 0].int().tolist()
    met = set()
    for scene, way, thing in zip(scenes, ways, wanted, strict=True):
        if way < 8:
            fitting = [scene.things[by_size(scene)[way]]]
        elif way < 8 + len(kinds):
            fitting = [t for t in scene.things if t.kind == kinds[way - 8]]
        else:
            fitting = [t for t in scene.things if t.color == list(COLORS)[way - 8 - len(kinds)]]
        assert fitting == [thing]
        met.add((way >= 8) + (way >= 8 + len(kinds)))
    assert met == {0, 1, 2}


def test_without_a_hint_the_tokens_are_the_usual_ones(tmp_path):
    shop = CheetahWorkshop(tmp_path, TINY, ENCODER)
    model, _ = fresh_backbone(shop, 0)
    width = model.connector.qformer.query_tokens.shape[-1]
    seen = torch.randn(2, 144, model.config.vision_config.hidden_sizes[-1])
    counts = torch.ones(2, dtype=torch.long)
    with torch.no_grad():
        usual = model.encode_images(image_features=seen, image_counts=counts).visual_tokens
        told = hinted_tokens(model, seen, torch.zeros(2, width))
        other = hinted_tokens(model, seen, torch.randn(2, width))
    torch.testing.assert_close(told.flatten(0, 1), usual)
    assert (other - told).abs().max() > 1e-3
