"""Shards: the same examples as a file, in a fixed order by shard, fetched when their turn comes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader

from polyptych.data.dataset import ExampleDataset, LoadedExample
from polyptych.data.mixture import mixture
from polyptych.data.shard_writing import write_shards
from polyptych.data.shards import MANIFEST, ShardedExamples, is_sharded
from polyptych.errors import PolyptychError
from polyptych.schema import Example
from polyptych.testing import tiny_examples, tiny_shot_examples

KINDS = ("tar", "parquet")


@pytest.fixture(autouse=True)
def needs_pyarrow() -> None:
    pytest.importorskip("pyarrow")


def identity(loaded: LoadedExample) -> str:
    return loaded.example.id


def first(batch: list[str]) -> list[str]:
    return batch


@pytest.fixture
def shards(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    assert write_shards(tmp_path / "set", tiny_examples(23), request.param, per_shard=3) == 23
    return tmp_path / "set"


@pytest.mark.parametrize("shards", KINDS, indirect=True)
def test_shards_hold_the_examples_bit_for_bit(shards: Path) -> None:
    kind = "tar" if (shards / "00000.tar").exists() else "parquet"
    for path in (str(shards), str(shards / f"*.{kind}")):  # with and without the list
        assert is_sharded(path)
        examples = ShardedExamples(path)
        assert len(examples) == 23
        assert [examples.example(index) for index in range(23)] == tiny_examples(23)
    loaded = examples[1]
    assert [image.size for image in loaded.images] == [(40, 40)] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_shots_keep_their_images(tmp_path: Path, kind: str) -> None:
    given = tiny_shot_examples(4)
    write_shards(tmp_path, given, kind)
    examples = ShardedExamples(str(tmp_path))
    assert [examples.example(index) for index in range(4)] == given


@pytest.mark.parametrize("shards", KINDS, indirect=True)
def test_the_order_takes_each_once_and_few_shards_at_a_time(shards: Path) -> None:
    examples = ShardedExamples(str(shards))
    order = examples.order(5)
    assert sorted(order) == list(range(23))
    assert np.array_equal(order, examples.order(5))
    assert not np.array_equal(order, examples.order(6))
    assert not np.array_equal(order, np.sort(order))
    for part in (order[:11], order[12:]):  # four shards of three, one of them may be the last
        assert len({int(place) // 3 for place in part}) <= 4


@pytest.mark.parametrize("shards", ["parquet"], indirect=True)
def test_workers_read_the_same_and_a_later_start_goes_on(shards: Path) -> None:
    """The items of a run do not depend on who reads them, nor on where it is started."""
    other = ExampleDataset(tiny_examples(5, (1,)), identity)
    mixed = mixture([ShardedExamples(str(shards), identity), other], [3, 1], length=60, block=4)
    alone = [mixed[index] for index in range(60)]
    loader = DataLoader(mixed, batch_size=4, num_workers=2, collate_fn=first)
    assert [item for batch in loader for item in batch] == alone
    again = mixture([ShardedExamples(str(shards), identity), other], [3, 1], length=60, block=4)
    assert [again[index] for index in range(37, 60)] == alone[37:]
    for start in range(0, 60, 4):
        assert (mixed.items[start : start + 4, 0] == 1).sum() == 1
    halves = [  # as two processes take their halves of each step
        {mixed.items[start + place, 0] for start in range(0, 60, 4) for place in part}
        for part in ((0, 1), (2, 3))
    ]
    assert halves == [{0, 1}, {0, 1}]
    drawn = [item for item, source in zip(alone, mixed.items[:, 0], strict=True) if source == 0]
    assert len(set(drawn[:23])) == 23  # everything once before anything comes again


def upload(folder: Path, name: str) -> str:
    """A copy on fsspec's file system in memory."""
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    return f"memory://{name}"


@pytest.mark.parametrize("shards", KINDS, indirect=True)
def test_distant_shards_are_fetched_and_the_oldest_removed(shards: Path, tmp_path: Path) -> None:
    url, cache = upload(shards, shards.parent.name), tmp_path / "cache"
    kind = "tar" if (shards / "00000.tar").exists() else "parquet"
    size = (shards / f"00000.{kind}").stat().st_size
    examples = ShardedExamples(url, cache=cache, cache_bytes=3 * size)
    assert not cache.exists()  # the list says what is there
    assert [examples.example(index) for index in range(23)] == tiny_examples(23)
    kept = [path for path in cache.iterdir() if path.suffix == f".{kind}"]
    assert 1 <= len(kept) <= 4
    assert not list(cache.glob("*.partial"))
    assert examples.example(0).id == "tiny-0"  # fetched once more


def test_a_distant_shard_that_has_changed_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", tiny_examples(2), "tar")
    url = upload(tmp_path / "set", f"{tmp_path.name}-changed")
    memory = fsspec.filesystem("memory")
    name = f"/{tmp_path.name}-changed/00000.tar"
    memory.pipe_file(name, memory.cat_file(name).replace(b"red ball", b"red bull"))
    with pytest.raises(PolyptychError, match=r"00000.tar: sha256 .* but shards.json says "):
        ShardedExamples(url, cache=tmp_path / "cache").example(0)
    assert not list((tmp_path / "cache").glob("*.tar*"))


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match="0 shards"):
        ShardedExamples(str(tmp_path / "*.tar"))
    with pytest.raises(PolyptychError, match="no shards can be found here"):
        ShardedExamples("nosuch://bucket/a.tar")
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    for name in ("bad.tar", "bad.parquet"):
        with pytest.raises(PolyptychError, match=rf"{name}: ") as error:
            ShardedExamples(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(PolyptychError, match="shards are tar or parquet, not 'zip'"):
        write_shards(tmp_path, [], "zip")


def test_a_bad_record_names_shard_and_place(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", tiny_examples(4, (1,)), "tar", per_shard=2)
    path = tmp_path / "set" / "00001.tar"
    path.write_bytes(path.read_bytes().replace(b'"000001.0"', b'"000001.7"'))
    examples = ShardedExamples(str(tmp_path / "set"))
    assert isinstance(examples.example(2), Example)
    with pytest.raises(PolyptychError, match=r"00001.tar example 2: no image '000001.7'"):
        examples.example(3)


def test_a_list_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    write_shards(tmp_path, tiny_examples(4), "tar", per_shard=2)
    sizes = json.loads((tmp_path / MANIFEST).read_text())
    sizes["00000.tar"]["examples"] = 3
    (tmp_path / MANIFEST).write_text(json.dumps(sizes))
    examples = ShardedExamples(str(tmp_path))
    with pytest.raises(PolyptychError, match=r"00000.tar holds 2 examples, shards.json says 3"):
        examples.example(2)


def test_equal_examples_make_equal_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, tiny_examples(3), "tar")
    assert (tmp_path / "a" / "00000.tar").read_bytes() == (
        tmp_path / "b" / "00000.tar"
    ).read_bytes()
    changed = [replace(example, id="x") for example in tiny_examples(3)]
    write_shards(tmp_path / "c", changed, "tar")
    prints = [ShardedExamples(str(tmp_path / name)).fingerprint for name in ("a", "b", "c")]
    assert prints[0] == prints[1] != prints[2]
