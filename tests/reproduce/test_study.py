"""The study's promises: equal functions and sizes at the start, and a run that can be taken up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from polyptych.data.records import read_records
from polyptych.reproduce.base import FACTS, facts_of
from polyptych.reproduce.encoder import ATTRIBUTES, PICTURE_SIZE, patch_labels
from polyptych.reproduce.runs import best_rates
from polyptych.reproduce.sam.main import main
from polyptych.reproduce.sam.study import Budget, SamWorkshop, StudySettings, Sweep, fresh_base
from polyptych.reproduce.sam.variants import VARIANTS, build_variant, connector_size
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.summary import mean_interval
from polyptych.reproduce.tables import all_tables, fill
from polyptych.schema import IGNORE_INDEX
from polyptych.storybook.scenes import Scene, Thing

TINY = StudySettings(
    train=8,
    singles=64,
    validation=2,
    test=4,
    regrouped=4,
    renamed=1,
    base_batch_size=4,
    seeing_steps=2,
    base_steps=2,
    steps=2,
    grid_steps=1,
    batch_size=4,
    seeds=(0, 1),
    sweep=(Sweep(Budget(1, 12)),),
    sweep_steps=2,
    learning_rates=(1e-4, 1e-3),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    results = main(root, settings=TINY, workers=1)
    return root, results


def test_variants_start_as_one_function_of_one_size(finished):
    root, _ = finished
    shop = SamWorkshop(root, TINY, ENCODER)
    base = fresh_base(shop, TINY.budget)[0].eval()
    features = torch.randn(5, 144, 128)
    counts = torch.tensor([3, 2])
    with torch.inference_mode():
        expected = base.encode_images(image_features=features, image_counts=counts).visual_tokens
        sizes = []
        for variant in VARIANTS:
            model = build_variant(base, variant, seed=3).eval()
            tokens = model.encode_images(image_features=features, image_counts=counts).visual_tokens
            torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=0)
            sizes.append(connector_size(model))
    assert min(sizes) >= connector_size(build_variant(base, "paper", seed=3))
    assert max(sizes) / min(sizes) < 1.001


def test_every_run_is_recorded_with_every_metric(finished):
    root, results = finished
    content = json.loads(results.read_text())
    assert len(content["runs"]) == 3 * 2 + 3 * 2 + 3  # grid, main, the other budget
    assert set(best_rates(SamWorkshop(root, TINY, ENCODER), results)) == set(VARIANTS)
    for run in content["runs"]:
        if run["purpose"] == "main":
            group = run["tasks"]["group_captioning"]
            assert group["examples"] == 4 and "factor_accuracy[storybook]" in group
            assert sum(part["count"] for part in group["by_pictures"].values()) == 4
    gain = content["summary"][TINY.budget.name]["storytelling"]["cider[coco]"]["paper"]
    assert {"mean", "gain", "paired_bootstrap"} <= gain.keys()


def test_a_second_start_runs_nothing_again(finished, monkeypatch):
    root, results = finished
    before = results.read_text()
    monkeypatch.setattr("polyptych.reproduce.runs.train", lambda *_, **__: pytest.fail("trained"))
    main(root, settings=TINY, workers=1)
    assert json.loads(results.read_text()) == json.loads(before)


def test_tables_are_filled_between_markers(finished, tmp_path):
    _, results = finished
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: sam-main -->\nold\n<!-- end -->\nb\n<!-- table: none -->\n")
    assert fill(page, all_tables(results.parent)) == 1
    text = page.read_text()
    assert "old" not in text and "| storytelling | `cider[coco]` |" in text
    assert text.startswith("a\n") and text.endswith("b\n<!-- table: none -->\n")


def test_run_folders_tell_all_settings_apart(finished):
    root, _ = finished
    from polyptych.reproduce.workshop import Run

    shop, first = SamWorkshop(root, TINY, ENCODER), Run("paper", 0, 1e-3, 5, Budget(), "main")
    changes = [
        {"variant": "released"},
        {"seed": 1},
        {"learning_rate": 2e-3},
        {"learning_rate": 1.5e-3},
        {"steps": 6},
        {"condition": Budget(1)},
        {"condition": Budget(2, 12)},
    ]
    folders = {shop.run_folder(replace(first, **change)) for change in [{}, *changes]}
    assert len(folders) == len(changes) + 1


def test_facts_of_drawn_scenes_are_columns(finished):
    root, _ = finished
    shop = SamWorkshop(root, TINY, ENCODER)
    from polyptych.storybook.scenes import scene_from_json

    for example in read_records(shop.data["description-train"]):
        scene = scene_from_json(example.metadata["scenes"][0])
        columns = facts_of(scene)
        assert FACTS["place", scene.place] in columns
        objects = {thing.kind for thing in scene.things if thing.person is None}
        assert {FACTS["kind", kind] for kind in objects} <= set(columns)


def test_patch_labels_by_hand():
    scene = Scene("beach", (Thing("cat", "red", "large", 0.5, 0.5),))
    owner = np.full((PICTURE_SIZE, PICTURE_SIZE), -1)
    owner[:8, :8] = 0  # the first cell is all cat, the second one eighth of it
    owner[:8, 8:9] = 0
    labels = patch_labels(scene, owner)
    assert labels["kind"][0] == ATTRIBUTES["kind"].index("cat")
    assert labels["kind"][1] == 0 and labels["color"][1] == IGNORE_INDEX
    assert labels["color"][0] == ATTRIBUTES["color"].index("red")
    assert labels["hat"][0] == IGNORE_INDEX


def test_mean_interval_by_hand():
    """Mean 2, standard deviation 1, three seeds: 2 -+ 4.303 / sqrt(3)."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] == pytest.approx(2 + 4.303 / 3**0.5)
    assert np.isnan(mean_interval([1.0])["low"])
