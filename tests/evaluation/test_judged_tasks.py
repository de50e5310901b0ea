"""Benchmarks that ask a judge, and CHAIR: their files, the judge interface, and their scores."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyptych import cli
from polyptych.data.records import read_json
from polyptych.errors import PolyptychError
from polyptych.evaluation.judge import (
    REPLIES_FILE,
    UNPARSABLE,
    RecordedJudge,
    with_judge,
    with_recorded_replies,
)
from polyptych.evaluation.local_model import LocalModel
from polyptych.evaluation.runner import evaluate
from polyptych.evaluation.samples.judged import ObjectGraph
from polyptych.evaluation.scorers import Estimate, estimate, measure
from polyptych.evaluation.scoring.keywords import (
    compare_lists,
    overlap,
    read_graph,
    read_lists,
    replace_synonyms,
)
from polyptych.evaluation.task import GenerationSettings, Task, prompt_text
from polyptych.evaluation.tasks import llava_bench
from polyptych.evaluation.tasks.catalog import BENCHMARKS, load_task
from polyptych.evaluation.tasks.llava_bench import read_grades
from polyptych.evaluation.tasks.mm_vet import read_grade
from polyptych.evaluation.tasks.mmhal import read_rating
from polyptych.schema import Example, Prediction
from polyptych.testing import tiny_model, tiny_processor

JUDGED = ("mm_vet", "llava_bench", "mmhal", "mementos")
KEYWORDS = """Object list 1: [dog, toy]
Action list 1: [bark]
Object list 2: [dog]
Action list 2: [bark, run]"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    for name in (*JUDGED, "chair"):
        sample = BENCHMARKS[name].sample
        assert sample is not None
        sample(folder / name)
    return folder


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A benchmark's folder that may be changed; its pictures are left out."""

    def copy(name: str) -> Path:
        for path in (data / name).rglob("*"):
            if path.is_file() and path.suffix not in (".png", ".jpg"):
                target = tmp_path / path.relative_to(data)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return tmp_path / name

    return copy


class Judge:
    """Says what a function says, and counts what it was asked."""

    name, hash, tokens_per_image = "judge", "1", 0
    ignores: frozenset[str] = frozenset()

    def __init__(self, reply: Callable[[Example], str]) -> None:
        self.reply = reply
        self.asked: list[Example] = []

    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        self.asked.extend(examples)
        return [self.reply(example) for example in examples]

    def context(self) -> dict[str, Any]:
        return {"model": {"name": self.name}}


def answers(task: Task, text: str = "A cat.") -> tuple[list[Example], list[Prediction]]:
    examples = list(task.load())
    return examples, [Prediction(example.id, text) for example in examples]


def scored(task: Task, judge: Any, folder: Path) -> dict[str, Estimate]:
    judged = with_judge(task, judge, folder, progress=False)
    return {m.name: estimate(m, resamples=20) for m in measure(judged.scorers, *answers(task))}


# The judge.


def test_replies_are_stored_with_their_prompts_and_read_again(data: Path, tmp_path: Path) -> None:
    task, judge = load_task("mm_vet", data), Judge(lambda e: f"0.{len(e.id)}")
    first = scored(task, judge, tmp_path)
    assert len(judge.asked) == 12
    lines = [json.loads(line) for line in (tmp_path / REPLIES_FILE).read_text().splitlines()]
    assert lines[0]["id"] == "v1_0"
    assert lines[0]["prediction"] == "0.4"
    assert "Answer: A cat." in lines[0]["prompt"]
    assert "True answer: " in lines[0]["prompt"]
    again = with_recorded_replies(task, tmp_path)
    measured = {m.name: estimate(m, resamples=20) for m in measure(again.scorers, *answers(task))}
    assert measured == first
    assert scored(task, judge, tmp_path) == first
    assert len(judge.asked) == 12  # nobody is asked twice


def test_a_killed_judge_goes_on_where_it_stopped(data: Path, tmp_path: Path) -> None:
    task = load_task("mm_vet", data)

    class Killed(Judge):
        def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
            if self.asked:
                raise KeyboardInterrupt
            return super().answer(examples, settings)

    def small(judge: Judge) -> dict[str, Estimate]:
        judging = task.judging
        assert judging is not None
        settings = dataclasses.replace(judging.settings, batch_size=5)
        changed = dataclasses.replace(judging, settings=settings)
        return scored(dataclasses.replace(task, judging=changed), judge, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        small(Killed(lambda _: "1.0"))
    rest = Judge(lambda _: "0.0")
    assert small(rest)["score[fixed]"].value == pytest.approx(5 / 12)
    assert len(rest.asked) == 7


def test_another_judge_or_answer_is_refused(data: Path, tmp_path: Path) -> None:
    task = load_task("mm_vet", data)
    scored(task, Judge(lambda _: "1"), tmp_path)
    other = Judge(lambda _: "0")
    other.hash = "2"
    with pytest.raises(PolyptychError, match="another model"):
        scored(task, other, tmp_path)
    again = with_recorded_replies(task, tmp_path)
    with pytest.raises(PolyptychError, match="'v1_0' is to another prompt"):
        measure(again.scorers, *answers(task, "A dog."))


def test_unreadable_replies_are_counted(data: Path, tmp_path: Path) -> None:
    found = scored(
        load_task("mm_vet", data), Judge(lambda e: "" if e.id == "v1_0" else "1"), tmp_path
    )
    assert found[UNPARSABLE].value == pytest.approx(1 / 12)
    assert found["score[fixed]"].value == 1
    assert found["score[fixed]"].count == 11


def test_recorded_replies_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    line = {"id": "1", "prompt": "Good?", "prediction": "Yes"}
    path.write_text(json.dumps(line) + "\n")
    judge = RecordedJudge(path)
    with pytest.raises(PolyptychError, match="no reply about '2'"):
        judge.answer([Example("2", ())], GenerationSettings())
    path.write_text(2 * (json.dumps(line) + "\n"))
    with pytest.raises(PolyptychError, match="line 2: id '1' occurs twice"):
        RecordedJudge(path)
    path.write_text('{"id": "1"}\n')
    with pytest.raises(PolyptychError, match="line 1: a reply has the texts"):
        RecordedJudge(path)


def test_only_judged_tasks_take_a_judge(data: Path, tmp_path: Path) -> None:
    task = load_task("chair", data)
    with pytest.raises(PolyptychError, match="chair asks no judge"):
        with_judge(task, Judge(str), tmp_path)
    assert with_recorded_replies(task, tmp_path) is task


def test_a_local_model_judges_a_whole_run(data: Path, tmp_path: Path) -> None:
    model = LocalModel(tiny_model(), tiny_processor())
    task = with_judge(load_task("mmhal", data), model, tmp_path, progress=False)
    settings = GenerationSettings(max_new_tokens=4)
    found = {s.name: s for s in evaluate(model, task, tmp_path, settings=settings, progress=False)}
    assert 0 <= found["score[released]"].value <= 6
    assert found[UNPARSABLE].count == 12
    assert (tmp_path / REPLIES_FILE).exists()
    record = read_json(tmp_path / "scores.json")
    assert UNPARSABLE in {score["name"] for score in record["scores"]}
    assert record["origin"]["judge"]["model"]["hash"] == record["model"]["hash"]


def test_a_file_of_answers_is_scored_with_recorded_replies(data: Path, tmp_path: Path) -> None:
    def score(*words: str | Path) -> Any:
        asked = ["score", tmp_path / "made.jsonl", "mm_vet", "--data", data, *words]
        return CliRunner().invoke(cli.app, [str(word) for word in asked])

    task, folder = load_task("mm_vet", data), tmp_path / "run"
    scored(task, Judge(lambda _: "0.5"), folder)
    lines = [{"question_id": p.id, "text": p.text} for p in answers(task)[1]]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused = score()
    assert refused.exit_code == 2
    assert "name a --judge" in refused.stderr
    found = score("--judge", folder / REPLIES_FILE)
    assert found.exit_code == 0, found.output
    assert "score[fixed]" in found.output
    assert "0.5000" in found.output
    again = score()  # the replies now stand beside the file
    assert again.output == found.output


@pytest.mark.parametrize("name", JUDGED)
def test_without_a_judge_there_is_no_number(data: Path, name: str) -> None:
    task = load_task(name, data)
    assert task.scorers == ()
    assert task.judging is not None
    assert BENCHMARKS[name].scoring == "judge"


@pytest.mark.parametrize("name", JUDGED)
def test_the_catalog_names_what_is_measured(data: Path, tmp_path: Path, name: str) -> None:
    reply = {"mementos": KEYWORDS, "mm_vet": "0.5", "mmhal": "Rating: 2", "llava_bench": "8 4"}
    benchmark = BENCHMARKS[name]
    found = scored(load_task(name, data), Judge(lambda _: reply[name]), tmp_path)
    assert found[UNPARSABLE].value == 0
    value = {"mementos": 2 / 3, "mm_vet": 0.5, "mmhal": 2.0, "llava_bench": 0.5}[name]
    for flavor in benchmark.flavors:
        assert found[f"{benchmark.metric}[{flavor}]"].value == pytest.approx(value)


@pytest.mark.parametrize("name", (*JUDGED, "chair"))
def test_samples_show_their_pictures(data: Path, name: str) -> None:
    for example in load_task(name, data).load():
        assert prompt_text(example.messages).count("<image>") == len(example.images) == 1
        assert Path(str(example.images[0].path)).is_file()
        assert example.metadata["task"] == name


# Reading replies.


def test_grades_of_mm_vet() -> None:
    replies = ("0.7", "Grade: 1", "1.0", "0", "The grade is 0.25.", "7", "0.5.1", "none")
    assert [read_grade(reply) for reply in replies] == [0.7, 1, 1, 0, 0.25, None, None, None]


def test_abilities_of_mm_vet_have_numbers_of_their_own(data: Path, tmp_path: Path) -> None:
    def reply(example: Example) -> str:
        asked = prompt_text(example.messages).split("True answer: ")[-1]
        return "1" if "<AND>" in asked else "0"

    found = scored(load_task("mm_vet", data), Judge(reply), tmp_path)
    assert found["score[fixed]"].value == 3 / 12
    assert found["score.rec[fixed]"].value == 3 / 12
    assert found["score.spat[fixed]"].value == found["score.rec+spat[fixed]"].value == 1


def test_llava_bench_takes_its_own_rules_and_captions_in_lists(tmp_path: Path) -> None:
    sample = BENCHMARKS["llava_bench"].sample
    assert sample is not None
    sample(tmp_path / "llava_bench")
    rule = {"role": "Assistant", "prompt": "other"}
    rules = {f"llava_bench_{name}": {**rule, "prompt": name} for name in llava_bench.CATEGORIES}
    rules |= dict.fromkeys(("conv", "detail", "math"), rule)
    (tmp_path / "llava_bench" / "rule.json").write_text(json.dumps(rules), "utf-8")
    contexts = tmp_path / "llava_bench" / "context.jsonl"
    lines = [json.loads(line) for line in contexts.read_text("utf-8").splitlines()]
    lines[0]["caption"] = ["A sea.", "A ship."]
    contexts.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    for example in load_task("llava_bench", tmp_path).load():
        assert example.metadata["rule"] == ("Assistant", example.metadata["category"])
        if example.metadata["image"] == lines[0]["image"]:
            assert example.metadata["context"] == "A sea.\nA ship."


def test_grades_of_llava_bench() -> None:
    for reply, released, fixed in (
        ("8 7\nBecause", (8, 7), (8, 7)),
        ("8.5,7", (8.5, 7), (8.5, 7)),
        ("8.5, 7", None, (8.5, 7)),
        ("Assistant: 8/10 and 6/10", None, (8, 6)),
        ("8 7 6", None, (8, 7)),
        ("\n8 7", None, (8, 7)),
        ("good", None, None),
    ):
        assert read_grades(reply, "released") == released
        assert read_grades(reply, "fixed") == fixed


def test_released_llava_bench_adds_up_what_it_could_not_read(data: Path, tmp_path: Path) -> None:
    replies = {"0": "8 4", "1": "sorry"}
    found = scored(
        load_task("llava_bench", data), Judge(lambda e: replies.get(e.id, "10 10")), tmp_path
    )
    assert found["relative[fixed]"].value == pytest.approx(104 / 108)
    assert found["relative[released]"].value == pytest.approx(103 / 107)
    assert found["relative.conv[fixed]"].value == pytest.approx(34 / 38)
    assert found[UNPARSABLE].value == pytest.approx(1 / 12)


def test_the_benchmarks_own_rules_are_used_where_they_are(
    copied: Callable[[str], Path], data: Path
) -> None:
    folder = copied("llava_bench")
    names = ("conv", "detail", "complex")
    rules = {f"llava_bench_{n}": {"role": "Helper", "prompt": f"Rate {n}."} for n in names}
    (folder / "rule.json").write_text(json.dumps(rules))
    task = load_task("llava_bench", folder.parent)
    judging, example = task.judging, next(iter(task.load()))
    assert judging is not None
    asked = judging.ask(example, Prediction("0", "A cat."))
    assert asked.startswith("[Context]\n")
    assert "[Helper 2]\nA cat.\n\n[End of Helper 2]\n\n[System]\nRate conv." in asked
    assert asked.index("[Helper 1]") < asked.index(example.references[0]) < asked.index("A cat.")


def test_ratings_of_mmhal() -> None:
    for reply, released, fixed in (
        ("Rating: 4", 4, 4),
        ("rating: 0, hallucinates", 0, 0),
        ("Rating: 2? No. Rating: 5", None, 5),
        ("**Rating**: 3", None, 3),
        ("Rating: 10", 1, None),
        ("six", None, None),
    ):
        assert read_rating(reply, "released") == released
        assert read_rating(reply, "fixed") == fixed


def test_released_mmhal_counts_nothing_as_zero(data: Path, tmp_path: Path) -> None:
    judge = Judge(lambda e: "no idea" if e.id == "0" else "Rating: 3")
    found = scored(load_task("mmhal", data), judge, tmp_path)
    assert found["score[released]"].value == pytest.approx(3 * 11 / 12)
    assert found["score[fixed]"].value == 3
    assert found["hallucination_rate[released]"].value == pytest.approx(1 / 12)
    assert found["hallucination_rate[fixed]"].value == 0
    assert found["score.attribute[fixed]"].count == 3


# Keywords.


def test_lists_are_read() -> None:
    released, fixed = read_lists(KEYWORDS, "released"), read_lists(KEYWORDS, "fixed")
    assert released == fixed
    assert fixed is not None
    assert fixed.human == {"object": ["dog", "toy"], "action": ["bark"]}
    odd = KEYWORDS.replace("toy", "toy: red")
    assert read_lists(odd, "released") is None
    assert read_lists(odd, "fixed") is not None
    assert read_lists(KEYWORDS.replace("Action list 2", "Actions"), "fixed") is None
    empty = KEYWORDS.replace("[bark]", "[]")
    for flavor, words in (("released", [""]), ("fixed", [])):
        found = read_lists(empty, flavor)  # type: ignore[arg-type]
        assert found is not None
        assert found.human["action"] == words


def test_synonyms_take_the_place_of_the_humans_words() -> None:
    graph = {"hound": {"": ["dog", "pet"]}, "lie": {"down": ["rest"]}}
    human = ["dog", "pet", "rest"]
    assert replace_synonyms(human, ["hound", "hound"], graph, "object", "fixed") == ["dog", "pet"]
    actions = replace_synonyms(human, ["lie", "down", "jump"], graph, "action", "fixed")
    assert actions == ["rest", "jump"]
    assert replace_synonyms(human, ["lie", "down"], graph, "object", "fixed") == ["lie", "down"]


def test_released_counts_all_words_beyond_the_humans_as_one() -> None:
    lists = read_lists(KEYWORDS.replace("[bark, run]", "[woof, run, eat, sleep]"), "fixed")
    assert lists is not None
    graph = {"woof": {"": ["bark"]}}
    assert compare_lists(lists, graph, "action", "released") == overlap(["bark"], ["bark", "x"])
    assert compare_lists(lists, graph, "action", "fixed").precision == 1 / 4
    assert compare_lists(lists, graph, "action", "fixed").recall == 1


def test_overlap_by_hand() -> None:
    assert overlap(["a", "b"], ["b", "c", "c"]) == (0.5, 0.5, 0.5)
    assert overlap([], []) == overlap(["a"], []) == (0, 0, 0)


def test_graphs_are_read_without_running_anything(tmp_path: Path) -> None:
    path = tmp_path / "dl_object_graph_v1.pkl"
    path.write_bytes(pickle.dumps(ObjectGraph({"mug": {"": ["cup"]}})))
    assert read_graph(path) == {"mug": {"": ["cup"]}}
    path.write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(PolyptychError, match="it refers to pathlib"):
        read_graph(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(PolyptychError, match="not a pickled synonym graph"):
        read_graph(path)
    json_path = tmp_path / "graph.json"
    json_path.write_text('{"mug": ["cup"]}')
    with pytest.raises(PolyptychError, match="not a graph"):
        read_graph(json_path)


def test_mementos_has_numbers_by_domain(data: Path, tmp_path: Path) -> None:
    said = KEYWORDS.replace("[bark, run]", "[bark]")
    judge = Judge(lambda e: said if e.id.startswith("robo/") else KEYWORDS)
    found = scored(load_task("mementos", data), judge, tmp_path)
    assert found["behavior_f1.robo[fixed]"].value == 1
    assert found["behavior_precision.dl[fixed]"].value == 0.5
    assert found["behavior_precision[fixed]"].value == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert found["object_recall.cmc[released]"].value == 0.5


# CHAIR.


def test_right_captions_have_no_hallucination(data: Path) -> None:
    task = load_task("chair", data)
    examples = list(task.load())
    told = [Prediction(e.id, e.references[0]) for e in examples]
    found = {m.name: estimate(m, resamples=20).value for m in measure(task.scorers, examples, told)}
    assert found["chair_s[fixed]"] == found["chair_i[fixed]"] == 0
    assert found["recall[fixed]"] == found["coverage[fixed]"] == 1
    wrong = [Prediction(e.id, "a dishwasher and a hammer") for e in examples]
    bad = {m.name: estimate(m, resamples=20).value for m in measure(task.scorers, examples, wrong)}
    assert bad["chair_s[fixed]"] > 0.5


def test_chair_asks_what_the_question_file_says(copied: Callable[[str], Path]) -> None:
    folder = copied("chair")
    rows = [{"question_id": 7, "image": "COCO_val2014_000000000002.jpg", "text": "What is here?"}]
    (folder / "questions.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (example,) = load_task("chair", folder.parent).load()
    assert example.id == "7"
    assert prompt_text(example.messages) == "<image>\nWhat is here?"
    assert example.images[0].path == str(folder / "val2014" / str(rows[0]["image"]))
    assert example.metadata["objects"]
    (folder / "objects.jsonl").write_text('{"image_id": 2, "objects": ["cat"]}\n')
    (example,) = load_task("chair", folder.parent).load()
    assert example.metadata["objects"] == ["cat"]
    assert example.references == ()


# Bad files.


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("mm_vet", "mm-vet.json", '"capability"', '"abilities"', "'v1_0'.*'capability' must be"),
        ("mm_vet", "llava-mm-vet.jsonl", '"v1_0"', '"v1_99"', "line 1.*'v1_99' has no true answer"),
        ("llava_bench", "context.jsonl", "002.jpg", "2.jpg", "no context for '002.jpg'"),
        (
            "llava_bench",
            "answers_gpt4.jsonl",
            '"question_id": 3,',
            '"question_id": 33,',
            "no ref.*'3'",
        ),
        ("llava_bench", "questions.jsonl", '"conv"', '"talk"', "no instruction for 'talk'"),
        ("mmhal", "response_template.json", '"gt_answer"', '"answer"', "record 0: 'gt_answer'"),
        ("mementos", "robo_description.csv", "image,", "picture,", "columns are picture, desc"),
        ("mementos", "dl_description.csv", "dl_1.png", "dl_0.png", "'dl_0.png' occurs twice"),
        (
            "chair",
            "annotations/instances_val2014.json",
            '"category_id": 12\n',
            '"category_id": 999\n',
            "category 999 is none of",
        ),
        (
            "chair",
            "annotations/captions_val2014.json",
            '"caption"',
            '"text"',
            "annotation 0: 'capt",
        ),
    ],
)
def test_bad_files_are_named(
    copied: Callable[[str], Path], name: str, file: str, old: str, new: str, message: str
) -> None:
    path = copied(name) / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(PolyptychError, match=message):
        list(load_task(name, path.parents[len(Path(file).parts)]).load())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mm_vet", "mm-vet.json"),
        ("llava_bench", "context.jsonl"),
        ("mmhal", "response_template.json"),
        ("mementos", "none of dl_description.csv"),
        ("chair", "synonyms.txt"),
    ],
)
def test_empty_folders_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(PolyptychError, match=message):
        list(load_task(name, tmp_path).load())
