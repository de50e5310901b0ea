"""Reading DEMON's folders: both JSON shapes, placeholders by number, all sorts of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.demon.benchmark import read_benchmark
from polyptych.evaluation.demon.catalog import CATEGORIES, DATASETS, datasets_of, find_dataset
from polyptych.evaluation.demon.loading import choices_in, read_dataset, split_prompt
from polyptych.evaluation.task import prompt_text
from polyptych.schema import ImageBlock, TextBlock
from polyptych.testing import tiny_image


def sample(identity: int = 0, **changes: Any) -> dict[str, Any]:
    """A good sample of TQA with two images; ``changes`` go into it or into its instance."""
    instance = {
        "context": "{image#1} and {image#2}: which gas? ",
        "images_path": ["0.png", "1.png"],
        "choice_list": ["Sun", "Oxygen"],
    }
    record = {"sample_id": identity, "task_instruction_id": 0, "response": "Oxygen"}
    for key, value in changes.items():
        (record if key in record else instance)[key] = value
    return {**record, "task_instance": {k: v for k, v in instance.items() if v is not None}}


def write(
    root: Path, *samples: dict[str, Any], task: str = "TQA", kind: str = "multi-choice"
) -> Path:
    """One task's folder with three images."""
    folder = root / task / "core"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (folder / "images" / f"{number}.png").write_bytes(tiny_image(number).data or b"")
    metadata = {
        "dataset": task,
        "split": "core",
        "num_sample": len(samples),
        "task_instruction": ["Look. ", "See: "],
        "question_type": kind,
    }
    path = folder / "core.json"
    path.write_text(json.dumps({"metadata": metadata, "data": samples}))
    return path


def names(example: Any) -> list[str]:
    return [Path(image.path).name for image in example.images]


def test_the_benchmark_has_31_tasks_29_of_them_in_core() -> None:
    assert len(DATASETS) == 31
    assert len(CATEGORIES) == 7
    core = datasets_of("core")
    assert len(core) == 29
    assert {d.name for d in DATASETS.values()} - {d.name for d in core} == {
        "Gibson",
        "ManyModalQA",
    }
    assert sum(d.core_size or 0 for d in core) == 18176
    assert sum(d.full_size for d in DATASETS.values()) == 450150
    assert {d.category for d in core} == set(CATEGORIES)
    assert all(10 <= d.templates <= 40 for d in DATASETS.values())
    assert find_dataset("nuScenes").name == "nuscenes"
    with pytest.raises(PolyptychError, match="no DEMON task 'COCO'"):
        find_dataset("COCO")
    with pytest.raises(PolyptychError, match="unknown DEMON split 'tiny'"):
        datasets_of("tiny")  # type: ignore[arg-type]


def test_choices_in_a_list_are_put_behind_the_context(tmp_path: Path) -> None:
    write(tmp_path, sample(task_instruction_id=1))
    (example,) = read_dataset(tmp_path, "TQA")
    assert example.id == "TQA-0"
    assert prompt_text(example.prompt) == (
        "See: <image> and <image>: which gas? Choice list:['Sun', 'Oxygen']. Your answer is:"
    )
    assert example.choices == ("Sun", "Oxygen")
    assert example.references == ("Oxygen",)
    assert example.target is None
    assert names(example) == ["0.png", "1.png"]
    assert example.metadata["task"] == "TQA"
    assert example.metadata["category"] == "Knowledge Grounded QA"


def test_choices_in_the_context_are_left_there(tmp_path: Path) -> None:
    context = "{image#1}{image#2}Which?Choice List:['Sun','Oxygen'] Your answer is:"
    write(tmp_path, sample(context=context, choice_list=None))
    (example,) = read_dataset(tmp_path, "TQA")
    assert prompt_text(example.prompt) == (
        "Look. <image><image>Which?Choice List:['Sun','Oxygen'] Your answer is:"
    )
    assert example.choices == ("Sun", "Oxygen")


@pytest.mark.parametrize(
    ("context", "choices"),
    [
        ("Choice List:['0','1','2'] Your answer is:", ["0", "1", "2"]),
        ("Choice List:[0, 1, 2]", [0, 1, 2]),
        ("Choice List:['pete ' s ! ', 'ow ! ']Your answer is: ", ["pete ' s ! ", "ow ! "]),
        ("""choice list: ["it's", 'b'] A:""", ["it's", "b"]),
        ("Choice List:[' Image A: {image#4} ', 'b']", [" Image A: {image#4} ", "b"]),
        ("Choice List:['a [1]', 'b']Answer:", ["a [1]", "b"]),
        ("Choice List:[] Your answer is:", []),
        ("You must choose from the Choice List. Which?", None),
    ],
)
def test_lists_of_choices_as_they_are_written(context: str, choices: list[Any] | None) -> None:
    assert choices_in(context) == choices


def test_images_and_tables_come_by_number_or_in_file_order(tmp_path: Path) -> None:
    context = "Second {image#2}, table {table#3}, first {image#1}."
    write(tmp_path, sample(context=context, images_path=["0.png", "1.png", "2.png"]))
    (numbered,) = read_dataset(tmp_path, "TQA")
    assert names(numbered) == ["1.png", "2.png", "0.png"]
    (released,) = read_dataset(tmp_path, "TQA", order="released")
    assert names(released) == ["0.png", "1.png", "2.png"]
    assert prompt_text(numbered.prompt) == prompt_text(released.prompt)
    with pytest.raises(PolyptychError, match="unknown order 'random'"):
        read_dataset(tmp_path, "TQA", order="random")  # type: ignore[arg-type]


def test_a_prompt_is_cut_at_its_placeholders() -> None:
    blocks, places = split_prompt("{image#1}{image#2} x", 2, "here")
    assert blocks == (ImageBlock(), ImageBlock(), TextBlock(" x"))
    assert places == [0, 1]


@pytest.mark.parametrize(
    ("context", "line"),
    [
        ("{image#1} {image#1}", r"placeholder 1 is repeated: 2 placeholder\(s\) for 2 image\(s\)"),
        ("{image#1} {table#1}", r"placeholder 1 is repeated: 2 placeholder\(s\) for 2 image\(s\)"),
        ("{image#1} x", r"placeholder 2 is missing: 1 placeholder\(s\) for 2 image\(s\)"),
        ("{image#2} x", r"placeholder 1 is missing: 1 placeholder\(s\) for 2 image\(s\)"),
        (
            "{image#1}{image#2}{image#3}",
            r"placeholder 3 is too many: 3 placeholder\(s\) for 2 image\(s\)",
        ),
        ("{image#0}{image#1}{image#2}", r"placeholder 0 is too many: 3 placeholder\(s\)"),
    ],
)
@pytest.mark.parametrize("order", ["numbered", "released"])
def test_wrong_placeholders(tmp_path: Path, context: str, line: str, order: Any) -> None:
    path = write(tmp_path, sample(), sample(5, context=context + " which?"))
    with pytest.raises(PolyptychError, match=rf"^{path} sample 5: {line}"):
        read_dataset(tmp_path, "TQA", order=order)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images_path": ["0.png", "gone.png"]}, r"image 2 of 2 is missing: .*gone\.png"),
        ({"images_path": "0.png"}, "'images_path' must be a list of file names"),
        ({"choice_list": []}, "the list of choices is empty"),
        ({"choice_list": "Sun"}, "'choice_list' must be a list"),
        ({"choice_list": None}, "no 'choice_list', and no \"Choice List"),
        (
            {"choice_list": None, "context": "{image#1}{image#2}?Choice List:[] A:"},
            "the list of choices is empty",
        ),
        ({"response": "Carbon"}, "the answer 'Carbon' is not among the 2 choices"),
        ({"response": None}, "'response' must be a text or a number, got None"),
        ({"response": "..."}, r"'response' has no words: '\.\.\.'"),
        ({"task_instruction_id": 2}, "task_instruction_id 2 for 2 instructions"),
        ({"task_instruction_id": "0"}, "task_instruction_id '0' for 2 instructions"),
        ({"context": None}, "no 'task_instance' with a string 'context'"),
        ({"context": "{image#1}{image#2} <image>"}, "literal <image> in a text"),
    ],
)
def test_a_bad_sample_is_one_line_with_file_and_id(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    path = write(tmp_path, sample(), sample(7, **changes))
    with pytest.raises(PolyptychError, match=rf"^{path} sample 7: {line}") as error:
        read_dataset(tmp_path, "TQA")
    assert "\n" not in str(error.value)


def test_a_sample_that_is_no_object_or_comes_twice(tmp_path: Path) -> None:
    path = write(tmp_path, sample(3), sample(3))
    with pytest.raises(PolyptychError, match=rf"^{path} sample 3: this sample id occurs twice"):
        read_dataset(tmp_path, "TQA")
    path = write(tmp_path, sample(), [])  # type: ignore[arg-type]
    with pytest.raises(PolyptychError, match=rf"^{path} sample at place 1: no 'sample_id'"):
        read_dataset(tmp_path, "TQA")


def test_numbers_are_texts(tmp_path: Path) -> None:
    """Fashion200K answers with numbers."""
    write(tmp_path, sample(response=4, choice_list=[0, 1, 4]), task="Fashion200K")
    (example,) = read_dataset(tmp_path, "Fashion200K")
    assert example.references == ("4",)
    assert example.choices == ("0", "1", "4")


def test_an_answer_that_differs_in_marks_only_is_the_choice(tmp_path: Path) -> None:
    write(tmp_path, sample(response="(Oxygen)", choice_list=["Sun", "Oxygen"]))
    (example,) = read_dataset(tmp_path, "TQA")
    assert example.references == ("Oxygen",)


def test_another_number_of_samples_than_said_is_a_note(tmp_path: Path) -> None:
    path = write(tmp_path, sample())
    path.write_text(path.read_text().replace('"num_sample": 1', '"num_sample": 3'))
    notes: list[str] = []
    read_dataset(tmp_path, "TQA", on_note=notes.append)
    assert notes == [f"{path}: 'num_sample' is 3 but there are 1 samples"]


def test_equal_choices_are_said_and_scored(tmp_path: Path) -> None:
    path = write(tmp_path, sample(2, choice_list=["Sun", "Oxygen", "oxygen."]))
    notes: list[str] = []
    (example,) = read_dataset(tmp_path, "TQA", on_note=notes.append)
    assert notes == [f"{path} sample 2: choices 2 and 3 are equal: 'oxygen.'"]
    assert example.choices == ("Sun", "Oxygen", "oxygen.")


def test_image_choices_may_be_without_a_list(tmp_path: Path) -> None:
    good = sample(context="{image#1}{image#2}Which?", choice_list=None, response="Image B")
    write(tmp_path, good, task="COMICS_Panel")
    (example,) = read_dataset(tmp_path, "COMICS_Panel")
    assert example.choices == ()
    choices = ["Image A: {image#1}", "Image B: {image#2}"]
    write(tmp_path, sample(context="Which? ", choice_list=choices, response="Image B"))
    bad = sample(context="Which? ", choice_list=choices, response="Image C")
    path = write(tmp_path, bad, task="COMICS_Panel")
    line = "the answer 'Image C' is none of 2 image choices"
    with pytest.raises(PolyptychError, match=rf"^{path} sample 0: {line}"):
        read_dataset(tmp_path, "COMICS_Panel")


def test_alfred_without_question_type_and_others_with_a_wrong_one(tmp_path: Path) -> None:
    write(tmp_path, sample(choice_list=None), task="ALFRED", kind="")
    (example,) = read_dataset(tmp_path, "ALFRED")
    assert example.choices == ()
    path = write(tmp_path, sample(), kind="free-form")
    line = f"^{path}: question_type is 'free-form', TQA has 'multi-choice'"
    with pytest.raises(PolyptychError, match=line):
        read_dataset(tmp_path, "TQA")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a DEMON file"),
        ('{"metadata": {}, "data": []}', "'metadata' has no list of strings 'task_instruction'"),
        ('{"metadata": {"task_instruction": ["x"]}, "data": []}', "'data' is no list of samples"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str, line: str) -> None:
    path = write(tmp_path, sample())
    path.write_text(content)
    with pytest.raises(PolyptychError, match=f"^{path}: {line}"):
        read_dataset(tmp_path, "TQA")


def test_missing_tasks_are_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, sample(), sample(1, context="{image#1}?", images_path=["2.png"]))
    benchmark = read_benchmark(tmp_path)
    assert [example.id for example in benchmark.datasets["TQA"]] == ["TQA-0", "TQA-1"]
    assert [len(e.images) for e in benchmark.datasets["TQA"]] == [2, 1], "image counts may differ"
    assert len(benchmark.missing) == 28
    assert "TQA" not in benchmark.missing
    assert benchmark.notes == ["not the sizes of DEMON-Core, so not its numbers: TQA 2 of 500"]
    with pytest.raises(PolyptychError, match=r"no DEMON task WebQA/core/core\.json"):
        read_dataset(tmp_path, "WebQA")


def test_folders_are_found_in_any_case_and_none_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a", sample(), task="nuScenes")
    assert list(read_benchmark(tmp_path / "a").datasets) == ["nuscenes"]
    (tmp_path / "b").mkdir()
    with pytest.raises(PolyptychError, match="none of the 31 tasks of DEMON is here"):
        read_benchmark(tmp_path / "b", "full")
    with pytest.raises(PolyptychError, match=r"cannot read .*nowhere: No such file"):
        read_benchmark(tmp_path / "nowhere")
