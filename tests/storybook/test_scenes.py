"""Words, splits, sampling, relations, edits and JSON of Storybook's scenes."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter

import pytest

from polyptych.errors import PolyptychError
from polyptych.storybook.scenes import (
    Relation,
    Scene,
    ThingSpec,
    add_thing,
    box_of,
    can_relate,
    change_thing,
    colored_kinds_in,
    find_things,
    holds,
    persons_in,
    remove_thing,
    sample_scene,
    scene_from_json,
    scene_to_json,
    second_view,
)
from polyptych.storybook.vocabulary import (
    ACTS,
    CATEGORIES,
    CHARACTERS,
    COLORS,
    KINDS,
    NAMES,
    PERSON,
    PLACES,
    RELATIONS,
    SIZES,
    Person,
    character_split,
    combination_split,
    pair_split,
)

SPLITS = ("train", "validation", "test")
PAIRS = [(kind, color) for kind in KINDS for color in COLORS]


def scenes(number: int, seed: int = 0, **request: object) -> list[Scene]:
    rng = random.Random(seed)
    request.setdefault("split", "train")
    return [sample_scene(rng, **request) for _ in range(number)]  # type: ignore[arg-type]


# --- Vocabulary ----------------------------------------------------------------------------------


def test_the_world_is_as_large_as_promised() -> None:
    assert len(KINDS) >= 40
    per_category = Counter(kind.category for kind in KINDS.values())
    assert set(per_category) == set(CATEGORIES)
    assert len(CATEGORIES) >= 8
    assert min(per_category.values()) >= 5
    assert len(COLORS) == 8
    assert list(SIZES) == ["small", "medium", "large"]
    assert len(PLACES) >= 8
    assert len(set(NAMES)) == len(NAMES) >= 40
    assert len(ACTS) >= 6


def test_characters_differ_in_at_least_two_visible_attributes() -> None:
    fields = Person.__slots__
    rows = [tuple(getattr(person, field) for field in fields) for person in CHARACTERS]
    fewest = min(
        sum(a != b for a, b in zip(one, two, strict=True))
        for one, two in itertools.combinations(rows, 2)
    )
    assert fewest >= 2


def test_characters_of_every_split() -> None:
    counts = Counter(character_split(person) for person in CHARACTERS)
    assert len(CHARACTERS) >= 200
    assert min(counts[split] for split in SPLITS) >= 24
    assert counts["train"] > counts["test"] > counts["validation"]


def test_pairs_are_split_70_10_20_and_training_knows_every_word() -> None:
    counts = Counter(pair_split(*pair) for pair in PAIRS)
    shares = [counts[split] / len(PAIRS) for split in SPLITS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    train = [pair for pair in PAIRS if pair_split(*pair) == "train"]
    assert {kind for kind, _ in train} == set(KINDS)
    assert {color for _, color in train} == set(COLORS)


def test_splits_never_move() -> None:
    """A change here would turn test pictures of published results into training ones."""
    words = [f"{kind} {color} {pair_split(kind, color)}" for kind, color in PAIRS]
    words += [f"{person} {character_split(person)}" for person in CHARACTERS]
    assert hashlib.sha256("\n".join(words).encode()).hexdigest()[:16] == "d8421819d5fb6e40"


def test_combinations_have_no_order() -> None:
    assert combination_split("cat", "beach") == combination_split("beach", "cat")
    words = [combination_split(kind, place) for kind in KINDS for place in PLACES]
    assert Counter(words)["train"] / len(words) == pytest.approx(0.7, abs=0.06)
    assert set(words) == set(SPLITS)


# --- Sampling ------------------------------------------------------------------------------------


def test_same_seed_same_scenes() -> None:
    assert scenes(20, seed=5) == scenes(20, seed=5)
    assert scenes(20, seed=5) != scenes(20, seed=6)


def test_pictures_have_three_to_eight_things_inside_the_frame() -> None:
    sampled = scenes(200)
    assert {len(scene.things) for scene in sampled} == set(range(3, 9))
    assert {scene.place for scene in sampled} == set(PLACES)
    for scene in sampled:
        for thing in scene.things:
            box = box_of(thing)
            assert box.left >= 0
            assert box.top >= 0
            assert box.right <= 1
            assert box.bottom <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_left_open_comes_from_training(split: str) -> None:
    for scene in scenes(100, split=split, include=[ThingSpec(category="fruit")], fill_persons=2):
        assert all(pair_split(*pair) == "train" for pair in colored_kinds_in(scene))
        assert all(character_split(person) == "train" for person in persons_in(scene))


def test_held_out_things_need_their_split() -> None:
    pair = next(pair for pair in PAIRS if pair_split(*pair) == "test")
    person = next(person for person in CHARACTERS if character_split(person) == "validation")
    held_out = ThingSpec(kind=pair[0], color=pair[1])
    assert pair in colored_kinds_in(scenes(1, split="test", include=[held_out])[0])
    for split in ("train", "validation"):
        with pytest.raises(PolyptychError, match=f"{split} picture cannot show a {pair[1]}"):
            scenes(1, split=split, include=[held_out])
    for split in ("train", "test"):
        with pytest.raises(PolyptychError, match="character"):
            scenes(1, split=split, include=[ThingSpec(person=person)])


def test_requirements_are_met() -> None:
    person = next(person for person in CHARACTERS if character_split(person) == "train")
    include = [
        ThingSpec(kind="apple", size="small"),
        ThingSpec(category="vehicle", color="green"),
        ThingSpec(person=person, act="waving"),
    ]
    for scene in scenes(50, include=include, place="beach", count=6, fill_persons=0):
        assert scene.place == "beach"
        assert len(scene.things) == 6
        assert all(find_things(scene, spec) for spec in include)
        assert persons_in(scene) == {person}


def test_fillers_obey_allow_and_are_no_twins() -> None:
    fruits = [kind for kind, entry in KINDS.items() if entry.category == "fruit"]
    for scene in scenes(50, allow=lambda kind, color: kind in fruits and color != "red", count=5):
        pairs = [(thing.kind, thing.color) for thing in scene.things if thing.kind != PERSON]
        assert all(kind in fruits and color != "red" for kind, color in pairs)
        assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"place": "moon"}, "unknown place 'moon'"),
        ({"include": [ThingSpec(kind="unicorn")]}, "unknown kind 'unicorn'"),
        ({"include": [ThingSpec(kind="cat")], "relation": (0, "on", 1)}, "needs two of 1"),
        (
            {"include": [ThingSpec(kind="castle"), ThingSpec("cup")], "relation": (0, "on", 1)},
            "cannot be drawn",
        ),
        ({"include": [ThingSpec(size="large", category="building")] * 30}, "no room for 30"),
    ],
)
def test_impossible_requests_say_why(request_: dict[str, object], message: str) -> None:
    with pytest.raises(PolyptychError, match=message):
        scenes(1, **request_)


# --- Relations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("predicate", RELATIONS)
def test_the_asked_relation_holds_and_no_other(predicate: str) -> None:
    """200 pictures in all; two things beside each other are so from either side."""
    two = [ThingSpec(), ThingSpec()]
    for scene in scenes(40, seed=9, include=two, relation=(0, predicate, 1)):
        (relation,) = scene.relations
        assert relation.predicate == predicate
        expected = {relation}
        if predicate == "beside":
            expected.add(Relation(relation.object, "beside", relation.subject))
        pairs = itertools.permutations(range(len(scene.things)), 2)
        found = {
            Relation(subject, name, other)
            for subject, other in pairs
            for name in RELATIONS
            if holds(scene, Relation(subject, name, other))
        }
        assert found == expected


def test_relations_mean_what_their_words_mean() -> None:
    def boxes(predicate: str, subject: str, other: str) -> tuple:
        include = [ThingSpec(kind=subject), ThingSpec(kind=other)]
        scene = scenes(1, include=include, relation=(0, predicate, 1))[0]
        (relation,) = scene.relations
        return box_of(scene.things[relation.subject]), box_of(scene.things[relation.object])

    cup, tree = boxes("under", "cup", "tree")
    assert tree.left < cup.left
    assert cup.right < tree.right
    assert cup.top > tree.y - 0.05
    cup, table = boxes("on", "cup", "table")
    assert table.left < cup.x < table.right
    assert cup.y < table.top
    kite, house = boxes("above", "kite", "house")
    assert kite.bottom < house.top
    car, bus = boxes("beside", "car", "bus")
    assert car.right <= bus.left + 0.02 or bus.right <= car.left + 0.02


def test_what_can_be_related() -> None:
    assert can_relate("cup", "under", "tree")
    assert not can_relate("cup", "under", "cup")
    assert not can_relate("bridge", "on", "stool")
    assert can_relate(PERSON, "holding", "bell")
    assert not can_relate(PERSON, "holding", "house")
    assert not can_relate("cat", "holding", "bell")


# --- Edits and JSON ------------------------------------------------------------------------------


def test_json_round_trip_is_exact() -> None:
    two = [ThingSpec(), ThingSpec()]
    for scene in scenes(30) + scenes(10, include=two, relation=(0, "holding", 1)):
        assert scene_from_json(json.loads(json.dumps(scene_to_json(scene)))) == scene


@pytest.mark.parametrize("broken", [{}, {"place": "beach", "things": [{"kind": "cat"}]}])
def test_broken_json_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(PolyptychError, match="no scene of Storybook"):
        scene_from_json(broken)


def test_edits_keep_relations_true() -> None:
    rng = random.Random(3)
    two = [ThingSpec(), ThingSpec()]
    for predicate in RELATIONS:
        for scene in scenes(10, include=two, relation=(0, predicate, 1), count=5):
            (relation,) = scene.relations
            more = add_thing(rng, scene, ThingSpec(kind="apple"), split="train")
            assert len(more.things) == 6
            assert len(more.relations) == 1
            assert holds(more, more.relations[0])
            bystander = next(
                index for index in range(5) if index not in (relation.subject, relation.object)
            )
            fewer = remove_thing(scene, bystander)
            assert len(fewer.things) == 4
            assert holds(fewer, fewer.relations[0])
            assert remove_thing(scene, relation.subject).relations == ()
            again = second_view(rng, scene)
            assert again != scene
            assert holds(again, again.relations[0])


def test_a_changed_thing_keeps_its_foot() -> None:
    scene = scenes(1, include=[ThingSpec(kind="cat", size="small")], count=3)[0]
    (index,) = find_things(scene, ThingSpec(kind="cat"))
    changed = change_thing(scene, index, kind="house", size="large")
    assert changed.things[index].kind == "house"
    assert changed.things[:index] == scene.things[:index]
    before, after = box_of(scene.things[index]), box_of(changed.things[index])
    assert after.bottom == pytest.approx(before.bottom, abs=1e-3)
