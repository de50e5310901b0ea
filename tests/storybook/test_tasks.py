"""The tasks of Storybook: truth, splits, balance and files, checked on the records alone."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from functools import cache
from statistics import mean

import pytest

from polyptych.data.records import read_records
from polyptych.errors import PolyptychError
from polyptych.storybook.generation import make_examples, write_dataset
from polyptych.storybook.scenes import Relation, Scene, Thing, holds, scene_from_json
from polyptych.storybook.tasks import TASKS, knowledge_qa
from polyptych.storybook.tasks.base import StoryExample
from polyptych.storybook.tasks.factors import FACTOR_TYPES, Factor, shared_factors
from polyptych.storybook.vocabulary import (
    CHARACTERS,
    COLORS,
    KINDS,
    NAMES,
    PERSON,
    PLACES,
    RELATIONS,
    character_split,
    combination_split,
    pair_split,
)

SPLITS = ("train", "validation", "test")


@cache
def examples(task: str, count: int, split: str = "train", **options: object) -> list[StoryExample]:
    return list(make_examples(task, count=count, split=split, seed=7, **options))


# --- All tasks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_an_example_depends_on_task_split_seed_and_index_alone(task: str) -> None:
    whole = examples(task, 8, "test")
    assert list(make_examples(task, count=1, split="test", seed=7, start=5)) == [whole[5]]
    assert list(make_examples(task, count=8, split="test", seed=8))[5] != whole[5]
    assert len({example.id for example in whole}) == 8


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_record_is_complete(task: str, split: str) -> None:
    for example in examples(task, 30, split):
        user, assistant = example.messages
        assert (user.role, assistant.role) == ("user", "assistant")
        assert user.image_count == len(example.scenes) and assistant.image_count == 0
        assert len(set(example.references)) == len(example.references) >= 5
        assert example.target in example.references
        assert all(reference.endswith(".") for reference in example.references)
        assert example.metadata["task"] == task and example.metadata["split"] == split
        restored = json.loads(json.dumps(example.metadata))["scenes"]
        assert tuple(map(scene_from_json, restored)) == example.scenes


@pytest.mark.parametrize("task", TASKS)
def test_training_never_shows_what_other_splits_own(task: str) -> None:
    for example in examples(task, 120):
        for scene in example.scenes:
            for thing in scene.things:
                if thing.person is not None:
                    assert character_split(thing.person) == "train"
                else:
                    assert pair_split(thing.kind, thing.color) == "train"
                    assert combination_split(thing.kind, scene.place) == "train"
            for item in scene.relations:
                subject, other = scene.things[item.subject], scene.things[item.object]
                assert combination_split(subject.kind, item.predicate, other.kind) == "train"


@pytest.mark.parametrize("task", TASKS)
def test_targets_use_every_phrasing(task: str) -> None:
    used = Counter(e.references.index(e.target) for e in examples(task, 120))
    assert set(used) >= set(range(5))


def test_unknown_task_and_split_are_named() -> None:
    with pytest.raises(PolyptychError, match=r"'poetry'.*group_captioning"):
        examples("poetry", 1)
    with pytest.raises(PolyptychError, match=r"'dev'.*train, validation, test"):
        examples("description", 1, "dev")


@pytest.mark.parametrize("task", ["group_captioning", "existence"])
def test_a_written_set_reads_back(tmp_path, task: str) -> None:
    path = write_dataset(task, tmp_path / "set", count=4, split="test", seed=7, size=32)
    stories = examples(task, 4, "test")
    records = list(read_records(path))
    assert [record.id for record in records] == [story.id for story in stories]
    for record, story in zip(records, stories, strict=True):
        assert record.messages == story.messages and record.references == story.references
        assert record.metadata == json.loads(json.dumps(story.metadata))
        assert len(record.images) == len(story.scenes)
        assert all((image.path or "").endswith(".png") for image in record.images)
    assert not list(tmp_path.rglob("*.partial"))


# --- Group captioning ----------------------------------------------------------------------------


def facts_of(scene: dict) -> set[tuple[str, ...]]:
    """What a scene's JSON shows, written again without the package's factor code."""
    facts: set[tuple[str, ...]] = {("place", scene["place"])}
    for thing in scene["things"]:
        if "person" in thing:
            facts |= {("who", json.dumps(thing["person"], sort_keys=True)), ("kind", PERSON)}
        else:
            kind = thing["kind"]
            facts |= {("color", thing["color"], kind), ("kind", kind)}
            facts.add(("category", KINDS[kind].category))
    for subject, predicate, other in scene["relations"]:
        kinds = [scene["things"][subject]["kind"], scene["things"][other]["kind"]]
        facts.add((predicate, *(sorted(kinds) if predicate == "beside" else kinds)))
    return facts


def allowed_facts(factor: dict) -> set[tuple[str, ...]]:
    """The factor and what it brings along; a character is added by the test."""
    words = factor["value"].split()
    if factor["type"] == "colored_kind":
        own, kinds = {("color", *words)}, words[1:]
    elif factor["type"] == "relation":
        own, kinds = {(words[1], words[0], words[2])}, [words[0], words[2]]
    elif factor["type"] == "character":
        own, kinds = set(), [PERSON]
    elif factor["type"] == "kind":
        own, kinds = set(), words
    else:
        own, kinds = {(factor["type"], factor["value"])}, []
    categories = {("category", KINDS[kind].category) for kind in kinds if kind != PERSON}
    return own | {("kind", kind) for kind in kinds} | categories


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "options", [{}, {"things": (3, 3), "pictures": (3, 3)}, {"things": (8, 8), "pictures": (6, 6)}]
)
def test_pictures_share_exactly_one_factor(split: str, options: dict) -> None:
    for example in examples("group_captioning", 36, split, **options):
        factor = example.metadata["factor"]
        shared = set.intersection(*map(facts_of, example.metadata["scenes"]))
        persons = {fact for fact in shared if fact[0] == "who"}
        assert shared - persons == allowed_facts(factor)
        assert len(persons) == (factor["type"] == "character")
        assert shared_factors(example.scenes) == {Factor(factor["type"], factor["value"])}


def test_every_relation_that_can_be_seen_is_in_the_scene_graph() -> None:
    for example in examples("group_captioning", 40):
        for scene in example.scenes:
            pairs = itertools.permutations(range(len(scene.things)), 2)
            seen = {
                Relation(subject, predicate, other)
                for (subject, other), predicate in itertools.product(pairs, RELATIONS)
                if holds(scene, Relation(subject, predicate, other))
            }
            told = set(scene.relations)
            for item in scene.relations:
                if item.predicate == "beside":
                    told.add(Relation(item.object, "beside", item.subject))
            assert seen == told


def thing(kind: str, color: str) -> Thing:
    return Thing(kind, color, "medium", 0.5, 0.5)


def test_shared_factors_by_hand() -> None:
    under = (Relation(0, "under", 1),)
    first = Scene("beach", (thing("cat", "red"), thing("tree", "green")), under)
    second = Scene("snow", (thing("cat", "blue"), thing("tree", "pink")), under)
    rabbit = Scene("snow", (thing("rabbit", "red"),))
    same_cat = Scene("beach", (thing("cat", "red"),))
    assert shared_factors([first, second]) == {Factor("relation", "cat under tree")}
    assert shared_factors([first, replace(second, relations=())]) == {
        Factor("kind", "cat"),
        Factor("kind", "tree"),
    }
    assert shared_factors([first, rabbit]) == {Factor("category", "animal")}
    assert shared_factors([first, same_cat]) == {
        Factor("colored_kind", "red cat"),
        Factor("place", "beach"),
    }
    assert shared_factors([rabbit, same_cat, second]) == {Factor("category", "animal")}


def test_distractors_stand_in_all_pictures_but_one() -> None:
    drawn = examples("group_captioning", 100)
    near_misses = 0
    for example in drawn:
        counts = Counter(fact for s in example.metadata["scenes"] for fact in facts_of(s))
        near_misses += any(value == len(example.scenes) - 1 for value in counts.values())
    assert near_misses >= 95


def test_factor_types_and_pictures_are_balanced() -> None:
    drawn = examples("group_captioning", 300)
    types = Counter(example.metadata["factor"]["type"] for example in drawn)
    sizes = Counter(len(example.scenes) for example in drawn)
    assert set(types) == set(FACTOR_TYPES) and min(types.values()) >= 30
    assert set(sizes) == {3, 4, 5, 6} and min(sizes.values()) >= 45


def test_no_fixed_answer_is_often_right() -> None:
    values = Counter(e.metadata["factor"]["value"] for e in examples("group_captioning", 300))
    assert max(values.values()) <= 0.05 * 300


def test_held_out_factors_are_owned_by_the_split() -> None:
    for example in examples("group_captioning", 80, "test"):
        kind, value = example.metadata["factor"]["type"], example.metadata["factor"]["value"]
        if kind == "colored_kind":
            assert pair_split(*reversed(value.split())) == "test"  # type: ignore[arg-type]
        elif kind == "relation":
            assert combination_split(*value.split()) == "test"
        elif kind == "character":
            persons = [{t.person for t in scene.things if t.person} for scene in example.scenes]
            (shared,) = set.intersection(*persons)
            assert character_split(shared) == "test"
        elif kind == "place":
            assert all(
                any(
                    combination_split(t.kind, value) == "test"
                    for t in scene.things
                    if t.person is None
                )
                for scene in example.scenes
            )


def test_factor_types_can_be_chosen() -> None:
    options = {"factor_types": ("place",), "pictures": (4, 4), "things": (5, 6)}
    drawn = examples("group_captioning", 10, **options)
    assert {example.metadata["factor"]["type"] for example in drawn} == {"place"}
    assert {len(example.scenes) for example in drawn} == {4}


def test_captions_are_short_lower_case_sentences() -> None:
    for example in examples("group_captioning", 120):
        for reference in example.references:
            assert reference == reference.lower() and reference.count(".") == 1
            assert 5 <= len(reference.split()) <= 16


# --- Storytelling --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_names_are_bound_by_earlier_panels_alone(split: str) -> None:
    for example in examples("storytelling", 40, split):
        truth = example.metadata
        texts = [block.text for block in example.messages[0].content if hasattr(block, "text")]
        asked = f"Caption {len(example.scenes)}:"
        assert texts[-1].strip() == asked
        told = {name for name in NAMES if name in " ".join(texts).replace(".", "").split()}
        assert told == set(truth["cast"]) and len(told) >= 2
        assert set(truth["names"]) <= told and 1 <= len(truth["names"]) <= 2
        assert set(truth["acts"]) == set(truth["names"])
        last = example.scenes[-1]
        shown = [thing for thing in sorted(last.things, key=lambda t: t.x) if thing.person]
        assert [thing.act for thing in shown] == [truth["acts"][name] for name in truth["names"]]
        assert truth["place"] == last.place
        earlier = {t.person for scene in example.scenes[:-1] for t in scene.things}
        assert {thing.person for thing in shown} <= earlier
        assert any(combination_split(t.act, last.place) == split for t in shown if t.act)
        if split != "train":
            assert all(character_split(thing.person) == split for thing in shown)


def test_stories_of_training_keep_to_its_acts_and_places() -> None:
    for example in examples("storytelling", 100):
        for scene in example.scenes:
            acts = [thing.act for thing in scene.things if thing.act]
            assert acts and all(combination_split(act, scene.place) == "train" for act in acts)
            assert len(set(acts)) == len(acts)


def test_guessing_names_seldom_works() -> None:
    drawn = examples("storytelling", 400)
    everyone = sum(set(e.metadata["names"]) == set(e.metadata["cast"]) for e in drawn)
    last_told = sum(e.metadata["names"] == e.metadata["cast"][-1:] for e in drawn)
    assert everyone <= 0.3 * len(drawn) and last_told <= 0.3 * len(drawn)
    names = Counter(name for e in drawn for name in e.metadata["names"])
    assert set(names) == set(NAMES) and max(names.values()) <= 0.06 * sum(names.values())


# --- Change captioning ---------------------------------------------------------------------------


def described(scene: dict) -> Counter:
    """A multiset of what stands where: the truth that a new view must keep."""
    return Counter((t["kind"], t["color"], t["size"]) for t in scene["things"])


@pytest.mark.parametrize("split", SPLITS)
def test_exactly_the_told_thing_changes(split: str) -> None:
    for example in examples("change_captioning", 60, split):
        change = example.metadata["change"]
        before, after = map(described, example.metadata["scenes"])
        gone, come = list((before - after).elements()), list((after - before).elements())
        assert len(gone) == (change["type"] != "add") and len(come) == (change["type"] != "delete")
        assert example.metadata["scenes"][0]["place"] == example.metadata["scenes"][1]["place"]
        for things, prefix in ((gone, ""), (come, "new_")):
            for thing in things:
                told = dict(zip(("kind", "color", "size"), thing, strict=True))
                for word, value in told.items():
                    assert change.get(prefix + word, value) == value


def test_a_second_view_moves_nothing_but_looks_different() -> None:
    for example in examples("change_captioning", 60):
        before, after = example.scenes
        where = {(t.kind, t.color, t.size, t.person, t.x, t.y): t.view for t in before.things}
        seen_again = [
            (where[key], t.view)
            for t in after.things
            if (key := (t.kind, t.color, t.size, t.person, t.x, t.y)) in where
        ]
        assert len(seen_again) >= len(before.things) - 1
        assert all(first != second for first, second in seen_again)


def test_change_types_are_balanced_and_small_things_come_first() -> None:
    drawn = examples("change_captioning", 200)
    types = Counter(example.metadata["change"]["type"] for example in drawn)
    assert len(types) == 5 and min(types.values()) >= 22
    before_sizes: Counter[str] = Counter()
    for example in drawn:
        before, after = map(described, example.metadata["scenes"])
        before_sizes.update(size for _, _, size in (before - after))
    assert before_sizes["small"] > before_sizes["medium"] > before_sizes["large"]


# --- Description, existence, knowledge -----------------------------------------------------------


def test_a_description_names_every_thing_from_left_to_right() -> None:
    for example in examples("description", 60):
        (scene,) = example.scenes
        for reference in example.references:
            assert PLACES[scene.place].phrase in reference
            position = 0
            for thing in sorted(scene.things, key=lambda t: t.x):
                person = thing.person
                words = (
                    f"{thing.size} {thing.color} {thing.kind}"
                    if person is None
                    else f"{thing.act} person in a{'n' * (person.clothes_color == 'orange')} "
                    f"{person.clothes_color} {person.clothes}"
                )
                position = reference.index(words, position) + len(words)


@pytest.mark.parametrize("split", SPLITS)
def test_existence_is_true_balanced_and_asked_twice(split: str) -> None:
    drawn = examples("existence", 80, split)
    assert Counter(e.metadata["answer"] for e in drawn) == {"yes": 40, "no": 40}
    for example in drawn:
        kind, color = example.metadata["kind"], example.metadata["color"]
        assert pair_split(kind, color) == split
        things = [thing for scene in example.scenes for thing in scene.things]
        shown = any((thing.kind, thing.color) == (kind, color) for thing in things)
        assert example.metadata["answer"] == ("yes" if shown else "no")
        assert any(thing.kind == kind and thing.color != color for thing in things)
        assert any(thing.kind != kind and thing.color == color for thing in things)
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert first.messages[0] == second.messages[0]
        assert first.metadata["answer"] != second.metadata["answer"]


def test_existence_cannot_be_counted_out() -> None:
    kinds: dict[str, list[int]] = {"yes": [], "no": []}
    colors: dict[str, list[int]] = {"yes": [], "no": []}
    for example in examples("existence", 400, pictures=(1, 1)):
        truth, things = example.metadata, example.scenes[0].things
        kinds[truth["answer"]].append(sum(t.kind == truth["kind"] for t in things))
        colors[truth["answer"]].append(
            sum(t.color == truth["color"] and t.person is None for t in things)
        )
    for counts in (kinds, colors):
        assert abs(mean(counts["yes"]) - mean(counts["no"])) < 0.25


@pytest.mark.parametrize("split", SPLITS)
def test_a_fact_stands_in_its_own_record_only(split: str) -> None:
    drawn = examples("knowledge_qa", 80, split)
    for fact, question in zip(drawn[::2], drawn[1::2], strict=True):
        assert (fact.metadata["role"], question.metadata["role"]) == ("fact", "question")
        for key in ("fact_id", "entity", "attribute", "answer"):
            assert fact.metadata[key] == question.metadata[key]
        answer, name = question.metadata["answer"], question.metadata["name"]
        assert all(answer in reference and name in reference for reference in fact.references)
        assert all(answer in reference for reference in question.references)
        asked = question.messages[0].text
        assert answer not in asked and name not in asked
        (scene,) = question.scenes
        assert scene != fact.scenes[0]
        assert PLACES[scene.place].phrase != answer
        assert answer not in {KINDS[t.kind].plural for t in scene.things if t.kind in KINDS}


def test_names_and_facts_of_the_made_up_world_are_unambiguous() -> None:
    entities = [e for split in SPLITS for part in knowledge_qa.entities_of(split) for e in part]
    assert len(entities) == len(KINDS) * len(COLORS) + len(CHARACTERS)
    names = {entity.name for entity in entities}
    assert len(names) == len({entity.description for entity in entities}) == len(entities)
    assert not names & set(NAMES)
