"""``polyptych index`` from end to end, with the bundled encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from polyptych import cli
from polyptych.data.images import load_image
from polyptych.data.records import read_records
from polyptych.retrieval.neighbors import NeighborTable
from polyptych.storybook.generation import write_dataset


def run(*words: str | Path | int) -> Result:
    return CliRunner().invoke(cli.app, ["index", *map(str, words)], prog_name="polyptych")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    return write_dataset("knowledge_qa", folder, count=12, split="train", seed=0)


@pytest.fixture(scope="module")
def index(facts: Path) -> Path:
    folder = facts.parent / "index"
    result = run("build", facts, "--out", folder)
    assert result.exit_code == 0, result.output
    assert "12 added, 12 entries" in result.output
    assert "(flat, exact)" in result.output
    return folder


def test_a_picture_finds_itself_first(facts: Path, index: Path) -> None:
    example = next(read_records(facts))
    result = run("search", index, "--image", example.images[0].path, "--top-k", 3)
    assert result.exit_code == 0, result.output
    first = result.output.splitlines()[0].split()
    assert first == ["1.", "1.0000", example.id]
    assert result.output.count("assistant: ") == 3
    assert "(gone)" not in result.output


def test_adding_what_is_there_and_info(facts: Path, index: Path) -> None:
    again = run("add", index, facts)
    assert again.exit_code == 0, again.output
    assert "12 left out: already there" in again.output
    shown = run("info", index)
    assert shown.exit_code == 0, shown.output
    assert "12 in 1 segment(s)" in shown.output
    assert "storybook-encoder" in shown.output


def test_neighbors_of_a_data_set(facts: Path, index: Path) -> None:
    out = facts.parent / "train.neighbors"
    result = run("neighbors", index, facts, "--out", out, "--top-k", 4)
    assert result.exit_code == 0, result.output
    assert "4.0 neighbors of each of 12 examples" in result.output
    table = NeighborTable(out)
    for example in read_records(facts):
        assert example.id not in {hit.id for hit in table.hits(example)}


def test_a_data_set_with_its_neighbors_as_shots(facts: Path, index: Path) -> None:
    table, out = facts.parent / "attached.neighbors", facts.parent / "attached" / "shots.jsonl"
    run("neighbors", index, facts, "--out", table, "--top-k", 4)
    result = run("attach", index, facts, table, "--out", out, "--shots", 3)
    assert result.exit_code == 0, result.output
    assert "12 examples with their shots" in result.output
    known = NeighborTable(table)
    for plain, example in zip(read_records(facts), read_records(out), strict=True):
        assert (example.id, example.messages) == (plain.id, plain.messages)
        assert [shot.id for shot in example.shots] == [hit.id for hit in known.hits(plain)[:3]]
        for ref in (*example.images, *(image for shot in example.shots for image in shot.images)):
            load_image(ref)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["build", "{facts}", "--out", "{index}"], "holds an index already"),
        (["build", "{facts}", "--out", "{new}", "--key", "sound"], "no key 'sound'"),
        (["build", "{facts}", "--out", "{new}", "--key", "text"], "encodes images only"),
        (["build", "{facts}", "--out", "{new}", "--encoder", "no_such"], "no encoder here"),
        (["search", "{index}", "a red ball"], "encodes images only, no texts"),
        (["search", "{index}"], "give a text, an --image, or both"),
        (["search", "{index}", "--image", "no.png"], "no.png does not exist"),
        (["search", "{index}", "--image", "{picture}", "-k", "13"], "13 shots wanted"),
        (["search", "{new}", "--image", "{picture}"], "no index here"),
        (["info", "{new}"], "no index here"),
        (["neighbors", "{index}", "{facts}", "--out", "t", "--query", "smell"], "no query 'smell'"),
    ],
)
def test_bad_words_are_one_line(
    facts: Path, index: Path, tmp_path: Path, words: list[str], part: str
) -> None:
    picture = next(read_records(facts)).images[0].path
    new = tmp_path / "new"
    filled = [word.format(facts=facts, index=index, new=new, picture=picture) for word in words]
    result = run(*filled)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert part in lines[0]
    assert not new.exists()
