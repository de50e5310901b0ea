"""Readers of published benchmark files: small made-up folders in the real layout, and real sets."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import estimate, measure
from polyptych.evaluation.scoring.choice import LETTERS
from polyptych.evaluation.task import Task, prompt_text
from polyptych.evaluation.tasks.catalog import BENCHMARKS, load_task
from polyptych.evaluation.tasks.mmbench import mmbench_task
from polyptych.evaluation.tasks.pope import pope_task
from polyptych.evaluation.tasks.scienceqa import scienceqa_task
from polyptych.schema import Prediction

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def scores(task: Task, answers: Mapping[str, str]) -> dict[str, float]:
    examples = list(task.load())
    predictions = [Prediction(identity, text) for identity, text in answers.items()]
    measured = measure(task.scorers, examples, predictions)
    return {m.name: estimate(m, resamples=20).value for m in measured}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def humans(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_id": n} for n, text in enumerate(answers, start=1)]


# Folders in their real layouts.


def make_vqav2(root: Path) -> None:
    rows = [{"question_id": n, "image": f"{n}.jpg", "text": f"What {n}?{SHORT}"} for n in (3, 1)]
    write_lines(root / "llava_vqav2_mscoco_test-dev2015.jsonl", rows)


def make_okvqa(root: Path) -> None:
    write_lines(
        root / "llava_okvqa_val.jsonl",
        [{"question_id": 7, "image": "COCO_val2014_7.jpg", "text": "What sport?" + SHORT}],
    )
    answers = [{"question_id": 7, "image_id": 7, "answers": humans(*["surf"] * 3, *["race"] * 7)}]
    write(root / "mscoco_val2014_annotations.json", {"annotations": answers})


def make_vizwiz(root: Path) -> None:
    write_lines(
        root / "llava_test.jsonl", [{"question_id": 1, "image": "VizWiz_1.jpg", "text": "What?"}]
    )


def make_textvqa(root: Path) -> None:
    texts = ["What brand?", "What YEAR?"]
    rows = [
        {
            "question_id": "0aa",
            "image": "0aa.jpg",
            "text": f"{text}\nReference OCR token: X, Y{SHORT}",
        }
        for text in texts
    ]
    write_lines(root / "llava_textvqa_val_v051_ocr.jsonl", rows)
    data = [
        {"question_id": 34602 + n, "image_id": "0aa", "question": text, "answers": [text[5:9]] * 10}
        for n, text in enumerate(texts)
    ]
    write(root / "TextVQA_0.5.1_val.json", {"data": data[::-1]})


def make_scienceqa(root: Path) -> None:
    problems = {
        "5": {"choices": ["x", "y", "z"], "answer": 1, "subject": "natural science"},
        "9": {"choices": ["u", "v"], "answer": 0, "subject": "language science"},
    }
    write(root / "problems.json", problems)
    turns = [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y\nC. z"}]
    lines = [
        {"id": "5", "image": "5/image.png", "conversations": turns},
        {"id": "9", "conversations": [{"from": "human", "value": "Or?\nA. u\nB. v"}]},
    ]
    for name in ("llava_test_CQM-A.json", "llava_test_QCM-LEPA.json"):
        write(root / name, lines)


def make_pope(root: Path) -> None:
    for category in ("random", "popular"):
        rows = [
            {"question_id": n, "image": "a.jpg", "text": f"Is there {n}?", "label": label}
            for n, label in enumerate(("yes", "no"), start=1)
        ]
        write_lines(root / "coco" / f"coco_pope_{category}.json", rows)


def make_mme(root: Path) -> None:
    rows, pictures = [], root / "MME_Benchmark_release_version"
    for category, folder in [("existence", "."), ("artwork", "questions_answers_YN")]:
        image = f"{category}/01.jpg"
        for question in ("Is it a dog?", "Is it a cat?"):
            rows.append({"question_id": image, "image": image, "text": question + SHORT})
        truth = "Is it a dog? Please answer yes or no.\tYes\n"
        truth += "Is it a cat?  Please answer yes or no.\tNo\n"
        write(pictures / category / folder / "01.txt", truth)
    write_lines(root / "llava_mme.jsonl", rows)


def make_seed(root: Path) -> None:
    options = {f"choice_{letter}": f"option {letter}" for letter in "abcd"}
    questions = [
        {"question_id": "1_0", "answer": "C", "data_type": "image", "question_type_id": 1},
        {"question_id": 102, "answer": "A", "data_type": "video", "question_type_id": 10},
    ]
    types = {"Scene Understanding": 1, "Action Recognition": 10}
    content = {"questions": [q | options for q in questions], "question_type": types}
    write(root / "SEED-Bench.json", content)
    rows = [
        {"question_id": q["question_id"], "image": "SEED-Bench-image/1", "text": "Q?" + LETTER}
        for q in questions
    ]
    write_lines(root / "llava-seed-bench.jsonl", rows)


def make_mmbench(root: Path) -> None:
    image = base64.b64encode(b"not a picture, but bytes").decode()
    table = "index\tquestion\thint\tA\tB\tC\tD\timage\tanswer\tcategory\n"
    table += f'0\tWhich?\t"A hint\nof two lines"\tred\tblue\t\t\t{image}\tB\tcolor\n'
    table += f"1\tWhat?\tnan\tone\ttwo\tthree\tfour\t{image}\tA\tcount\n"
    write(root / "mmbench_dev_20230712.tsv", table)
    write(root / "mmbench_dev_cn_20231003.tsv", table.replace("\tanswer\t", "\tsplit\t"))


MAKERS: dict[str, Callable[[Path], None]] = {
    "vqav2": make_vqav2,
    "okvqa": make_okvqa,
    "vizwiz": make_vizwiz,
    "textvqa": make_textvqa,
    "scienceqa": make_scienceqa,
    "pope": make_pope,
    "mme": make_mme,
    "seed": make_seed,
    "mmbench": make_mmbench,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for folder, make in MAKERS.items():
        make(tmp_path / folder)
    return tmp_path


RIGHT: dict[str, tuple[dict[str, str], dict[str, float]]] = {
    "okvqa": ({"7": "Surf."}, {"vqa_accuracy[official]": 0.9, "vqa_accuracy[released]": 0.9}),
    "textvqa": (
        {"34602": "bran", "34603": "x"},
        {"vqa_accuracy[official]": 0.5, "vqa_accuracy[released]": 0.5},
    ),
    "scienceqa_img": (
        {"5": "B"},
        {"accuracy[letter_released]": 1, "accuracy.image[fixed]": 1},
    ),
    "scienceqa": (
        {"5": "so ANSWER: B.", "9": "u"},
        {"accuracy[answer_released]": 0.75, "accuracy[fixed]": 1, "accuracy.text[fixed]": 1},
    ),
    "pope": (
        {"random-1": "yes", "random-2": "no", "popular-1": "yes", "popular-2": "yes"},
        {
            "accuracy[reference]": 0.75,
            "mean_f1[strict]": (1 + 2 / 3) / 2,
            "yes_ratio[strict]": 0.75,
        },
    ),
    "mme": (
        {
            "existence/01.jpg#1": "Yes",
            "existence/01.jpg#2": "No",
            "artwork/01.jpg#1": "Yes",
            "artwork/01.jpg#2": "Yes",
        },
        {"perception[official]": 250, "existence[official]": 200, "artwork[official]": 50},
    ),
    "seed": (
        {"1_0": "C", "102": "A. option a"},
        {
            "accuracy[exact_released]": 0.5,
            "accuracy[fixed]": 1,
            "accuracy.video[exact_released]": 0,
            "accuracy.Scene Understanding[exact_released]": 1,
        },
    ),
    "mmbench": ({"0": "B", "1": "(B)"}, {"accuracy[fixed]": 0.5}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_answers_are_scored(data: Path, name: str) -> None:
    answers, expected = RIGHT[name]
    found = scores(load_task(name, data), answers)
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value), (metric, found)


@pytest.mark.parametrize("name", [n for n, b in BENCHMARKS.items() if (b.folder or n) in MAKERS])
def test_the_catalog_tells_what_its_tasks_do(data: Path, name: str) -> None:
    benchmark = BENCHMARKS[name]
    task = load_task(name, data)
    examples = list(task.load())
    assert task.name == name
    assert examples
    assert all(len(e.images) == prompt_text(e.messages).count("<image>") for e in examples)
    assert all(example.metadata["task"] == name for example in examples)
    if not task.scorers:
        assert benchmark.scoring == "server"
        return
    blank = [Prediction(example.id, "A") for example in examples]
    names = {m.name for m in measure(task.scorers, examples, blank)}
    assert {f"{benchmark.metric}[{flavor}]" for flavor in benchmark.flavors} <= names


def test_prompts_are_those_of_the_published_files(data: Path) -> None:
    def prompt(name: str, index: int = 0) -> str:
        return prompt_text(list(load_task(name, data).load())[index].messages)

    assert prompt("pope") == f"<image>\nIs there 1?{SHORT}"
    assert prompt("scienceqa_img") == f"<image>\nWhich?\nA. x\nB. y\nC. z{LETTER}"
    assert prompt("scienceqa", 1) == "Or?\nA. u\nB. v"
    assert prompt("mmbench") == f"<image>\nA hint\nof two lines\nWhich?\nA. red\nB. blue{LETTER}"
    assert prompt("mmbench_cn", 1).endswith("\nD. four\n请直接回答选项字母。")


def test_circular_evaluation_asks_every_rotation(data: Path) -> None:
    task = mmbench_task("mmbench", data / "mmbench", circular=True)
    examples = list(task.load())
    assert [e.id for e in examples] == ["0", "0-1", "1", "1-1", "1-2", "1-3"]
    assert [e.choices[LETTERS.index(e.references[0])] for e in examples] == 2 * ["blue"] + 4 * [
        "one"
    ]
    answers = {e.id: e.references[0] for e in examples}
    assert scores(task, answers)["circular_accuracy[fixed]"] == 1
    assert scores(task, answers | {"1-3": "A"})["circular_accuracy[fixed]"] == 0.5


def test_images_lie_where_the_layouts_say(data: Path) -> None:
    def image(name: str) -> str | None:
        return next(iter(load_task(name, data).load())).images[0].path

    assert image("vqav2") == str(data / "vqav2" / "test2015" / "3.jpg")
    assert image("scienceqa_img") == str(data / "scienceqa/images/test/5/image.png")
    assert image("mme") == str(data / "mme/MME_Benchmark_release_version/existence/01.jpg")
    assert next(iter(load_task("mmbench", data).load())).images[0].data is not None


# Bad files.


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("vqav2", "llava_vqav2_mscoco_test-dev2015.jsonl", ": 3,", ": 1,", "line 2.*'1' occurs"),
        ("okvqa", "mscoco_val2014_annotations.json", '"answers"', '"a"', "question '7': no list"),
        (
            "okvqa",
            "mscoco_val2014_annotations.json",
            '"question_id": 7',
            '"question_id": 8',
            "no h",
        ),
        ("okvqa", "llava_okvqa_val.jsonl", '"text"', '"t"', "line 1 .*'7'.*'text' must be a text"),
        ("textvqa", "llava_textvqa_val_v051_ocr.jsonl", "YEAR", "day", "no human answers"),
        ("textvqa", "llava_textvqa_val_v051_ocr.jsonl", "YEAR", "brand", "occurs twice"),
        ("scienceqa", "problems.json", '"answer": 1', '"answer": 3', "'5'.*3 for 3 choices"),
        ("scienceqa", "llava_test_QCM-LEPA.json", '"id": "9"', '"id": "6"', "'6'.*not in"),
        ("pope", "coco/coco_pope_random.json", '"no"', '"No"', "line 2.*yes or no, got 'No'"),
        (
            "pope",
            "coco/coco_pope_random.json",
            '"label": "no"}',
            '"label',
            "line 2: not valid JSON",
        ),
        ("mme", "llava_mme.jsonl", "a cat?", "a cow?", "no question 'Is it a cow"),
        ("mme", "llava_mme.jsonl", "artwork/", "art/", "in no folder of an MME sub-task"),
        ("seed", "SEED-Bench.json", '"answer": "C"', '"answer": "E"', "'1_0'.*got 'E'"),
        (
            "mmbench",
            "mmbench_dev_20230712.tsv",
            "\tB\tcolor",
            "\tC\tcolor",
            "'C' is no letter of 2",
        ),
        ("mmbench", "mmbench_dev_20230712.tsv", "\n1\t", "\n0\t", "index '0' occurs twice"),
        (
            "mmbench",
            "mmbench_dev_20230712.tsv",
            "\timage\t",
            "\tpicture\t",
            "missing column.*image",
        ),
    ],
)
def test_bad_files_are_named(
    data: Path, name: str, file: str, old: str, new: str, message: str
) -> None:
    path = data / name / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(PolyptychError, match=message) as caught:
        list(load_task(name, data).load())
    assert Path(file).name in str(caught.value)


def test_nine_human_answers_are_named(data: Path) -> None:
    path = data / "okvqa" / "mscoco_val2014_annotations.json"
    content = read_json(path)
    del content["annotations"][0]["answers"][0]
    write(path, content)
    with pytest.raises(PolyptychError, match="question '7': 9 human answers, 10 are needed"):
        list(load_task("okvqa", data).load())


def test_a_wrong_folder_or_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        PolyptychError, match=r"no folder .*pope; it should hold coco/coco_pope_ran"
    ):
        load_task("pope", tmp_path)
    (tmp_path / "pope").mkdir()
    with pytest.raises(PolyptychError, match="no coco_pope_"):
        list(load_task("pope", tmp_path).load())
    with pytest.raises(PolyptychError, match="no benchmark 'pop'; known: vqav2"):
        load_task("pop", tmp_path)


# Real sets.


@pytest.mark.shared_data
def test_pope_of_the_published_questions(shared_dir: Path) -> None:
    task = pope_task(shared_dir / "data" / "pope")
    examples = list(task.load())
    assert [e.metadata["category"] for e in examples] == ["random"] * 3000 + ["popular"] * 3000
    assert examples[1].references == ("no",)
    found = scores(task, {e.id: "Yes" for e in examples})
    assert found["accuracy[reference]"] == found["precision[reference]"] == 0.5
    assert found["recall[reference]"] == found["yes_ratio[reference]"] == 1
    assert found["mean_f1[reference]"] == pytest.approx(2 / 3)


@pytest.mark.shared_data
@pytest.mark.parametrize("model", ["llava_13b_v0", "gpt3_cot_2shot"])
def test_scienceqa_of_published_answers(shared_dir: Path, tmp_path: Path, model: str) -> None:
    folder = shared_dir / "data" / "scienceqa"
    recorded = read_json(folder / "model_predictions_test.json")
    indices, problems = recorded[model]["predictions"], read_json(folder / "problems_subset.json")
    lines = []
    for identity in indices:
        line = {"id": identity, "conversations": [{"from": "human", "value": "What is asked?"}]}
        if problems[identity]["image"] is not None:
            line["image"] = f"{identity}/{problems[identity]['image']}"
        lines.append(line)
    write(tmp_path / "problems.json", problems)
    write(tmp_path / "llava_test_QCM-LEPA.json", lines)
    answers = {identity: f"ANSWER: {LETTERS[index]}." for identity, index in indices.items()}
    found = scores(scienceqa_task("scienceqa", tmp_path), answers)
    assert len(answers) == recorded[model]["n"] == 181
    assert found["accuracy[answer_released]"] == recorded[model]["accuracy_on_these"]
    assert found["accuracy[fixed]"] == recorded[model]["accuracy_on_these"]
