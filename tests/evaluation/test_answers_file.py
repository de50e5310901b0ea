"""Answers made elsewhere: every fault is named with file and id, and only the rest is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.answers_file import Answers, read_answers, same_question
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock


def example(identity: str, **metadata: Any) -> Example:
    content = (ImageBlock(), TextBlock("\nIs it?"))
    image = ImageRef(data=identity.encode())
    return Example(identity, (Message("user", content),), (image,), ("yes",), metadata=metadata)


EXAMPLES = [example(str(number)) for number in range(5)]


def read(folder: Path, *lines: Any, examples: list[Example] | None = None) -> Answers:
    path = folder / "answers.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return read_answers(path, examples or EXAMPLES)


def good(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": str(number), "prediction": "yes"} for number in numbers]


def test_a_whole_file_is_complete_whatever_its_order_and_key_names(tmp_path: Path) -> None:
    answers = read(
        tmp_path,
        *good(4, 3, 2),
        {"question_id": 1, "text": "no", "prompt": "Is it?", "model_id": "x"},
        {"sample_id": "0", "pred_response": "yes"},
    )
    assert answers.complete
    assert answers.problems == []
    assert [p.id for p in answers.predictions] == ["0", "1", "2", "3", "4"]
    assert [p.text for p in answers.predictions] == ["yes", "no", "yes", "yes", "yes"]
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"question_id": n, "answer": "a"} for n in range(5)]))
    assert read_answers(path, EXAMPLES).complete


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"id": "9", "prediction": "x"}, "line 5 (id '9'): the task has no such example"),
        ({"prediction": "x"}, "line 5: no id (id, question_id, sample_id)"),
        ({"id": True, "prediction": "x"}, "line 5: no id"),
        ({"id": "4"}, "line 5 (id '4'): the answer must be a text, got null"),
        ('{"id": "4", "prediction": NaN}', "(id '4'): the answer must be a text, got NaN"),
        ({"id": "4", "prediction": ["yes"]}, "(id '4'): the answer must be a text, got [\"yes\"]"),
        ("[1]", "line 5: expected an object, got list"),
        ("", "line 5: empty, expected a JSON object"),
        ('{"id": "4", "predic', "line 5: not valid JSON"),
        (
            {"id": "4", "prediction": "x", "prompt": "Was it?"},
            "line 5 (id '4'): answers another question: 'Was it?'",
        ),
    ],
)
def test_each_fault_is_named_and_the_rest_is_used(tmp_path: Path, line: Any, problem: str) -> None:
    answers = read(tmp_path, *good(0, 1, 2, 3), line)
    assert [e.id for e in answers.examples] == ["0", "1", "2", "3"]
    assert not answers.complete
    assert problem in answers.problems[0]
    assert str(tmp_path / "answers.jsonl") in answers.problems[0]
    assert answers.problems[-1] == f"{tmp_path / 'answers.jsonl'}: no answer for id '4'"


def test_a_line_that_a_kill_cut_off_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in good(0, 1)) + '{"id": "2", "pr')
    answers = read_answers(path, EXAMPLES[:3])
    assert answers.problems[0].endswith("(a half-written last line)")
    assert len(answers.predictions) == 2


def test_two_answers_to_one_id_count_only_if_they_agree(tmp_path: Path) -> None:
    answers = read(tmp_path, *good(0, 1, 2, 3, 4, 4))
    assert answers.complete
    answers = read(tmp_path, *good(0, 1, 2, 3, 4), {"id": "4", "prediction": "no"})
    (problem,) = answers.problems
    assert "line 6: id '4' has another answer in" in problem
    assert problem.endswith("line 5; neither counts")
    assert [e.id for e in answers.examples] == ["0", "1", "2", "3"]


def test_empty_answers_are_scored_and_told(tmp_path: Path) -> None:
    answers = read(tmp_path, *good(0, 1, 2, 3), {"id": "4", "prediction": " "})
    assert len(answers.predictions) == 5
    (problem,) = answers.problems
    assert "1 answer(s) are empty" in problem


def test_examples_that_are_judged_together_fall_out_together(tmp_path: Path) -> None:
    pairs = [
        example("a#1", pair="a", category="count"),
        example("a#2", pair="a", category="count"),
        example("b#1", pair="b", category="count"),
        example("b#2", pair="b", category="count"),
    ]
    lines = [{"id": name, "prediction": "yes"} for name in ("a#1", "b#1", "b#2")]
    answers = read(tmp_path, *lines, examples=pairs)
    assert [e.id for e in answers.examples] == ["b#1", "b#2"]
    assert "id 'a#1' is left out: its partner 'a#2' has no answer" in answers.problems[-1]
    turns = [
        example("7", task="mmbench_circular", question="7"),
        example("7-1", task="mmbench_circular", question="7"),
        example("8", task="mmbench_circular", question="8"),
    ]
    lines = [{"id": name, "prediction": "A"} for name in ("7", "8")]
    assert [e.id for e in read(tmp_path, *lines, examples=turns).examples] == ["8"]
    same_words = [example("x", task="mm_vet", question="q"), example("y", question="q")]
    lines = [{"id": "x", "prediction": "A"}]
    assert [e.id for e in read(tmp_path, *lines, examples=same_words).examples] == ["x"]


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match=r"no answer to any of 5 examples; first: .* line 1"):
        read(tmp_path, {"id": "of another task", "prediction": "x"})
    with pytest.raises(PolyptychError, match="cannot read"):
        read_answers(tmp_path / "none.jsonl", EXAMPLES)


def test_where_images_stand_may_be_written_in_other_ways() -> None:
    assert same_question("<image>\nIs it?", "Is  it? <image>")
    assert not same_question("Is it?", "Was it?")
