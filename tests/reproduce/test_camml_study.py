"""The CaMML study's promises: facts from the datastore alone, fair variants, runs taken up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from polyptych.data.images import image_hash
from polyptych.data.readers.splitting import SplitName
from polyptych.data.records import read_records
from polyptych.reproduce.camml.knowledge import (
    World,
    close_up,
    concatenated,
    knowledge_correct,
    with_shots,
)
from polyptych.reproduce.camml.main import main
from polyptych.reproduce.camml.real import main as main_real
from polyptych.reproduce.camml.real_sets import LABELS, NEW, PHOTO_SETS, SETS, read_set, set_correct
from polyptych.reproduce.camml.stages import grid
from polyptych.reproduce.camml.study import VARIANTS, CammlSettings, CammlWorkshop, Context
from polyptych.reproduce.camml.word_encoder import WordEncoder
from polyptych.reproduce.tables import all_tables
from polyptych.reproduce.workshop import Run
from polyptych.schema import ImageBlock
from polyptych.storybook.generation import make_examples

TINY = CammlSettings(
    questions=12,
    validation=4,
    test=4,
    base_examples=6,
    worlds=2,
    base_steps=1,
    base_batch=3,
    first_steps=1,
    steps=1,
    batch_size=2,
    learning_rates=(1e-3,),
    seeds=(0,),
    most_shots=3,
    shots=(1, 4),
    edited_shots=2,
    timed=1,
    context=Context(3),
    sweep=(Context(2),),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("camml")
    results = main(root, settings=TINY, workers=1)
    return CammlWorkshop(root, TINY, root / "encoder"), results


@pytest.fixture(scope="module")
def records():
    """A fact, its question, and another fact."""
    stories = list(make_examples("knowledge_qa", count=4, split="train", seed=3, things=(1, 2)))
    return [close_up(stories[place]) for place in (0, 1, 2)]


# --- Facts, worlds, shots -------------------------------------------------------------------------


def test_a_question_is_answered_by_its_fact_alone(records):
    fact, question, other = records
    truth = question.metadata
    assert question.target == f"{truth['answer']}."
    assert truth["answer"] in fact.messages[1].text
    assert fact.metadata["fact_id"] == truth["fact_id"] != other.metadata["fact_id"]
    assert fact.images != question.images


def test_a_world_changes_fact_and_answer_alike_and_every_one(records):
    fact, question, _ = records
    for seed in range(20):
        world = World(str(seed))
        told, asked = world.retold(fact), world.retold(question)
        answer = asked.metadata["answer"]
        assert answer != question.metadata["answer"]
        assert told.metadata["answer"] == answer
        assert answer in told.messages[1].text and asked.target == f"{answer}."
        assert knowledge_correct(asked.target, asked.metadata)
        assert not knowledge_correct(asked.target, question.metadata)


def test_naming_two_answers_is_wrong():
    truth = {"attribute": "color", "answer": "red"}
    assert knowledge_correct("Red.", truth) and knowledge_correct("it likes red best", truth)
    assert not knowledge_correct("red and blue", truth)
    assert not knowledge_correct("", truth)


def test_concatenated_shots_stand_before_the_question_in_order(records):
    fact, question, other = records
    asked = with_shots(question, [fact, other], None)
    assert asked.metadata["found"] and not with_shots(question, [other], None).metadata["found"]
    written = concatenated(asked)
    assert written.images == (*fact.images, *other.images, *question.images)
    assert not written.shots and written.messages[0].image_count == 3
    texts = written.messages[0].text
    assert texts.index(fact.messages[1].text) < texts.index(other.messages[1].text)
    last = [isinstance(block, ImageBlock) for block in written.messages[0].content]
    assert last[-3:] == [False, True, False]  # "image: ", the question's picture, the question


# --- Fair variants --------------------------------------------------------------------------------


def test_training_sets_differ_in_shots_only(finished):
    shop, _ = finished
    sets = {v: list(read_records(shop.data[f"{v}-train"])) for v in VARIANTS}
    assert {len(examples) for examples in sets.values()} == {24}
    for none, drawn, raw, camml in zip(*(sets[v] for v in VARIANTS), strict=True):
        assert none.id == drawn.id == raw.id == camml.id
        assert none.target == drawn.target == raw.target == camml.target
        assert not none.shots and len(drawn.shots) == len(camml.shots) == len(raw.images) - 1
        assert raw.images[:-1] == tuple(shot.images[0] for shot in camml.shots)
        assert camml.metadata["found"] and raw.metadata["found"]
    counts = Counter(len(example.shots) for example in sets["camml"])
    assert set(counts) <= {1, 2, 3} and len(counts) > 1


def test_an_answer_takes_the_place_of_one_shot_where_none_has_it(finished):
    store = finished[0].store("train")
    question = store.questions[0]
    others = [f for f in store.facts if f.metadata["fact_id"] != question.metadata["fact_id"]][:3]
    (answer,) = store.asked_for(question)
    mended = [store.with_answer(question, others, str(seed)) for seed in range(20)]
    assert {shots.index(answer) for shots in mended} == {0, 1, 2}
    assert all(sum(a is b for a, b in zip(shots, others, strict=True)) == 2 for shots in mended)
    assert store.with_answer(question, [*others, answer], "") == [*others, answer]


def test_all_start_on_the_same_questions_with_the_fact_that_answers(finished):
    shop, _ = finished
    sets = {v: list(read_records(shop.data[f"{v}-first"])) for v in VARIANTS}
    for none, _drawn, raw, camml in zip(*(sets[v] for v in VARIANTS), strict=True):
        assert none.id == raw.id == camml.id and none.target == raw.target == camml.target
        assert not none.shots and len(camml.shots) == len(raw.images) - 1 == 1
        assert camml.metadata["answer"] in camml.shots[0].messages[1].text
    starts = {v: shop.first_run(v, TINY.context) for v in VARIANTS}
    assert starts["random"] == starts["camml"] and len(set(starts.values())) == 3


def test_no_test_fact_is_told_in_training(finished):
    shop, _ = finished
    entities = {
        split: {f.metadata["entity"] for f in shop.store(split).facts}
        for split in ("train", "validation", "test")
    }
    assert not entities["train"] & entities["test"]
    assert not entities["validation"] & entities["test"]


def test_what_is_asked_of_each_variant(finished):
    shop, _ = finished
    run = Run("camml", 0, 1e-3, 1, TINY.context, "main")
    for task, count in (("shots_4", 4), ("oracle", 1), ("edited", 2)):
        asked = shop.asked(run, task, "test")
        assert {len(example.shots) for example in asked} == {count}
    oracle = shop.asked(run, "oracle", "test")
    assert all(example.metadata["found"] for example in oracle)
    edited = shop.asked(run, "edited", "test")
    assert all(e.metadata["answer"] != e.metadata["before"] for e in edited)
    assert not any(e.shots for e in shop.asked(replace(run, variant="none"), "shots_4", "test"))


def test_the_grid_tries_every_rate_on_every_variant():
    runs = grid(CammlSettings())
    assert {(r.variant, r.learning_rate) for r in runs} == {
        (v, rate) for v in VARIANTS for rate in CammlSettings().learning_rates
    }
    assert all(run.purpose == "grid" for run in runs)


# --- The whole study ------------------------------------------------------------------------------


def test_the_study_runs_to_its_end_and_is_not_repeated(finished):
    shop, results = finished
    content = json.loads(results.read_text())
    purposes = Counter(run["purpose"] for run in content["runs"])
    assert purposes == {"first": 4, "main": 4, "sweep": 1}
    assert not any(run["tasks"] for run in content["runs"] if run["purpose"] == "first")
    cell = content["summary"]["q3"]["shots_1"]["accuracy[knowledge]"]["camml"]
    assert cell["seeds"] == 1 and "concatenated" in cell["over"]
    before = results.read_text()
    main(shop.root, settings=TINY, workers=1)
    again = json.loads(results.read_text())
    assert again["runs"] == json.loads(before)["runs"]


def test_costs_grow_with_shots_in_the_prompt_only(finished):
    _, results = finished
    runs = {
        run["variant"]: run["costs"]
        for run in json.loads(results.read_text())["runs"]
        if run["purpose"] == "main"
    }
    tokens = {v: [costs[n]["tokens"] for n in ("1", "4")] for v, costs in runs.items()}
    assert tokens["none"][0] == tokens["none"][1]
    assert tokens["camml"][0] == tokens["camml"][1] < tokens["concatenated"][0]
    assert tokens["concatenated"][1] > tokens["concatenated"][0] + 3 * 36
    assert "cached_seconds" in runs["camml"]["1"] and "cached_seconds" not in runs["none"]["1"]


def test_tables_show_accuracy_and_costs(finished):
    _, results = finished
    tables = all_tables(results.parent)
    assert tables["camml-main"].splitlines()[2].startswith("| shots 1 | `accuracy[knowledge]` |")
    costs = [line.split(" | ") for line in tables["camml-costs"].splitlines()[2:]]
    assert [row[:2] for row in costs[:2]] == [["| 1", "tokens"], ["| 1", "ms"]]
    assert len(costs) == 6 and all(len(row) == 6 for row in costs)
    assert "| q2 |" in tables["camml-sizes"] and "| q3 |" in tables["camml-sizes"]
    assert {"camml-by_found", "camml-by_attribute"} <= tables.keys()


# --- Real sets ------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_real_sets_ask_for_labels_of_no_training_question(shared_dir):
    counts: dict[SplitName, int] = {"train": 60, "validation": 10, "test": 60}
    for name in PHOTO_SETS:
        sets = read_set(name, shared_dir / "data", counts, 0)
        trained = {q.metadata["answer"] for q in sets["train"][1]}
        tested = {q.metadata["answer"] for q in sets["test"][1]}
        assert trained == set(LABELS[name]) - set(NEW[name])
        assert tested & set(NEW[name]) and tested & trained
        told = Counter(fact.metadata["answer"] for fact in sets["test"][0])
        assert set(told.values()) == {20} and set(told) == set(LABELS[name])
        pictures = {image_hash(q.images[0]) for part in sets.values() for q in part[1]}
        assert not pictures & {image_hash(fact.images[0]) for fact in sets["test"][0]}


@pytest.mark.shared_data
def test_science_questions_are_answered_by_letter(shared_dir):
    sets = read_set("scienceqa", shared_dir / "data", {"train": 9, "validation": 3, "test": 5}, 0)
    question = sets["test"][1][0]
    truth = question.metadata
    assert set_correct(question.target or "", truth) and set_correct(f"{truth['answer']}", truth)
    assert not set_correct("", truth) and not set_correct(f"{truth['answer']}nd", truth)
    facts = {fact.id: fact for fact in sets["train"][0]}
    assert len(facts) == 520 and all(q.id in facts for q in sets["train"][1])
    fact = facts[sets["train"][1][0].id]
    assert fact.messages[1].text.startswith(f"{fact.metadata['answer']}. ")
    assert World("any", LABELS).retold(question) == question


def test_words_find_texts_of_the_same_sort():
    texts = ["which word is a verb", "what is the mass of a stone", "which word is a noun"]
    encoder = WordEncoder(texts)
    vectors = encoder.encode_texts(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    near = vectors @ vectors[0]
    assert near[2] > near[1]
    assert not encoder.encode_texts(["?"]).any()
    assert WordEncoder(texts[:2]).fingerprint != encoder.fingerprint


@pytest.mark.shared_data
def test_the_real_comparison_runs_to_its_end(shared_dir, tmp_path):
    tiny = replace(
        TINY, questions=8, most_shots=2, shots=(1, 2), sweep=(), worlds=2, longest_text=512
    )
    results = main_real(tmp_path, shared_dir / "data", workers=1, settings=tiny, encoder_steps=1)
    summary = json.loads(results.read_text())["summary"]["q3"]
    assert set(summary) == {f"{name}_{n}" for name in SETS for n in (1, 2)}
    assert summary["scienceqa_1"]["accuracy[label]"]["camml"]["seeds"] == 1
    assert "| trashnet 1 |" in all_tables(tmp_path)["camml-real"]
