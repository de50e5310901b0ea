"""SIMA's released files, and its commands from prompts to a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from polyptych import cli
from polyptych.data.preferences import read_pairs
from polyptych.errors import PolyptychError
from polyptych.methods.sima import formats
from polyptych.methods.sima.improvement import split_prompts
from polyptych.methods.sima.pairs import build_pairs
from polyptych.methods.sima.prompts import FULL
from polyptych.methods.sima.records import Comparison, Prompt, Responses, Verdict, as_prompts
from polyptych.methods.sima.released import (
    parse_verdict,
    parsed_verdict,
    preference_records,
    recover_question,
)
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock
from polyptych.storybook.generation import write_dataset
from polyptych.testing import tiny_examples, tiny_model, tiny_processor

PROMPT = {"image": "7.jpg", "text": "What is on the mat?", "ground_truth": "A dog."}
RESPONSES = {
    "image_path": "7.jpg",
    "text": "What is on the mat?",
    "ground_truth": "A dog.",
    "greedy_decodes": "A cat.",
    "temperature_decodes_1": "A dog.",
    "model_id": "m",
}
PREFERENCE = {
    "id": "7",
    "image": "7.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is on the mat?"},
        {"from": "gpt", "value": "A dog."},
    ],
    "rejected_conversations": [
        {"from": "human", "value": "<image>\nWhat is on the mat?"},
        {"from": "gpt", "value": "A cat."},
    ],
}


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "responses.jsonl"
    path.write_text(json.dumps(RESPONSES) + "\n")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Released files


def test_released_files_are_read_and_written_all_the_way(lines: Path, tmp_path: Path) -> None:
    """From responses over filled prompts and verdicts to preferences, each file from the last."""
    (item,) = formats.read_responses(lines, tmp_path)
    assert item.answers == ("A cat.", "A dog.") and item.prompt.ground_truth == "A dog."
    again = tmp_path / "again.jsonl"
    formats.write_responses(again, [item], tmp_path, "m")
    assert lines_of(again) == [RESPONSES]
    formats.write_prompts(again, [item.prompt], tmp_path)
    assert lines_of(again) == [PROMPT]

    asked = tmp_path / "critic.jsonl"
    formats.write_critic_prompts(asked, [item], tmp_path)
    (filled,) = lines_of(asked)
    assert filled["question"] == "What is on the mat?" and filled["image"] == "7.jpg"
    assert filled["text"].startswith(FULL.task)
    assert "AI generated response 1: [A dog.]\nAI generated response 2: [A cat.]" in filled["text"]
    assert formats.read_critic_prompts(asked, tmp_path) == [item]

    verdict = Verdict(item, (Comparison(1, (1.0,), ("So: [[1]].",)),), {})
    said = tmp_path / "verdicts.jsonl"
    formats.write_verdicts(said, [verdict], tmp_path, "m")
    (line,) = lines_of(said)
    assert preference_records(line) == [PREFERENCE], "what the released code makes of our file"
    (found,) = formats.read_verdicts(said, tmp_path)
    assert found.comparisons == verdict.comparisons

    pairs = build_pairs([found]).pairs
    preferences = tmp_path / "preferences.json"
    formats.write_preferences(preferences, pairs, tmp_path)
    assert json.loads(preferences.read_text()) == [PREFERENCE]
    (pair,) = formats.read_preferences(preferences, tmp_path)
    assert (pair.chosen, pair.rejected) == ("A dog.", "A cat.")
    assert pair.images[0].path == str(tmp_path / "7.jpg")


def test_likelihood_verdicts_are_written_as_the_words_they_stand_for(
    lines: Path, tmp_path: Path
) -> None:
    (item,) = formats.read_responses(lines, tmp_path)
    out = tmp_path / "verdicts.jsonl"
    expected = {2.5: "sampled", -0.1: "greedy", 0.0: None}
    for margin, winner in expected.items():
        formats.write_verdicts(out, [Verdict(item, (Comparison(1, (margin,)),), {})], tmp_path, "m")
        assert parse_verdict(lines_of(out)[0]["rank_result"]) == winner


def test_what_the_released_form_cannot_say_is_refused(tmp_path: Path) -> None:
    two = Responses(next(as_prompts(tiny_examples(1))), ("a", "b"), 0)
    with pytest.raises(PolyptychError, match="id 'tiny-0' has 2 images; the released form knows 1"):
        formats.write_responses(tmp_path / "r.jsonl", [two], tmp_path, "m")
    with pytest.raises(PolyptychError, match="'greedy_decodes' must be a string, got None"):
        (tmp_path / "bad.jsonl").write_text('{"image_path": "7.jpg", "text": "What?"}\n')
        formats.read_responses(tmp_path / "bad.jsonl", tmp_path)
    (tmp_path / "bad.json").write_text('[{"image": "7.jpg", "conversations": []}]')
    with pytest.raises(PolyptychError, match="record 1: not a preference"):
        formats.read_preferences(tmp_path / "bad.json", tmp_path)


def test_trl_rows_keep_every_image_in_its_place(tmp_path: Path) -> None:
    content = (TextBlock("In "), ImageBlock(), TextBlock(" and "), ImageBlock(), TextBlock("?"))
    images = tuple(ImageRef(path=str(tmp_path / name)) for name in ("1.png", "2.png"))
    example = Example("x", (Message("user", content),), images)
    item = Responses(Prompt(example), ("a", "b"), 0)
    (pair,) = build_pairs([Verdict(item, (Comparison(1, (1.0,)),), {})]).pairs
    formats.write_trl(tmp_path / "trl.jsonl", [pair], tmp_path)
    (row,) = lines_of(tmp_path / "trl.jsonl")
    assert row["images"] == ["1.png", "2.png"]
    kinds = [block["type"] for block in row["prompt"][0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    assert row["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]


@pytest.mark.shared_data
@pytest.mark.parametrize("case", ["a", "b"])
def test_verdicts_and_records_equal_the_published_code(case: str, shared_dir: Path) -> None:
    path = shared_dir / "golden" / "sima" / f"critic_{case}.json"
    items = json.loads(path.read_text())
    assert items
    for item in items:
        assert parsed_verdict(item["input"]["rank_result"]) == item["parsed"]
        assert parse_verdict(item["input"]["rank_result"]) == item["verdict"]
        assert preference_records(item["input"]) == item["records"]


def test_a_nested_question_spoils_the_recovered_one() -> None:
    """As in the published code: the last ``Question: [`` of the whole prompt counts."""
    assert recover_question("Question: [one]\nGround truth: [Question: [two]\n]") == "two"


# Commands


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="polyptych")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor(max_length=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    return write_dataset("description", folder, count=6, split="train", seed=0, things=(2, 2))


def test_stages_one_by_one(model: Path, prompts: Path, tmp_path: Path) -> None:
    responses, verdicts = tmp_path / "responses.jsonl", tmp_path / "verdicts.jsonl"
    few = ("--samples", "2", "--max-new-tokens", "5", "--device", "cpu")
    made = run("sima", "respond", prompts, "--model", model, "--out", responses, *few)
    assert made.exit_code == 0, made.output
    assert "18 answers to 6 prompts" in made.stdout
    other = run(
        "sima", "respond", prompts, "--model", model, "--out", responses, *few, "--seed", "4"
    )
    assert other.exit_code == 2 and "settings.seed (0, now 4)" in other.stderr
    judged = run("sima", "criticise", responses, "--model", model, "--out", verdicts)
    assert judged.exit_code == 0, judged.output
    assert "the critic agrees with the truth" in judged.stdout or "pairs of 6" in judged.stdout
    paired = run("sima", "pair", verdicts, "--out", tmp_path, "--export", "trl")
    assert paired.exit_code == 0, paired.output
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert len(lines_of(tmp_path / "pairs.trl.jsonl")) == len(pairs) > 0
    dropped = len(lines_of(tmp_path / "drops.jsonl"))
    assert len(pairs) + dropped == 6
    none = run("sima", "pair", verdicts, "--out", tmp_path / "none", "--min-margin", "1000")
    assert none.exit_code == 2
    assert "0 pairs of 6 prompts" in none.stderr and "margin too small" in none.stderr


def test_unknown_words_are_one_clear_line(prompts: Path, model: Path, tmp_path: Path) -> None:
    result = run(
        "sima", "criticise", prompts, "--model", model, "--out", tmp_path / "v", "--judge", "dice"
    )
    assert result.exit_code == 2
    assert "no judge 'dice'; known: likelihood, words, random, truth" in result.stderr
    result = run("sima", "criticise", prompts, "--model", model, "--out", tmp_path / "v")
    assert result.exit_code == 2
    assert "'answers' must be a list of strings" in result.stderr
    result = run("improve", model, "--prompts", tmp_path / "none.jsonl", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "cannot read" in result.stderr
    result = run(
        "improve", model, "--prompts", prompts, "--out", tmp_path / "run", "--judge", "dice"
    )
    assert result.exit_code == 2 and "no judge 'dice'" in result.stderr


def test_some_prompts_are_held_out_whatever_their_order() -> None:
    prompts = [
        Prompt(Example(f"p{n}", (Message("user", (TextBlock("What?"),)),))) for n in range(9)
    ]
    trained, heldout = split_prompts(prompts, 0.3)
    assert len(trained) == 6 and len(heldout) == 3
    assert {p.id for p in split_prompts(prompts[::-1], 0.3)[1]} == {p.id for p in heldout}
    with pytest.raises(PolyptychError, match="1 prompts, 1 of them held out"):
        split_prompts(prompts[:1], 0.1)


@pytest.mark.slow
def test_the_whole_loop_twice_and_again_without_work(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    words = ("improve", model, "--prompts", prompts, "--out", tmp_path, "--iterations", "2")
    few = ("--max-new-tokens", "6", "--samples", "2", "--heldout", "0.3", "--device", "cpu")
    tuned = ("--set", "steps=2", "--set", "lora_rank=4", "--set", "learning_rate=0.01")
    first = run(*words, *few, *tuned)
    assert first.exit_code == 0, first.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["prompts"] == {"improved on": 4, "held out": 2}
    assert [i["prompts"] for i in report["iterations"]] == [4, 4]
    names = [row["metric"] for row in report["metrics"]]
    assert {"words", "truth", "chair_i[fixed]"} <= set(names)
    assert all(len(row["models"]) == 3 for row in report["metrics"])
    page = (tmp_path / "report.html").read_text()
    assert "iteration 2" in page and page.count("data:image/png") >= 2
    before = (tmp_path / "report.json").read_bytes()
    again = run(*words, *few, *tuned)
    assert again.exit_code == 0 and (tmp_path / "report.json").read_bytes() == before
    other = run(*words, *few, *tuned, "--seed", "1")
    assert other.exit_code == 2 and "settings.seed" in other.stderr


def test_tuning_takes_a_recipe_by_name(tmp_path: Path) -> None:
    unknown = run("sima", "tune", tmp_path / "pairs.jsonl", "--recipe", "vast", "--out", tmp_path)
    assert unknown.exit_code == 2
    assert "vast: no recipe of this name or path; known: sima_13b, sima_7b" in unknown.stderr
