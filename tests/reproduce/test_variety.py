"""New groups and names over the same pictures keep what the drawn examples promise."""

from __future__ import annotations

import pytest

from polyptych.errors import PolyptychError
from polyptych.reproduce.sam.variety import regrouped, renamed
from polyptych.storybook.generation import make_examples, to_example
from polyptych.storybook.scenes import scene_from_json
from polyptych.storybook.scoring import factor_correct, name_accuracy
from polyptych.storybook.tasks.factors import Factor, shared_factors


@pytest.fixture(scope="module")
def groups():
    stories = make_examples("group_captioning", count=40, split="train", seed=3, things=(3, 4))
    return [to_example(story, 32) for story in stories]


@pytest.fixture(scope="module")
def stories():
    drawn = make_examples("storytelling", count=6, split="train", seed=3)
    return [to_example(story, 32) for story in drawn]


def test_regrouped_pictures_share_exactly_their_factor(groups) -> None:
    scenes = {
        image: scene_from_json(dict(scene))
        for example in groups
        for image, scene in zip(example.images, example.metadata["scenes"], strict=True)
    }
    made = list(regrouped(groups, count=30, pictures=(3, 4), factor_types=("kind", "place")))
    assert len(made) == len({example.id for example in made}) == 30
    assert {example.metadata["factor"]["type"] for example in made} == {"kind", "place"}
    for example in made:
        factor = Factor(**example.metadata["factor"])
        assert shared_factors([scenes[image] for image in example.images]) == {factor}
        assert factor_correct(example.target, example.metadata)
        assert example.target in example.references
        assert 3 <= len(example.images) == example.messages[0].image_count <= 4


def test_too_few_pictures_are_refused(groups) -> None:
    with pytest.raises(PolyptychError, match="0 of 5 groups found among"):
        list(regrouped(groups[:1], count=5, pictures=(9, 9), factor_types=("kind",)))


def test_renamed_stories_tell_the_same_of_others(stories) -> None:
    made = list(renamed(stories, copies=2))
    assert len(made) == 12
    for old, new in zip(stories * 2, made, strict=True):
        assert new.images == old.images
        assert name_accuracy(new.target, new.metadata) == 1
        back = dict(zip(new.metadata["cast"], old.metadata["cast"], strict=True))
        assert [
            " ".join(back.get(w.strip("."), w.strip(".")) for w in message.text.split())
            for message in new.messages
        ] == [" ".join(w.strip(".") for w in m.text.split()) for m in old.messages]
    assert any(
        old.metadata["cast"] != new.metadata["cast"]
        for old, new in zip(stories, made, strict=False)
    )
