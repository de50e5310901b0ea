"""Scorers: equal to the metrics they resample, strict about ids, honest about what counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.metrics import compute
from polyptych.evaluation.scorers import caption_scorer, compare, estimate, item_scorer, measure
from polyptych.evaluation.tasks.storybook import SCORERS, storybook_task
from polyptych.schema import Example, Message, Prediction, TextBlock

REFERENCES = (
    ("a red ball is in every picture", "every picture shows a red ball"),
    ("the dog sleeps under the tree", "a dog is sleeping under a tree"),
    ("mia runs on the beach", "on the beach mia is running"),
)
ANSWERS = (
    "every picture shows a ball",
    "a dog is sleeping under the tree",
    "mia runs on the beach",
)


def example(index: int, **metadata: object) -> Example:
    message = Message("user", (TextBlock("what is it?"),))
    return Example(str(index), (message,), references=REFERENCES[index], metadata=metadata)


EXAMPLES = [example(index) for index in range(3)]
PREDICTIONS = [Prediction(str(index), answer) for index, answer in enumerate(ANSWERS)]


def test_caption_estimates_equal_the_metrics() -> None:
    names = ("cider", "bleu", "rouge_l", "rouge_l[rouge]", "cider[sam]", "bleu_4[sam]")
    wanted = {s.name: s for s in compute(names, ANSWERS, REFERENCES, ["0", "1", "2"])}
    found = {m.name: estimate(m) for m in measure([caption_scorer(*names)], EXAMPLES, PREDICTIONS)}
    assert list(found) == list(wanted)
    for name, score in found.items():
        assert score.value == pytest.approx(wanted[name].value, abs=1e-12)
        assert score.count == 3
        assert score.interval.low <= score.value <= score.interval.high
        if name.startswith("bleu"):
            assert score.per_item is None
        else:
            assert score.per_item == pytest.approx(wanted[name].per_item)


def test_a_resample_of_bleu_is_bleu_of_the_resample() -> None:
    (measured,) = measure([caption_scorer("bleu_2")], EXAMPLES, PREDICTIONS)
    drawn = [2, 0, 0]
    (wanted,) = compute(["bleu_2"], [ANSWERS[i] for i in drawn], [REFERENCES[i] for i in drawn])
    value = measured.aggregate(measured.statistics[drawn].sum(0))
    assert value == pytest.approx(wanted.value, abs=1e-12)


def test_items_that_do_not_count_change_neither_value_nor_count() -> None:
    examples = [example(0, truth=1.0), example(1), example(2, truth=0.0)]
    scorer = item_scorer("truth[test]", lambda text, metadata: metadata.get("truth"))
    score = estimate(measure([scorer], examples, PREDICTIONS)[0])
    assert (score.value, score.count, score.per_item) == (0.5, 2, {"0": 1.0, "2": 0.0})


def test_comparison_is_signed_and_refuses_other_items() -> None:
    right = item_scorer("right[test]", lambda text, metadata: bool(text))
    (first,) = measure([right], EXAMPLES, PREDICTIONS)
    silent = [*PREDICTIONS[:2], Prediction("2", "")]
    (second,) = measure([right], EXAMPLES, silent)
    difference = compare(first, second)
    assert difference.value == pytest.approx(1 / 3)
    assert difference.interval == (0.0, 1.0)
    (fewer,) = measure([right], EXAMPLES[:2], PREDICTIONS[:2])
    with pytest.raises(PolyptychError, match=r"different items \(3 and 2\)"):
        compare(first, fewer)
    (other,) = measure([item_scorer("wrong[test]", lambda t, m: 0.0)], EXAMPLES, PREDICTIONS)
    with pytest.raises(PolyptychError, match=r"cannot compare right\[test\] with wrong\[test\]"):
        compare(first, other)


def test_the_answer_in_the_record_stands_in_for_missing_references() -> None:
    answered = (*EXAMPLES[0].messages, Message("assistant", (TextBlock(ANSWERS[0]),)))
    bare = [dataclasses.replace(EXAMPLES[0], messages=answered, references=())]
    (measured,) = measure([caption_scorer("rouge_l")], bare, PREDICTIONS[:1])
    assert estimate(measured).value == pytest.approx(1)


def test_predictions_are_matched_by_id() -> None:
    scorer = caption_scorer("rouge_l")
    straight, reverse = (
        measure([scorer], EXAMPLES, p)[0] for p in (PREDICTIONS, PREDICTIONS[::-1])
    )
    np.testing.assert_array_equal(straight.statistics, reverse.statistics)
    with pytest.raises(PolyptychError, match="1 of 3 examples have no prediction, first '2'"):
        measure([scorer], EXAMPLES, PREDICTIONS[:2])
    with pytest.raises(PolyptychError, match="two predictions have the id '0'"):
        measure([scorer], EXAMPLES, [*PREDICTIONS, PREDICTIONS[0]])
    with pytest.raises(PolyptychError, match="1 of 3 predictions are for unknown examples"):
        measure([scorer], EXAMPLES[:2], PREDICTIONS)


@pytest.mark.parametrize("name", SCORERS)
def test_references_are_right_answers_of_every_storybook_task(name: str) -> None:
    task = storybook_task(name, count=4, seed=3, size=24)
    examples = list(task.load())
    assert task.name == f"storybook/{name}"
    assert [e.id for e in examples] == [e.id for e in task.load()]
    answers = [Prediction(e.id, e.references[0]) for e in examples]
    scores = {m.name: estimate(m).value for m in measure(task.scorers, examples, answers)}
    judged = {name: value for name, value in scores.items() if "[storybook]" in name}
    assert judged == dict.fromkeys(judged, 1.0)
    silent = [Prediction(e.id, "") for e in examples]
    scores = {m.name: estimate(m).value for m in measure(task.scorers, examples, silent)}
    assert max(scores.values()) < 1e-6


def test_unknown_storybook_task_is_refused() -> None:
    with pytest.raises(
        PolyptychError, match="no Storybook task 'colouring' to score; known: group"
    ):
        storybook_task("colouring", count=1)
