"""The published DEMON scorer: its recorded runs, and the libraries it is made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.evaluation.demon import released
from polyptych.evaluation.demon.released import ReleasedCrash

RUNS = range(12)


@pytest.fixture(scope="session")
def golden(shared_dir: Path) -> dict[str, Any]:
    path = shared_dir / "golden" / "cheetah" / "scorer_golden.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.shared_data
def test_there_are_twelve_recorded_runs(golden: dict[str, Any]) -> None:
    assert len(golden["cases"]) == len(RUNS)


@pytest.mark.shared_data
@pytest.mark.parametrize("number", RUNS)
def test_a_recorded_run_is_repeated_to_the_last_digit(golden: dict[str, Any], number: int) -> None:
    case = golden["cases"][number]
    if "stderr_last" in case:
        with pytest.raises(ReleasedCrash) as crash:
            released.score_files(case["core"], case["pred"])
        assert str(crash.value) == case["stderr_last"]
    elif "eval" in case:
        written = released.score_files(case["core"], case["pred"])
        assert written == {"eval": case["eval"], "eval_score": case["eval_score"]}
    else:
        assert case["stdout"] == "Dataset not supported"
        assert released.score_files(case["core"], case["pred"]) is None


@pytest.mark.shared_data
def test_recorded_means_of_categories(golden: dict[str, Any]) -> None:
    for case in golden["category_mean"]:
        values = [value for row in case["inputs"] for value in row.values()]
        assert released.category_mean(values) == next(iter(case["output"].values()))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The CAT, sat; on (the) mat!", "the cat sat on the mat"),
        ("a well-known fact", "a well known fact"),
        ("a well - known fact", "a well  known fact"),
        ("one-two 1,000", "onetwo 1000"),
        ("3.50 is not 3.", "3.50 is not 3"),
        ("'quoted'\n", "quoted"),
        ("." * 40 + "x", "." * 8 + "x"),
        ("it's 5:00 & #1", "it's 5:00 & #1"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert released.normalize(text) == normal


def test_quirks_that_cost_or_give_points() -> None:
    sun, oxygen = ("Sun", "Oxygen"), ("0", "1", "4")
    assert released.choice_is_right("", "Sun", sun)  # nothing said: the first choice
    assert not released.choice_is_right("B", "Oxygen", sun)
    assert not released.choice_is_right("The answer is 4", "4", oxygen)
    assert released.choice_is_right("4", "4", oxygen)  # no token at all: equality decides
    assert released.choice_is_right("Yes", "True", ("True", "False"))
    assert not released.choice_is_right("No", "False", ("True", "False"))
    assert released.choice_is_right("hydrogen carbon", "Hydrogen", ("Hydrogen", "Carbon"))
    assert released.overlap("the dog", "the the the dog dog") == pytest.approx(1)
    assert released.image_is_right("Image an image", "Image A")
    assert not released.image_is_right("The answer is Image B", "Image B")


@pytest.mark.parametrize(
    ("rule", "answer", "reference", "choices", "line"),
    [
        ("rouge_l", "x", "...", (), "AssertionError"),
        ("rouge_l", "." * 60, "dots", (), "ValueError: Hypothesis is empty."),
        ("text_choice", "x", "z", ("x", "y"), "AssertionError"),
    ],
)
def test_where_the_published_script_stops(
    rule: Any, answer: str, reference: str, choices: tuple[str, ...], line: str
) -> None:
    with pytest.raises(ReleasedCrash) as crash:
        released.score_item(rule, answer, reference, choices)
    assert str(crash.value) == line


def vectors_of(texts: list[str]) -> np.ndarray:
    """TF-IDF by its formula, as matrices: ``(texts, terms)``, rows of length one."""
    terms = sorted({t for text in texts for t in released._TOKEN.findall(text)})
    counts = np.array(
        [[released._TOKEN.findall(text).count(term) for term in terms] for text in texts], float
    )
    idf = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    weighted = counts * idf
    lengths = np.linalg.norm(weighted, axis=1, keepdims=True)
    return weighted / np.where(lengths == 0, 1, lengths)


words = st.lists(st.sampled_from(["red", "ball", "cat", "dog", "a", "7", "on"]), max_size=6).map(
    " ".join
)


@given(answer=words, choices=st.lists(words, min_size=1, max_size=5))
def test_nearest_choice_is_the_greatest_cosine(answer: str, choices: list[str]) -> None:
    found = released.nearest_choice(answer, choices)
    if not any(released._TOKEN.search(text) for text in (answer, *choices)):
        assert found is None
        return
    vectors = vectors_of([answer, *choices])
    similarity = vectors[1:] @ vectors[0]
    assert found is not None
    assert similarity[found] == pytest.approx(similarity.max())
    assert not (similarity[:found] > similarity[found] - 1e-12).any(), "the first of equals"


def test_a_tie_by_the_order_of_words_goes_to_the_first() -> None:
    one = "the western organ has more stops than the wurlitzer organ"
    two = "the wurlitzer organ has more stops than the western organ"
    assert released.nearest_choice(two, [one, two]) == 0


def test_tf_idf_by_hand() -> None:
    """Two texts with ``red`` and one with ``ball`` of three: idf ln(4/3) + 1 and ln(4/2) + 1."""
    red, ball = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    texts = ["red", "red ball", "cat"]
    assert vectors_of(texts)[0] @ vectors_of(texts)[1] == pytest.approx(red / math.hypot(red, ball))
    assert released.nearest_choice("red", ["cat", "red ball"]) == 1


@settings(max_examples=60)
@given(
    answer=st.lists(st.sampled_from("abcde."), min_size=1, max_size=14).map(" ".join),
    reference=st.lists(st.sampled_from("abcde"), min_size=1, max_size=10).map(" ".join),
)
def test_overlap_is_that_of_the_rouge_package(answer: str, reference: str) -> None:
    rouge = pytest.importorskip("rouge").Rouge()
    normal = released.normalize(answer)
    expected = 0.0
    if normal:
        expected = rouge.get_scores(normal, released.normalize(reference))[0]["rouge-l"]["f"]
    assert released.overlap(answer, reference) == expected
