"""Readers and scores of captions, boxes, short answers and several images: layouts, bad files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import Scorer, estimate, measure
from polyptych.evaluation.scoring.boxes import box_scorer, read_box
from polyptych.evaluation.scoring.choice import grouped_choice_scorer
from polyptych.evaluation.scoring.groups import mean_over_groups
from polyptych.evaluation.scoring.short_answer import (
    exact_scorer,
    first_number,
    first_sentence,
    gqa_answer,
)
from polyptych.evaluation.scoring.yes_no import read_judgement, statement_scorer
from polyptych.evaluation.task import prompt_text
from polyptych.evaluation.tasks import captions, mirb, refcoco
from polyptych.evaluation.tasks.catalog import BENCHMARKS, load_task
from polyptych.evaluation.tasks.interleaving import interleaved_example
from polyptych.evaluation.tasks.mantis_eval import final_answer, mantis_scorer
from polyptych.schema import Example, ImageBlock, ImageRef, Message, Prediction, TextBlock


def example(identity: str, reference: str, *, choices: Sequence[str] = (), **metadata) -> Example:
    message = Message("user", (TextBlock("?"),))
    return Example(
        identity, (message,), references=(reference,), choices=tuple(choices), metadata=metadata
    )


def values(scorer: Scorer, items: Sequence[tuple[Example, str]]) -> dict[str, float]:
    predictions = [Prediction(item.id, answer) for item, answer in items]
    measured = measure([scorer], [item for item, _ in items], predictions)
    return {m.name: estimate(m, resamples=20).value for m in measured}


def drawn(name: str, folder: Path) -> Path:
    benchmark = BENCHMARKS[name]
    assert benchmark.sample is not None
    benchmark.sample(benchmark.root(folder))
    return benchmark.root(folder)


# Interleaving.


def test_images_stand_where_their_places_are() -> None:
    images = [ImageRef(f"{n}.png") for n in range(3)]
    made = interleaved_example("1", "Is <image> as <image>?", images, "here", metadata={})
    assert prompt_text(made.messages) == "<image>Is <image> as <image>?"
    assert made.images == tuple(images)
    made = interleaved_example("1", "Which?", images[:2], "here", metadata={})
    assert made.messages[0].content == (ImageBlock(), ImageBlock(), TextBlock("\nWhich?"))
    with pytest.raises(PolyptychError, match=r"here: 2 <image> in the text but 1 image"):
        interleaved_example("1", "<image> <image>", images[:1], "here", metadata={})


# Scores, worked out by hand.


def test_gqa_is_an_exact_match_after_small_letters_and_periods() -> None:
    assert gqa_answer("Yes..") == "yes"
    items = [
        (example("1", "dog", kind="open"), "The dog"),
        (example("2", "no", kind="binary"), "No."),
    ]
    found = values(exact_scorer("official", "kind"), items)
    assert found == {
        "accuracy[official]": 0.5,
        "accuracy.open[official]": 0,
        "accuracy.binary[official]": 1,
    }
    assert values(exact_scorer("fixed"), items) == {"accuracy[fixed]": 1}


@pytest.mark.parametrize(
    ("answer", "said"),
    [("Yes.", "yes"), ("TRUE", "yes"), ("false, because", "no"), ("nobody", None), ("", None)],
)
def test_judgements_of_statements(answer: str, said: str | None) -> None:
    assert read_judgement(answer) == said


def test_consistency_needs_every_pair_of_a_sentence() -> None:
    items = [
        (example("t-0-0-0", "yes", sentence="0-0"), "yes"),
        (example("t-0-1-0", "no", sentence="0-0"), "True"),
        (example("t-1-0-0", "no", sentence="1-0"), "no"),
        (example("t-1-1-0", "no", sentence="1-0"), "No, it is not"),
    ]
    assert values(statement_scorer(), items) == {
        "accuracy[fixed]": 0.75,
        "consistency[fixed]": 0.5,
        "unreadable[fixed]": 0,
    }


def test_means_over_groups_count_groups_alike() -> None:
    items = [(example(str(n), "A", choices="xy", sub_task="s"), "A") for n in range(3)]
    items.append((example("9", "A", choices="xy", sub_task="t"), "B"))
    found = values(grouped_choice_scorer("fixed", "sub_task"), items)
    assert found["mean_accuracy[fixed]"] == 0.5
    assert found["accuracy[fixed]"] == 0.75
    assert found["accuracy.s[fixed]"] == 1


def test_a_group_that_is_not_drawn_leaves_its_weight_to_the_others() -> None:
    measured = mean_over_groups("m", ["1", "2", "3"], [1, 0, 1], ["a", "a", "b"], {"a": 1, "b": 3})
    rows = measured.statistics
    assert measured.aggregate(rows.sum(0)) == pytest.approx((0.5 + 3) / 4)
    assert measured.aggregate(rows[:2].sum(0)) == 0.5
    assert np.isnan(measured.aggregate(np.zeros(4)))


@pytest.mark.parametrize(
    ("name", "answer", "truth", "right"),
    [
        ("count", "There are 12 dogs.", "12", True),
        ("count", "Three", "3", True),
        ("count", "three dogs", "3", False),
        ("analogy", "Yes, it is", "Yes", True),
        ("analogy", "Maybe", "no", True),
        ("analogy", "Maybe", "other", False),
        ("sightseeing", "It is Paris, France.", "paris", True),
        ("food", "b\nbecause", "B", True),
        ("food", "(B)", "B", False),
        ("arxiv", "A Title.", "a title", True),
    ],
)
def test_mirb_reads_as_its_script_does(name: str, answer: str, truth: str, right: bool) -> None:
    assert mirb.is_right(name, answer, truth) is right


def test_mirb_parts() -> None:
    assert first_sentence(".5 is it. No") == ".5 is it. No"  # a period in front ends nothing
    assert first_number("") == ""
    assert sum(mirb.weights(mirb.GROUP_OF).values()) == pytest.approx(len(mirb.GROUPS))
    assert mirb.weights(["count", "food", "count", "attribute"]) == {
        "attribute": 0.5,
        "count": 0.5,
        "food": 1,
    }
    items = [
        (example(f"{name}-0", "Yes", set=name), "yes" if name == "analogy" else "no")
        for name in mirb.GROUP_OF
    ]
    found = values(mirb.score_mirb, items)
    assert found["mean_accuracy[released]"] == pytest.approx(1 / 4 / 4)


@pytest.mark.parametrize(
    ("answer", "released", "fixed"),
    [
        ("B", True, True),
        ("(b) two", True, True),
        ("Final Answer: B", True, True),
        ("The answer is B", False, True),  # its first letter is T, and no option
        ("a dog", False, False),  # its first letter is A
        ("two", True, True),
        ("", False, False),
    ],
)
def test_mantis_choices(answer: str, released: bool, fixed: bool) -> None:
    item = example("1", "B", choices=("one", "two"), kind="multi-choice")
    assert values(mantis_scorer("released"), [(item, answer)])["accuracy[released]"] == released
    assert values(mantis_scorer("fixed"), [(item, answer)])["accuracy[fixed]"] == fixed


def test_mantis_short_answers() -> None:
    assert final_answer("I see. FINAL ANSWER: 3 dogs") == "3 dogs"
    item = example("1", "3 dogs", kind="short-answer")
    said = "Two and one. Final Answer: three dogs."
    assert values(mantis_scorer("released"), [(item, said)])["accuracy[released]"] == 0
    assert values(mantis_scorer("fixed"), [(item, said)])["accuracy[fixed]"] == 1


def test_boxes_out_of_range_and_nan_are_counted() -> None:
    def item(identity: str) -> Example:
        return example(identity, "", box=(0, 0, 100, 100), width=200, height=200)

    said = ["[0, 0, 0.5, 0.5]", "[0, 0, 100, 100]", "[nan, 0, 0.5, 0.5]", "[0.5, 0.5, 0, 0]"]
    found = values(box_scorer(), [(item(str(n)), text) for n, text in enumerate(said)])
    assert found["accuracy@0.5[square]"] == 0.25
    assert found["out_of_range[square]"] == 0.25
    assert found["unreadable[square]"] == 0.5
    assert read_box("[NaN, NaN, NaN, NaN]") is None


# Files.


def test_captions_are_found_in_both_forms(tmp_path: Path) -> None:
    layout = captions.SETS["coco_caption"]
    row = {"image_id": 5, "image": "COCO_val2014_000000000005.jpg", "text": "Describe it."}
    (tmp_path / layout.questions).write_text(json.dumps(row) + "\n")
    karpathy = [{"filename": row["image"], "cocoid": 5, "sentences": [{"raw": "a dog"}]}]
    coco = {
        "annotations": [{"image_id": 9, "caption": "a dog"}],
        "images": [{"id": 9, "file_name": row["image"]}],
    }
    for name, content in [
        ("dataset_coco.json", {"images": karpathy}),
        ("captions_val2014.json", coco),
    ]:
        (tmp_path / name).write_text(json.dumps(content))
        assert captions.read_captions(layout, tmp_path)[0].references == ("a dog",)
        (tmp_path / name).unlink()


def test_boxes_are_the_same_in_both_layouts(tmp_path: Path) -> None:
    row = {"obj_id": 3, "image": "a.jpg", "text": refcoco.REQUEST.format("the dog")}
    (tmp_path / "llava_refcoco_val.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    boxes = {
        "annotations": [{"id": 3, "image_id": 1, "bbox": [10, 20, 31, 20.5]}],
        "images": [{"id": 1, "width": 40, "height": 80}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(boxes))
    found = refcoco.read_refcoco("refcoco", tmp_path)
    assert [e.id for e in found] == ["3", "3#2"]
    assert found[0].metadata["box"] == (10, 20, 40, 40.5)  # the border cuts what lies beyond it
    whole = {"image": "x/a.jpg", "sent": "the dog", "bbox": [10, 20, 40, 40.5]}
    (tmp_path / "refcocog_val.jsonl").write_text(json.dumps(whole | {"width": 40, "height": 80}))
    (same,) = refcoco.read_refcoco("refcocog", tmp_path)
    assert (same.messages, same.images) == (found[0].messages, found[0].images)
    assert same.metadata["box"] == found[0].metadata["box"]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "gqa",
            "data/testdev_balanced_questions.json",
            '"answer"',
            '"a"',
            "'00000000'.*'answer' mu",
        ),
        ("gqa", "llava_gqa_testdev_balanced.jsonl", '"00000003"', '"3x"', "'3x'.*no answer to it"),
        (
            "aokvqa",
            "aokvqa_v1p0_val.json",
            '"correct_choice_idx": ',
            '"correct_choice_idx": 4',
            "4",
        ),
        ("aokvqa", "llava_aokvqa_val.jsonl", '"drawn0001"', '"drawn9"', "'drawn9'.*: not in"),
        (
            "coco_caption",
            "coco_karpathy_test_gt.json",
            '"caption"',
            '"c"',
            "image '1': a caption must be a text, got None",
        ),
        (
            "coco_caption",
            "llava_coco_cap_karpathy_test.jsonl",
            ": 2,",
            ": 1,",
            "image_id '1' occurs",
        ),
        (
            "flickr30k_caption",
            "dataset_flickr30k.json",
            '"raw"',
            '"r"',
            "image '0': a caption must be a text, got None",
        ),
        ("refcoco", "instances.json", '"id": 100,', '"id": 9,', "obj_id '100'.*no annotation"),
        (
            "refcoco",
            "instances.json",
            "87.8",
            "NaN",
            "annotation '100': expected a number, got nan",
        ),
        ("refcoco", "instances.json", '"width": 176', '"width": 50', r"line 1 .*'100'.*not inside"),
        ("refcoco_plus", "refcoco+_val.jsonl", '"bbox": [', '"bbox": [1, ', "line 1: 'bbox' must"),
        (
            "sam_vist",
            "annotations.json",
            '"output"',
            '"out"',
            "record 1: missing or wrong 'output'",
        ),
        (
            "nlvr2",
            "data/test1.json",
            '"True"',
            '"Yes"',
            "line 1 .*must be True or False, got 'Yes'",
        ),
        ("nlvr2", "data/test1.json", "test1-0-1-0", "test1-0-1", "line 2 .*has the form SPLIT-SET"),
        ("nlvr2", "data/test1.json", "test1-0-1-0", "test1-0-0-0", "line 2.*occurs twice"),
        (
            "mirb",
            "count.json",
            '"images"',
            '"imgs"',
            "count.json record 0: 'images' must be a list",
        ),
        (
            "mirb",
            "food.json",
            '"answers": "',
            '"answers": ["x"], "b": "',
            "record 0: 'answers' must",
        ),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, file: str, old: str, new: str, message: str
) -> None:
    path = drawn(name, tmp_path) / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(PolyptychError, match=message) as caught:
        list(load_task(name, tmp_path).load())
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part", "column", "value", "message"),
    [
        (
            "blink",
            "Counting/val",
            "answer",
            "(E)",
            r"row 1 .*'val_Counting_1'.*'E' is no letter of 4",
        ),
        ("blink", "Jigsaw/val", "idx", "val_Jigsaw_2", "'val_Jigsaw_2' occurs twice"),
        (
            "muirbench",
            "data/test",
            "answer",
            "Z",
            r"row 1 \(idx '0'\): the answer 'Z' is no letter",
        ),
        ("muirbench", "data/test", "image_list", [], "3 <image> in the text but 0 image"),
        ("mantis_eval", "mantis_eval/test", "question_type", "x", "must be multi-choice or short"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, name: str, part: str, column: str, value: object, message: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = drawn(name, tmp_path) / f"{part}-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(PolyptychError, match=message):
        list(load_task(name, tmp_path).load())


def test_tables_that_are_none(tmp_path: Path) -> None:
    root = drawn("muirbench", tmp_path)
    path = root / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PolyptychError, match=r"cannot read .*test-00000"):
        list(load_task("muirbench", tmp_path).load())
    path.unlink()
    with pytest.raises(PolyptychError, match=r"data: no test-\*\.parquet there"):
        list(load_task("muirbench", tmp_path).load())
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"idx": ["1"]}), path)
    with pytest.raises(PolyptychError, match=r"missing column.*answer, image_list"):
        list(load_task("muirbench", tmp_path).load())


def test_mirb_asks_as_published(tmp_path: Path) -> None:
    root = drawn("mirb", tmp_path)
    records = read_json(root / "count.json")
    records[1]["images"] = records[1]["images"][0]  # one image may stand without a list
    (root / "count.json").write_text(json.dumps(records), "utf-8")
    examples = {example.id: example for example in load_task("mirb", tmp_path).load()}
    asked = prompt_text(examples["count-0"].messages)
    assert (
        asked == f"Answer with a single number.\n<image><image><image>\n{records[0]['questions']}"
    )
    assert [image.path for image in examples["count-1"].images] == [
        str(root / records[1]["images"])
    ]


def test_mantis_options_keep_the_letters_they_have(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = drawn("mantis_eval", tmp_path) / "mantis_eval" / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1]["options"] = ["A. red", "(B) blue", "green"]
    rows[1]["question"] = "Which?"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    example = list(load_task("mantis_eval", tmp_path).load())[1]
    assert example.choices == ("red", "blue", "green")
    assert prompt_text(example.messages).startswith(
        "<image><image>\nWhich?\n A. red\n (B) blue\n (C) green\nAnswer with"
    )


@pytest.mark.parametrize("name", ["blink", "mirb", "sam_aesop"])
def test_an_empty_folder_is_said(tmp_path: Path, name: str) -> None:
    BENCHMARKS[name].root(tmp_path).mkdir(parents=True)
    with pytest.raises(PolyptychError, match=str(BENCHMARKS[name].root(tmp_path))):
        list(load_task(name, tmp_path).load())
