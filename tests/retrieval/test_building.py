"""An index is whole or not there, and what is in it belongs together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from retrieval_toys import ToyEncoder, entry

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.retrieval.building import add_to_index, build_index
from polyptych.retrieval.inputs import Embedding
from polyptych.retrieval.retriever import Retriever
from polyptych.retrieval.store import Store
from polyptych.schema import Example, Message, TextBlock

SMALL = Embedding(batch_size=4)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_entries_come_back_as_the_examples_they_were(
    tmp_path: Path, encoder: ToyEncoder, entries: list[Example]
) -> None:
    report = build_index(entries, tmp_path / "index", encoder)
    assert (report.added, report.present, report.without_key) == (20, 0, 0)
    store = Store(tmp_path / "index")
    for row, original in enumerate(entries):
        found = store.example(row)
        assert (found.id, found.messages) == (original.id, original.messages)
        assert list(load_image(found.images[0]).getdata()) == list(
            load_image(original.images[0]).getdata()
        )
        expected = encoder.encode_images([load_image(original.images[0])])[0]
        np.testing.assert_allclose(store.keys[0][row], expected, atol=1e-6)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 4])
def test_an_interrupted_build_goes_on_and_ends_the_same(
    tmp_path: Path, entries: list[Example], stop_after: int
) -> None:
    whole, killed, again = ToyEncoder(), ToyEncoder(stop_after=stop_after), ToyEncoder()
    build_index(entries, tmp_path / "whole", whole, settings=SMALL)
    with pytest.raises(KeyboardInterrupt):
        build_index(entries, tmp_path / "index", killed, settings=SMALL)
    with pytest.raises(PolyptychError, match=r"no index here.*interrupted, run it again"):
        Store(tmp_path / "index")
    build_index(entries, tmp_path / "index", again, settings=SMALL)
    assert whole.calls == killed.calls + again.calls, "nothing is computed twice"
    assert files(tmp_path / "index") == files(tmp_path / "whole")
    assert not (tmp_path / "index" / "work").exists()


def test_a_torn_line_of_the_log_is_not_a_finished_batch(
    tmp_path: Path, entries: list[Example]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(entries, tmp_path, ToyEncoder(stop_after=2), settings=SMALL)
    with open(tmp_path / "work" / "images.done", "a") as log:
        log.write("3")
    again = ToyEncoder()
    build_index(entries, tmp_path, again, settings=SMALL)
    assert again.calls == [4, 4, 4]


def test_an_interrupted_build_of_other_data_is_not_continued(
    tmp_path: Path, entries: list[Example]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(entries, tmp_path, ToyEncoder(stop_after=2), settings=SMALL)
    again = ToyEncoder()
    build_index(entries[1:], tmp_path, again, settings=SMALL)
    assert sum(again.calls) == 19


def test_adding_equals_building_at_once_and_touches_no_older_file(
    tmp_path: Path, entries: list[Example]
) -> None:
    build_index(entries, tmp_path / "whole", ToyEncoder())
    build_index(entries[:12], tmp_path / "index", ToyEncoder())
    before = files(tmp_path / "index")
    encoder = ToyEncoder()
    report = add_to_index(entries, tmp_path / "index", encoder)
    assert (report.added, report.present, sum(encoder.calls)) == (8, 12, 8)
    after = files(tmp_path / "index")
    assert {name: after[name] for name in before if name != "index.json"} == {
        name: data for name, data in before.items() if name != "index.json"
    }
    whole, grown = Store(tmp_path / "whole"), Store(tmp_path / "index")
    np.testing.assert_array_equal(np.concatenate(grown.keys), whole.keys[0])
    assert grown.table.column("id").to_pylist() == whole.table.column("id").to_pylist()

    fingerprint = grown.info.fingerprint
    assert add_to_index(entries, tmp_path / "index", encoder).added == 0
    assert Store(tmp_path / "index").info.fingerprint == fingerprint


def test_an_interrupted_addition_leaves_the_index_as_it_was(
    tmp_path: Path, entries: list[Example]
) -> None:
    build_index(entries[:12], tmp_path, ToyEncoder())
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        add_to_index(entries, tmp_path, ToyEncoder(stop_after=0))
    assert {name: files(tmp_path)[name] for name in before} == before
    assert len(Store(tmp_path)) == 12
    assert add_to_index(entries, tmp_path, ToyEncoder()).info.count == 20


def test_each_picture_is_encoded_once(tmp_path: Path, encoder: ToyEncoder) -> None:
    same = [entry(number, picture=number // 5) for number in range(20)]
    build_index(same, tmp_path, encoder)
    assert encoder.calls == [4]
    assert len(Store(tmp_path)) == 20


def test_keys_of_several_pictures_and_of_both_sides(tmp_path: Path, encoder: ToyEncoder) -> None:
    example = entry(3, images=2)
    build_index([example], tmp_path / "image", encoder)
    build_index([example], tmp_path / "both", encoder, key="both")
    pictures = encoder.encode_images([load_image(ref) for ref in example.images]).sum(axis=0)
    pictures /= np.linalg.norm(pictures)
    np.testing.assert_allclose(Store(tmp_path / "image").keys[0][0], pictures, atol=1e-6)
    both = pictures + encoder.encode_texts(["what is d3?\nit is 3."])[0]
    both /= np.linalg.norm(both)
    np.testing.assert_allclose(Store(tmp_path / "both").keys[0][0], both, atol=1e-6)


def test_entries_without_a_key_are_counted(
    tmp_path: Path, encoder: ToyEncoder, entries: list[Example]
) -> None:
    words = (Message("user", (TextBlock("why?"),)), Message("assistant", (TextBlock("so."),)))
    text_only = Example("t", words)
    report = build_index([*entries, text_only], tmp_path / "image", encoder)
    assert (report.added, report.without_key) == (20, 1)
    assert build_index([text_only], tmp_path / "both", encoder, key="both").added == 1
    with pytest.raises(PolyptychError, match="none of 1 examples has a image key"):
        build_index([text_only], tmp_path / "none", encoder)


# What does not belong together


@pytest.fixture
def two_builds(tmp_path: Path, entries: list[Example]) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    build_index(entries, one, ToyEncoder())
    build_index([replace(entries[0], id="changed"), *entries[1:]], other, ToyEncoder())
    return one, other


@pytest.mark.parametrize("kind", ["keys", "entries"])
def test_files_of_different_builds_are_refused(two_builds: tuple[Path, Path], kind: str) -> None:
    one, other = two_builds
    (mine,), (theirs,) = one.glob(f"{kind}-*"), other.glob(f"{kind}-*")
    if kind == "keys":
        data = bytearray(theirs.read_bytes())
        data[5] ^= 1
        theirs.write_bytes(data)
    shutil.copyfile(theirs, mine)
    with pytest.raises(PolyptychError, match="of another build, or damaged"):
        Store(one)
    mine.unlink()
    with pytest.raises(PolyptychError, match="is gone"):
        Store(one)


def test_a_changed_description_is_refused(two_builds: tuple[Path, Path]) -> None:
    path = two_builds[0] / "index.json"
    fields = json.loads(path.read_text())
    fields["dimension"] = 4
    path.write_text(json.dumps(fields))
    with pytest.raises(PolyptychError, match="checksum"):
        Store(two_builds[0])
    path.write_text("{}")
    with pytest.raises(PolyptychError, match="index format None, this version reads 1"):
        Store(two_builds[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ToyEncoder(fingerprint="toy-2", name="new"), r"toy \(toy-1\), not of new \(toy-2\)"),
        (ToyEncoder(dimension=9), "keys of 8 numbers, but toy makes 9"),
    ],
)
def test_another_encoder_is_refused(
    two_builds: tuple[Path, Path], other: ToyEncoder, message: str
) -> None:
    with pytest.raises(PolyptychError, match=message):
        Retriever(two_builds[0], other)
    with pytest.raises(PolyptychError, match=message):
        add_to_index([entry(99)], two_builds[0], other)


def test_an_index_is_not_built_over_another(two_builds: tuple[Path, Path]) -> None:
    with pytest.raises(PolyptychError, match="holds an index already"):
        build_index([entry(1)], two_builds[0], ToyEncoder())


def test_a_side_that_the_encoder_lacks(tmp_path: Path, entries: list[Example]) -> None:
    blind = ToyEncoder(modalities=("text",))
    with pytest.raises(PolyptychError, match="toy encodes texts only, no images"):
        build_index(entries, tmp_path / "index", blind)
    assert not (tmp_path / "index").exists()


def test_an_image_that_is_gone_or_changed_after_indexing(
    tmp_path: Path, encoder: ToyEncoder, entries: list[Example]
) -> None:
    build_index(entries, tmp_path, encoder)
    example = Store(tmp_path).example(4)
    picture = Path(str(example.images[0].path))
    shutil.copyfile(Path(str(Store(tmp_path).example(5).images[0].path)), picture)
    with pytest.raises(PolyptychError, match="has changed"):
        load_image(example.images[0])
    picture.unlink()
    with pytest.raises(PolyptychError, match="does not exist"):
        load_image(example.images[0])


def test_an_index_can_be_moved_with_its_pictures(
    tmp_path: Path, encoder: ToyEncoder, entries: list[Example]
) -> None:
    build_index(entries, tmp_path / "index", encoder)
    (tmp_path / "index").rename(tmp_path / "moved")
    assert load_image(Store(tmp_path / "moved").example(7).images[0]).size == (4, 4)
