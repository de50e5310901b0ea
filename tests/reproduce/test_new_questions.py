"""More training examples from drawn pictures: what they say is true of the pictures."""

import itertools
import random
import re

import pytest

from polyptych.reproduce.base import pictures_of
from polyptych.reproduce.cheetah.new_questions import (
    changed_back,
    recaptioned,
    requestioned,
    reverse,
)
from polyptych.reproduce.cheetah.salience import captions_for, named_things
from polyptych.reproduce.cheetah.sets import MAKERS
from polyptych.schema import Example, ImageRef
from polyptych.storybook.graph import scene_from_json
from polyptych.storybook.tasks.change_captioning import CAPTIONS
from polyptych.storybook.tasks.change_captioning import captions_for as change_captions_for
from polyptych.storybook.vocabulary import PERSON


@pytest.fixture(scope="module")
def examples():
    """Changes, with names in place of drawn pictures."""
    made = []
    for index in range(40):
        story = MAKERS["change_captioning"](random.Random(index), "train", things=(3, 5))
        images = tuple(ImageRef(f"{index}-{number}.png") for number in range(len(story.scenes)))
        made.append(
            Example(str(index), story.messages, images, story.references, metadata=story.metadata)
        )
    return made


@pytest.fixture(scope="module")
def scenes(examples):
    return {ref: scene_from_json(dict(scene)) for ref, scene in pictures_of(examples)}


def asked_picture(text):
    return int(re.search(r" in picture (\d)", text)[1]) - 1


def test_questions_anew_have_one_true_answer_in_the_picture_they_name(examples, scenes):
    asked = list(requestioned(pictures_of(examples), count=300))
    assert len({example.id for example in asked}) == 300
    assert {example.metadata["question"] for example in asked} == {"color", "kind", "act"}
    for example in asked:
        truth, text = example.metadata, example.messages[0].text
        scene = scenes[example.images[asked_picture(text)]]
        words = set(text.replace("?", "").split())
        things = list(enumerate(scene.things))
        if truth["question"] == "color":
            found = [(i, t.color) for i, t in things if t.kind in words]
        elif truth["question"] == "kind":
            found = [(i, t.kind) for i, t in things if t.color in words]
        else:
            found = [(i, t.act) for i, t in things if t.kind == PERSON]
        ((index, answer),) = found  # exactly one thing fits
        assert answer == truth["answer"]
        assert answer in example.messages[1].text
        if truth["question"] != "act":
            assert truth["named"] == (index in named_things(scene))


def test_half_of_the_other_pictures_would_give_another_answer(examples, scenes):
    asked = [
        example
        for example in requestioned(pictures_of(examples), count=400)
        if example.metadata["question"] == "color"
    ]

    def colors(example):
        text = example.messages[0].text
        here = asked_picture(text)
        kind = text.split("the ")[1].split(" in ")[0]
        other = scenes[example.images[1 - here]]
        return {thing.color for thing in other.things if thing.kind == kind}

    misled = [bool(colors(example) - {example.metadata["answer"]}) for example in asked]
    assert 0.25 < sum(misled) / len(misled) < 0.75


def test_a_change_told_back_undoes_it(examples):
    for example, back in zip(examples, changed_back(examples), strict=True):
        assert back.images == example.images[::-1]
        change = example.metadata["change"]
        assert reverse(reverse(change)) == change
        assert back.references == change_captions_for(reverse(change))
    types = {example.metadata["change"]["type"] for example in examples}
    assert types == set(CAPTIONS)
    assert reverse({"type": "add", "new_kind": "cup", "new_color": "red"}) == {
        "type": "delete",
        "kind": "cup",
        "color": "red",
    }


def test_captions_anew_are_those_of_their_pictures(examples, scenes):
    made = list(recaptioned(pictures_of(examples), count=30))
    assert len({example.images for example in made}) == 30
    for example in made:
        assert example.references == captions_for(scenes[example.images[0]])
        assert example.messages[1].text in example.references


def test_another_seed_asks_other_questions(examples):
    pictures = pictures_of(examples)
    first, again, other = (
        [e.messages[0].text for e in itertools.islice(requestioned(pictures, count=9, seed=s), 9)]
        for s in (0, 0, 1)
    )
    assert first == again != other
