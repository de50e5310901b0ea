"""Scorers against recorded values of the published scripts, and against cases worked by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Estimate, Scorer, estimate
from polyptych.evaluation.scoring.boxes import Box, box_scorer, in_square, overlap, read_box
from polyptych.evaluation.scoring.choice import (
    READERS,
    choice_scorer,
    choice_value,
    circular_scorer,
    read_choice,
)
from polyptych.evaluation.scoring.vqa_accuracy import (
    normalize_answer,
    textvqa_question,
    vqa_accuracy,
    vqa_scorer,
)
from polyptych.evaluation.scoring.yes_no import (
    mme_scorer,
    pope_scorer,
    read_first_word,
    read_mme,
    read_reference,
)
from polyptych.schema import Example, Message, Prediction, TextBlock


def example(identity: object, references: Sequence[str] = (), **rest: Any) -> Example:
    choices = tuple(rest.pop("choices", ()))
    asked = (Message("user", (TextBlock("?"),)),)
    return Example(str(identity), asked, (), tuple(references), choices, metadata=rest)


def run(scorer: Scorer, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Estimate]:
    predictions = [Prediction(e.id, text) for e, text in zip(examples, answers, strict=True)]
    return {m.name: estimate(m, resamples=50) for m in scorer(examples, predictions)}


def golden(shared_dir: Path, name: str) -> Any:
    return json.loads((shared_dir / "golden" / "camml" / f"scoring_{name}.json").read_text())


# VQA accuracy.


@pytest.mark.shared_data
def test_normalizer_and_accuracy_equal_the_released_ones(shared_dir: Path) -> None:
    data = golden(shared_dir, "vqa")
    for case in data["answer_normaliser"]:
        assert normalize_answer(case["input"]) == case["output"], case
    scores = []
    for case in data["vqa_accuracy"]:
        scores.append(vqa_accuracy(case["pred_answer"], case["gt_answers"]))
        assert scores[-1] == case["score"], case["name"]
        for answer, value in case["unique_answer_scores"].items():
            assert vqa_accuracy(answer, case["gt_answers"]) == value, (case["name"], answer)
    assert sum(scores) / len(scores) == data["vqa_accuracy_mean"]


@pytest.mark.shared_data
def test_textvqa_questions_equal_the_released_ones(shared_dir: Path) -> None:
    for case in golden(shared_dir, "vqa")["textvqa_prompt_to_question"]:
        if isinstance(case["question_or_error"], str):
            assert textvqa_question(case["prompt"]) == case["question_or_error"]
        else:
            with pytest.raises(PolyptychError, match="no question found"):
                textvqa_question(case["prompt"])


@pytest.mark.parametrize(("matches", "value"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
@pytest.mark.parametrize("flavor", ["official", "released"])
def test_accuracy_counts_humans(matches: int, value: float, flavor: Any) -> None:
    humans = ["cat"] * matches + ["dog"] * (10 - matches)
    assert vqa_accuracy("cat", humans, flavor) == pytest.approx(value)


def test_official_compares_as_written_where_humans_agree() -> None:
    assert vqa_accuracy("Cat.", ["cat"] * 10, "official") == 0
    assert vqa_accuracy("Cat.", ["cat"] * 9 + ["dog"], "official") == 1
    assert vqa_accuracy("Cat.", ["cat"] * 10, "released") == 1


def test_official_leaves_case_and_articles_of_human_answers() -> None:
    assert vqa_accuracy("Two", ["two"] * 9 + ["2"], "official") == pytest.approx(0.3)
    assert vqa_accuracy("Two", ["two"] * 9 + ["2"], "released") == 1
    assert normalize_answer("John's car", "official") == "john's car"


def test_grouped_digits_delete_every_mark_in_official() -> None:
    assert normalize_answer("1,000-a", "official") == "1000a"


def test_nine_human_answers_are_an_error_with_the_question() -> None:
    with pytest.raises(PolyptychError, match="'q7' has 9 human answers"):
        run(vqa_scorer("released"), [example("q7", ["cat"] * 9)], ["cat"])


# Yes and no.


@pytest.mark.shared_data
def test_pope_equals_the_released_script(shared_dir: Path) -> None:
    for case in golden(shared_dir, "pope"):
        assert [read_reference(text) for text in case["texts"]] == case["parsed"]
        texts = case["texts"][: len(case["labels"])]  # it pairs by order and drops what is left
        items = [example(i, [label], category="a") for i, label in enumerate(case["labels"])]
        scores = run(pope_scorer("reference"), items, texts)
        if "error" in case:  # it divides by zero
            assert np.isnan(scores["precision[reference]"].value)
            assert scores["recall[reference]"].value == scores["f1[reference]"].value == 0
            continue
        for ours, theirs in [
            ("accuracy", "Accuracy"),
            ("precision", "Precision"),
            ("recall", "Recall"),
            ("f1", "F1 score"),
            ("mean_f1", "F1 score"),
        ]:
            assert scores[f"{ours}[reference]"].value == pytest.approx(case[theirs], abs=1e-15)
        if len(texts) == len(case["texts"]):
            assert scores["yes_ratio[reference]"].value == case["Yes ratio"]


def test_reference_reads_yes_where_strict_reads_nothing() -> None:
    for answer in ("", "NO", "Nope", "maybe"):
        assert read_reference(answer) == "yes"
    assert [read_first_word(a) for a in ("", "NO", "Nope", " yes, no", "**No**", "I see yes")] == [
        None,
        "no",
        None,
        "yes",
        "no",
        None,
    ]


def test_an_answer_that_says_neither_is_wrong_but_no_yes() -> None:
    items = [example(1, ["yes"], category="a"), example(2, ["no"], category="a")]
    scores = run(pope_scorer("strict"), items, ["perhaps", "perhaps"])
    assert scores["accuracy[strict]"].value == 0
    assert scores["yes_ratio[strict]"].value == 0


def test_mean_f1_is_the_mean_over_categories() -> None:
    truth = ["yes", "no", "yes", "no", "yes", "no"]
    items = [example(i, [t], category="ab"[i >= 2]) for i, t in enumerate(truth)]
    scores = run(pope_scorer("reference"), items, ["yes", "no", "yes", "yes", "no", "no"])
    assert scores["f1[reference]"].value == pytest.approx(4 / 6)  # TP 2, FP 1, FN 1
    assert scores["mean_f1[reference]"].value == pytest.approx((1 + 0.5) / 2)


def test_mme_adds_accuracy_and_both_right() -> None:
    assert [read_mme(a) for a in ("Yes", "No.", "It is no", "nope", "sure")] == [
        "yes",
        "no",
        None,
        "no",
        None,
    ]
    items = [
        example(f"{pair}{truth}", [truth], category=category, pair=pair)
        for pair, category in [("x", "count"), ("y", "count"), ("z", "OCR")]
        for truth in ("yes", "no")
    ]
    parts = {"perception": ("count", "OCR"), "cognition": ("code_reasoning",)}
    scores = run(mme_scorer(parts), items, ["yes", "no", "yes", "yes", "no", "yes"])
    assert scores["perception[official]"].value == pytest.approx(75 + 50 + 0 + 0)
    assert scores["accuracy[official]"].value == pytest.approx(3 / 6)
    assert "cognition[official]" not in scores
    with pytest.raises(PolyptychError, match="'x' of 'count' has 1 question"):
        run(mme_scorer(parts), items[:1], ["yes"])


def test_a_truth_must_be_yes_or_no() -> None:
    with pytest.raises(PolyptychError, match="'1': the truth must be yes or no"):
        run(pope_scorer("strict"), [example(1, ["maybe"], category="a")], ["yes"])


# Multiple choice.


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("script", "flavor"),
    [
        ("eval_science_qa", "answer_is_released"),
        ("eval_science_qa_15", "letter_released"),
        ("eval_science_qa_new", "answer_released"),
    ],
)
def test_letters_equal_the_three_released_scripts(
    shared_dir: Path, script: str, flavor: Any
) -> None:
    data = golden(shared_dir, "scienceqa")
    recorded = data[script]
    for line in data["predictions"]:
        identity = line["question_id"]
        letter = READERS[flavor](line["text"])
        assert (letter or "FAILED") == recorded["parsed"][identity], line
        problem = data["problems"][identity]
        value = choice_value(line["text"], problem["choices"], problem["answer"], flavor)
        if flavor == "letter_released":
            assert value == (identity in recorded["correct_ids"])
        elif value in (0.0, 1.0):  # parsed; the rest is drawn without a seed
            assert bool(value) == (identity in recorded["correct_ids"])
        else:
            assert value == 1 / len(problem["choices"])


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B. blue", 1),
        ("Option B", 1),
        ("The answer is B.", 1),
        ("blue", 1),
        ("It is blue.", 1),
        ("答案是B", 1),
        ("选B。", 1),
        ("\uff08B\uff09", 1),
        ("\uff22", 1),
        ("B、蓝色", 1),
        ("D", None),
        ("", None),
        ("red or blue", None),
        ("A blue one", 1),
    ],
)
def test_fixed_reads_what_an_answer_means(answer: str, index: int | None) -> None:
    assert read_choice(answer, ["red", "blue", "green"]) == index


def test_groups_and_rotations() -> None:
    items = [
        example("1", ["A"], choices=["x", "y"], kind="img", question="1"),
        example("1-1", ["B"], choices=["y", "x"], kind="img", question="1"),
        example("2", ["B"], choices=["x", "y"], kind="txt", question="2"),
    ]
    scores = run(choice_scorer("fixed", "kind"), items, ["A", "A", "B"])
    assert scores["accuracy[fixed]"].value == pytest.approx(2 / 3)
    assert scores["accuracy.img[fixed]"].value == 0.5
    assert scores["accuracy.txt[fixed]"].value == 1
    assert scores["accuracy.img[fixed]"].count == 2
    circular = run(circular_scorer("fixed"), items, ["A", "A", "B"])
    assert circular["circular_accuracy[fixed]"].value == 0.5
    assert circular["circular_accuracy[fixed]"].count == 2


def test_a_truth_must_be_a_letter_of_an_option() -> None:
    with pytest.raises(PolyptychError, match="one letter of 2 options"):
        run(choice_scorer("fixed"), [example(1, ["C"], choices=["x", "y"])], ["A"])


# Boxes.


def test_boxes_are_compared_in_the_padded_square() -> None:
    assert in_square(Box(10, 0, 40, 50), 50, 100) == Box(0.35, 0.0, 0.65, 0.5)
    assert overlap(Box(0, 0, 2, 1), Box(1, 0, 3, 1)) == pytest.approx(1 / 3)
    assert overlap(Box(0, 0, 1, 1), Box(2, 2, 3, 3)) == 0


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", Box(0.1, 0.2, 0.3, 0.4)),
        ("It is at (0,0,.5,1).", Box(0, 0, 0.5, 1)),
        ("[0.3, 0.2, 0.1, 0.4]", None),
        ("[0.1, 0.2, 0.3]", None),
        ("[nan, 0, 1, 1]", None),
        ("", None),
    ],
)
def test_boxes_are_read_from_text(answer: str, box: Box | None) -> None:
    assert read_box(answer) == box


def test_box_accuracy() -> None:
    whole = example(1, box=[0, 0, 100, 50], width=100, height=50)
    items = [whole, example(2, **whole.metadata), example(3, **whole.metadata)]
    answers = ["[0, 0.25, 1, 0.75]", "[0, 0, 1, 1]", "the left one"]
    scores = run(box_scorer(), items, answers)
    assert scores["accuracy@0.5[square]"].value == pytest.approx(2 / 3)  # 1/2 is enough
    assert scores["mean_iou[square]"].value == pytest.approx(0.5)
    assert scores["unreadable[square]"].value == pytest.approx(1 / 3)
    for bad in ([0, 0, 101, 50], [5, 0, 5, 50], [0, 0, float("nan"), 50]):
        with pytest.raises(PolyptychError, match=r"box '9'.*not inside an image of 100 x 50"):
            run(box_scorer(), [example(9, box=bad, width=100, height=50)], ["[0, 0, 1, 1]"])


@pytest.mark.slow
def test_a_hundred_thousand_answers_take_under_twenty_seconds() -> None:
    generator = np.random.default_rng(0)
    words = [f"the {a} {b}." for a in ["red", "blue", "big", "old"] for b in ["cat", "dog", "car"]]
    humans = generator.choice(words, size=(100_000, 10))
    started = time.perf_counter()
    for row in humans.tolist():
        vqa_accuracy(row[0], row)
    assert time.perf_counter() - started < 20
