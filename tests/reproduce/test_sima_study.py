"""The SIMA study: what the base learns from, every variant at toy size, and its tables."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from polyptych.data.images import image_hash
from polyptych.data.records import read_records
from polyptych.evaluation.scoring.chair import chair
from polyptych.methods.sima.truth import description_truth
from polyptych.reproduce.sima.main import GRID, grid, main, runs
from polyptych.reproduce.sima.sets import FINDER, FORMS
from polyptych.reproduce.sima.study import (
    CRITICS,
    REPEATED,
    VARIANTS,
    Rounds,
    SimaSettings,
    SimaWorkshop,
)
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.tables import all_tables
from polyptych.reproduce.workshop import Run

TOY = SimaSettings(
    descriptions=24,
    comparisons=8,
    prompts=16,
    validation=2,
    test=4,
    base_steps=1,
    base_batch=4,
    steps=1,
    batch_size=2,
    learning_rates=(1e-3,),
    variants=("base", "sima"),
    seeds=(0,),
    more_rounds=(Rounds(2),),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("sima")
    results = main(root, settings=TOY, workers=1)
    return SimaWorkshop(root, TOY, ENCODER), results


def test_every_variant_is_run_and_held_against_its_base(finished):
    _, path = finished
    results = json.loads(path.read_text())
    found = Counter((run["condition"]["iterations"], run["variant"]) for run in results["runs"])
    assert found == Counter((rounds, variant) for rounds in (1, 2) for variant in TOY.variants)
    for run in results["runs"]:
        assert run["tasks"]["description"]["examples"] == TOY.test
    rows = results["summary"]["i1"]["description"]["chair_i[fixed]"]
    assert "gain" in rows["sima"] and "gain" not in rows["base"]
    assert results["summary"]["i1"]["existence"].keys() >= {"accuracy[strict]", "f1[strict]"}


def test_the_loop_changes_the_model_and_a_second_iteration_goes_on_from_the_first(finished):
    shop, path = finished
    records = {run["name"]: run for run in json.loads(path.read_text())["runs"]}
    rates = dict.fromkeys(GRID, 1e-3)
    (first,) = [r for r in runs(TOY, rates, Rounds()) if r.variant == "sima"]
    (second,) = [r for r in runs(TOY, rates, Rounds(2), REPEATED) if r.variant == "sima"]
    assert shop.loop(first) == shop.loop(second)
    assert records[first.name]["critic"] == records[second.name]["critic"][:1]
    assert records[second.name]["finished"] == 2
    base, _ = shop.build(replace(first, variant="base"))
    model, _ = shop.build(first)
    assert changed_parts(model, base) == {"language_model"}


def changed_parts(model, base):
    """Parts whose weights differ."""
    own, other = model.state_dict(), base.state_dict()
    assert own.keys() == other.keys()
    return {name.partition(".")[0] for name in own if not own[name].equal(other[name])}


def test_supervised_fine_tuning_changes_what_the_loop_changes(finished):
    shop, _ = finished
    run = Run("sft", 0, 1e-3, 0, Rounds(), "main")
    model, processor = shop.build(run)
    base, _ = shop.build(replace(run, variant="base"))
    assert changed_parts(model, base) == {"language_model"}
    assert shop.measure(run, model, processor) == {}


def test_the_truth_as_a_critic_agrees_with_itself(finished):
    shop, _ = finished
    run = Run("truth", 0, 1e-3, 0, Rounds(), "main")
    model, processor = shop.build(run)
    (counts,) = shop.measure(run, model, processor)["critic"]
    assert counts["pairs"] and counts["critic_agrees_with_truth"]["share"] == 1.0


def test_variants_differ_from_the_loop_in_one_thing():
    shop = SimaWorkshop(Path("unused"), SimaSettings(), ENCODER)
    rounds = shop.settings.rounds
    loops = {
        v: shop.improvement(Run(v, 3, 1e-3, 0, rounds, "main"))
        for v in VARIANTS
        if v not in ("base", "sft")
    }
    sima = loops["sima"]
    for variant, loop in loops.items():
        assert loop.tuning == sima.tuning and loop.tuning.steps == SimaSettings().steps
        changed = [loop.sampling != sima.sampling, loop.critic != sima.critic]
        assert sum(changed) == (variant != "sima")
    assert set(CRITICS) <= set(loops)


def test_a_share_of_the_descriptions_is_wrong_and_no_prompt_is_known(finished):
    shop, _ = finished
    noisy = list(read_records(shop.data["noisy-train"]))
    wrong = [e for e in noisy if e.target not in e.references]
    assert 0.2 < len(wrong) / len(noisy) < 0.8
    assert all(description_truth(e.target, e.metadata) < 1 for e in wrong)
    prompts = list(read_records(shop.data["description-train"]))
    assert all(e.target in e.references for e in prompts)
    known = {image_hash(image) for e in noisy for image in e.images}
    assert not known & {image_hash(image) for e in prompts for image in e.images}


def test_chair_finds_no_hallucination_in_the_truth_and_questions_are_answered_truly(finished):
    shop, _ = finished
    described = {e.id: e for e in read_records(shop.data["description-test"])}
    for example in described.values():
        truth = FINDER.truth(example.metadata["objects"], example.references)
        assert truth == set(example.metadata["objects"])
        assert not chair(FINDER, example.target, truth).hallucinated
    asked = list(read_records(shop.data["existence-test"]))
    assert Counter(e.references[0] for e in asked) == {
        "yes": len(asked) // 2,
        "no": len(asked) // 2,
    }
    for question in asked:
        picture = described[question.id.rsplit("-", 2)[0]]
        (name,) = {m.name for m in FINDER.find(question.messages[0].text)[1]}
        assert (name in picture.metadata["objects"]) == (question.references == ("yes",))


def test_comparisons_come_in_every_form_of_the_critic(finished):
    shop, _ = finished
    asked = [e.messages[0].text for e in read_records(shop.data["comparisons-train"])]
    assert len(asked) == TOY.comparisons
    heads = Counter(form for text in asked for form in FORMS if text.startswith(form.fixed_text()))
    assert all(heads[form] >= TOY.comparisons // len(FORMS) for form in FORMS)


def test_a_critic_that_prefers_nothing_leaves_the_base_as_it_is(finished, monkeypatch):
    shop, _ = finished
    monkeypatch.setattr(
        "polyptych.methods.sima.controls.random.Random.uniform", lambda self, low, high: 0.0
    )
    run = Run("random", 0, 1e-3, 0, Rounds(), "main")
    model, processor = shop.build(run)
    base, _ = shop.build(replace(run, variant="base"))
    assert changed_parts(model, base) == set()
    found = shop.measure(run, model, processor)
    assert found["finished"] == 0 and found["critic"][0]["pairs"] == 0


def test_finished_runs_are_not_repeated_and_tables_are_made(finished):
    shop, path = finished
    before = path.read_text()
    assert main(shop.root, settings=TOY, workers=1) == path
    assert path.read_text() == before
    tables = all_tables(path.parent)
    assert {"sima-description", "sima-existence", "sima-critic", "sima-iterations"} <= tables.keys()
    assert tables["sima-description"].count("\n") == 2 + len(TOY.variants)
    assert "| sima | " in tables["sima-critic"] and "| base |" not in tables["sima-critic"]


def test_the_published_study_says_what_it_does():
    settings = SimaSettings()
    assert len(settings.seeds) == 5 and [r.iterations for r in settings.more_rounds] == [2, 3]
    rates = dict.fromkeys(GRID, 1e-3)
    every = [
        *grid(settings),
        *runs(settings, rates, settings.rounds),
        *(r for rounds in settings.more_rounds for r in runs(settings, rates, rounds, REPEATED)),
    ]
    assert len({run.name for run in every}) == len(every)
    quick = settings.quick()
    assert quick.more_rounds == () and len(quick.seeds) == len(quick.learning_rates) == 1
