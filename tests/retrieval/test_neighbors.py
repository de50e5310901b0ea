"""Neighbor tables: computed once, without the example's own answer, and bound to data and index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from retrieval_toys import ToyEncoder, entry

from polyptych.errors import PolyptychError
from polyptych.retrieval.building import add_to_index, build_index
from polyptych.retrieval.inputs import Embedding
from polyptych.retrieval.neighbors import (
    NeighborSettings,
    NeighborTable,
    build_neighbors,
    with_shots,
)
from polyptych.retrieval.retriever import Retriever
from polyptych.schema import Example, Message, TextBlock


@pytest.fixture
def retriever(tmp_path: Path, entries: list[Example]) -> Retriever:
    """Entries 0 to 19; entry 20 shows the picture of 3, entry 21 has the id of 3."""
    twins = [entry(20, picture=3), replace(entry(21), id="e3")]
    build_index([*entries, *twins], tmp_path / "index", ToyEncoder())
    return Retriever(tmp_path / "index", ToyEncoder())


def test_an_example_never_gets_its_own_answer(
    tmp_path: Path, retriever: Retriever, entries: list[Example]
) -> None:
    table = build_neighbors(entries, retriever, tmp_path / "t", settings=NeighborSettings(5))
    for example in entries:
        found = table.hits(example)
        assert len(found) == 5
        assert example.id not in {hit.id for hit in found}
    assert not {"e3", "e20"} & {hit.id for hit in table.hits(entries[3])}
    assert NeighborTable(tmp_path / "t").mean_count == 5


def test_what_is_left_out_can_be_chosen(
    tmp_path: Path, retriever: Retriever, entries: list[Example]
) -> None:
    released = NeighborSettings(
        3, exclude_self=False, exclude_same_image=False, unique_images=False
    )
    table = build_neighbors(entries, retriever, tmp_path / "t", settings=released)
    assert [hit.id for hit in table.hits(entries[3])][:2] == ["e3", "e20"]
    self_only = replace(released, exclude_self=True)
    table = build_neighbors(entries, retriever, tmp_path / "t", settings=self_only)
    assert table.hits(entries[3])[0].id == "e20"


def test_shots_are_the_entries_themselves(
    tmp_path: Path, retriever: Retriever, entries: list[Example]
) -> None:
    table = build_neighbors(entries, retriever, tmp_path / "t", settings=NeighborSettings(5))
    example = with_shots(entries[0], table, retriever.store, count=2)
    assert [shot.id for shot in example.shots] == [hit.id for hit in table.hits(entries[0])[:2]]
    originals = {e.id: e for e in entries}
    for shot in example.shots:
        assert shot.messages == originals[shot.id].messages
        assert len(shot.images) == 1
    assert replace(example, shots=()) == entries[0]


def test_a_table_is_computed_once(
    tmp_path: Path, retriever: Retriever, entries: list[Example]
) -> None:
    encoder = retriever.encoder
    build_neighbors(entries, retriever, tmp_path / "t")
    calls = len(encoder.calls)
    build_neighbors(entries, retriever, tmp_path / "t")
    assert len(encoder.calls) == calls
    build_neighbors(entries[1:], retriever, tmp_path / "t")
    assert len(encoder.calls) > calls
    assert not (tmp_path / "t.work").exists()


def test_a_killed_table_goes_on(
    tmp_path: Path, retriever: Retriever, entries: list[Example]
) -> None:
    small = Embedding(batch_size=4)
    whole = build_neighbors(entries, retriever, tmp_path / "whole", embedding=small)
    retriever.encoder = ToyEncoder(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        build_neighbors(entries, retriever, tmp_path / "t", embedding=small)
    assert not (tmp_path / "t").exists()
    retriever.encoder = ToyEncoder()
    table = build_neighbors(entries, retriever, tmp_path / "t", embedding=small)
    assert retriever.encoder.calls == [4, 4, 4]
    assert [table.hits(e) for e in entries] == [whole.hits(e) for e in entries]


def test_changed_data_and_another_index_are_noticed(
    tmp_path: Path, retriever: Retriever, entries: list[Example]
) -> None:
    table = build_neighbors(entries, retriever, tmp_path / "t")
    asked = Message("user", (*entries[0].messages[0].content[:1], TextBlock("and this?")))
    changed = replace(entries[0], messages=(asked, *entries[0].messages[1:]))
    with pytest.raises(PolyptychError, match="no neighbors of example 'e0'; the data have changed"):
        table.hits(changed)
    add_to_index([entry(77)], retriever.store.folder, ToyEncoder())
    grown = Retriever(retriever.store.folder, ToyEncoder())
    with pytest.raises(PolyptychError, match="make the table again"):
        with_shots(entries[0], table, grown.store)
    again = build_neighbors(entries, grown, tmp_path / "t")
    assert again.index_fingerprint == grown.store.info.fingerprint


def test_an_example_without_a_picture_gets_no_shots_by_picture(
    tmp_path: Path, retriever: Retriever, entries: list[Example]
) -> None:
    words = Example("w", (Message("user", (TextBlock("what is b?"),)),))
    table = build_neighbors([words, entries[0]], retriever, tmp_path / "t")
    assert table.hits(words) == []
    assert len(table.hits(entries[0])) == 10
    settings = NeighborSettings(query="fused")
    assert len(build_neighbors([words], retriever, tmp_path / "t", settings=settings).hits(words))


@pytest.mark.parametrize("content", [None, b"", b"not arrow"])
def test_a_file_that_is_no_table(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(PolyptychError, match="neighbor table"):
        NeighborTable(tmp_path / "t")
