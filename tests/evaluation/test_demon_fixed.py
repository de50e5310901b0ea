"""DEMON's mended scorer: which choice an answer means, and that nothing is given away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyptych.evaluation.demon import fixed
from polyptych.evaluation.demon.answers import match_choice, match_image
from polyptych.evaluation.demon.catalog import DATASETS

ELEMENTS = ("Sun", "Oxygen", "Hydrogen", "Carbon")
TRUTH = ("True", "False")
COLORS = ("red", "dark red", "blue")
BOY = "keep it up boy , we ' re making good time ! "
NUMBERS = ("0", "1", "2", "3", "4")
ORGANS = (
    "the Wurlitzer organ has more stops than the Western organ",
    "the Western organ has more stops than the Wurlitzer organ",
)


BY_LABEL = [
    ("B", ELEMENTS, "Oxygen"),
    ("(c).", ELEMENTS, "Hydrogen"),
    ("Option D", ELEMENTS, "Carbon"),
    ("B: oxygen", ELEMENTS, "Oxygen"),
    ("B is the correct answer.", ELEMENTS, "Oxygen"),
    ("The correct option is (a).", ELEMENTS, "Sun"),
]

BY_WORDS = [
    # texts
    ("Oxygen", ELEMENTS, "Oxygen"),
    ("HYDROGEN!!!", ELEMENTS, "Hydrogen"),
    ("The answer is Oxygen because oxygen is needed", ELEMENTS, "Oxygen"),
    ("It is not the sun, it is carbon.", ELEMENTS, "Carbon"),
    ("the color is dark red", COLORS, "dark red"),
    ("a dog", ("the dog", "a cat"), "the dog"),
    ("keep it up boy", ("ow ! my foot !", BOY), BOY),
    ("C++", ("C", "C++"), "C++"),
    # their own letters
    ("b", ("a", "b"), "b"),
    ("C", ("B. Sun", "C. Oxygen"), "C. Oxygen"),
    ("oxygen", ("B. Sun", "C. Oxygen"), "C. Oxygen"),
    # numbers
    ("4", NUMBERS, "4"),
    ("The answer is 4", NUMBERS, "4"),
    ("There are four of them.", NUMBERS, "4"),
    ("I see one dress and 3 tops, so the answer is 3.", NUMBERS, "3"),
    ("1000", ("1,000 men", "2,000 men"), "1,000 men"),
    ("19686", ("99- 19686", "99-19688"), "99- 19686"),
    ("-5", ("5", "-5"), "-5"),
    # yes and no
    ("Yes", TRUTH, "True"),
    ("No", TRUTH, "False"),
    ("False, they are not true", TRUTH, "False"),
    ("I don't think it is true.", TRUTH, "False"),
    ("It is not false", TRUTH, "True"),
    ("true", ("Yes", "No"), "Yes"),
    # order of words
    ("Western organ has more stops than Wurlitzer organ", ORGANS, ORGANS[1]),
    ("the Wurlitzer one has more stops than the Western", ORGANS, ORGANS[0]),
]


@pytest.mark.parametrize(("answer", "choices", "meant"), BY_LABEL + BY_WORDS)
def test_what_an_answer_means(answer: str, choices: tuple[str, ...], meant: str) -> None:
    found = match_choice(answer, choices)
    assert found is not None
    assert choices[found] == meant


@pytest.mark.parametrize(("answer", "choices", "meant"), BY_WORDS)
def test_the_order_of_choices_does_not_matter(
    answer: str, choices: tuple[str, ...], meant: str
) -> None:
    found = match_choice(answer, choices[::-1])
    assert found is not None
    assert choices[::-1][found] == meant


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ("", ELEMENTS),
        ("   \n", ELEMENTS),
        ("...", ELEMENTS),
        ("I do not know", ELEMENTS),
        ("the", ELEMENTS),
        ("hydrogen carbon", ELEMENTS),
        ("Both A and B", ELEMENTS),
        ("E", ELEMENTS),
        ("A: oxygen", ELEMENTS),
        ("not the sun", ELEMENTS),
        ("The answer is not red", ("red", "blue")),
        ("I am not sure", TRUTH),
        ("True or False", TRUTH),
        ("a giraffe", TRUTH),
        ("seven", NUMBERS),
        ("organ", ORGANS),
    ],
)
def test_answers_that_mean_no_choice(answer: str, choices: tuple[str, ...]) -> None:
    assert match_choice(answer, choices) is None


@given(st.lists(st.sampled_from(["xq", "zw", "vv", "kj", "?", "..."]), max_size=8).map(" ".join))
def test_nothing_is_given_for_unrelated_words(answer: str) -> None:
    for choices in (ELEMENTS, TRUTH, NUMBERS, ORGANS):
        assert match_choice(answer, choices) is None


@given(
    answer=st.text(max_size=60),
    choices=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5),
)
def test_any_text_is_judged_and_always_alike(answer: str, choices: list[str]) -> None:
    found = match_choice(answer, choices)
    assert found is None or 0 <= found < len(choices)
    assert match_choice(answer, choices) == found
    for rule in ("rouge_l", "text_choice", "image_choice"):
        assert 0 <= fixed.score_item(rule, answer, choices[0], choices) <= 1


@given(st.lists(st.sampled_from(ELEMENTS + COLORS), min_size=1, max_size=4, unique=True))
def test_every_choice_names_itself(choices: list[str]) -> None:
    for index, choice in enumerate(choices):
        assert match_choice(choice, choices) == index
        assert match_choice(f"The answer is {choice}.", choices) == index


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Image B", "b"),
        ("image b.", "b"),
        ("The answer is Image B", "b"),
        ("B", "b"),
        ("(B)", "b"),
        ("I would choose B.", "b"),
        ("B is the answer", "b"),
        ("Image-B", "b"),
        ("Image  B", "b"),
        ("Image B and image b", "b"),
        ("In image A a man walks. The answer is image C.", "c"),
        ("image a, not image b", "a"),
        ("Image A: {image#4}", "a"),
        ("Image an image", None),
        ("Image B or Image C", None),
        ("A dog and a cat", None),
        ("Image E", None),
        ("", None),
    ],
)
def test_which_image_is_named(answer: str, letter: str | None) -> None:
    assert match_image(answer, "abcd") == letter


def test_visual_cloze_is_judged_by_images() -> None:
    choices = [f"Image {x}: {{image#{k}}}" for k, x in enumerate("ABCD", 4)]
    rule = DATASETS["RecipeQA_VisualCloze"].rule
    assert fixed.score_item(rule, "Image B", "Image B: {image#5}", choices) == 1
    assert fixed.score_item(rule, "", "Image A: {image#4}", choices) == 0
    assert fixed.score_item(rule, "Image C", "Image A", choices) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("", "the cat", 0),
        ("." * 60, "dots", 0),
        ("The CAT!", "the cat", 1),
        ("the dog", "the the the dog dog", 4 / 7),  # 2 words of 2 and of 5
        ("a b c d", "d c b a", 1 / 4),
        ("well-known, I say", "well known I say", 1),
    ],
)
def test_overlap_counts_words_in_order(answer: str, reference: str, value: Any) -> None:
    assert fixed.score_item("rouge_l", answer, reference, ()) == pytest.approx(value)


def test_equal_choices_are_one() -> None:
    choices = ["same", "Same.", "other"]
    assert fixed.score_item("text_choice", "same", "Same.", choices) == 1
    assert fixed.score_item("text_choice", "other", "same", choices) == 0
