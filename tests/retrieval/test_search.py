"""Exact search, approximate kinds, and what is left out of the hits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from retrieval_toys import ToyEncoder, entry

from polyptych.errors import PolyptychError
from polyptych.retrieval import index as index_module
from polyptych.retrieval.building import add_to_index, build_index
from polyptych.retrieval.index import (
    approximate_search,
    build_structure,
    choose_kind,
    exact_search,
    extend_structure,
    measure_recall,
)
from polyptych.retrieval.retriever import LeftOut, Retriever
from polyptych.retrieval.store import Kind, digest
from polyptych.schema import Example


@pytest.fixture(scope="module")
def keys() -> np.ndarray:
    """3,000 unit vectors around 60 centers."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 32))[rng.integers(60, size=3000)]
    vectors = vectors + 0.7 * rng.normal(size=vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_exact_search_is_exact_over_segments(keys: np.ndarray) -> None:
    queries = keys[::97]
    scores, rows = exact_search([keys[:5], keys[5:1700], keys[1700:]], queries, 10)
    truth = queries @ keys.T
    order = np.argsort(-truth, axis=1)[:, :10]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, np.take_along_axis(truth, order, 1), atol=1e-5)


def test_equal_scores_come_in_the_order_of_the_rows(keys: np.ndarray) -> None:
    same = np.repeat(keys[:1], 6, axis=0)
    _, rows = exact_search([same[:2], same[2:]], keys[:1], 4)
    assert rows.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_approximate_kinds_state_the_recall_that_they_have(keys: np.ndarray, kind: Kind) -> None:
    structure = build_structure(kind, [keys])
    stated = measure_recall(structure, [keys])
    assert (stated.top_k, stated.queries) == (10, 256)
    rng = np.random.default_rng(1)
    queries = keys[rng.integers(len(keys), size=200)] + 0.05 * rng.normal(size=(200, 32))
    queries = queries.astype(np.float32)
    _, truth = exact_search([keys], queries, 10)
    scores, found = approximate_search(structure, [keys], queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found, strict=True)])
    assert recall > 0.9
    assert abs(recall - stated.value) < 0.05
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, keys[found]), atol=1e-5)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_an_approximate_index_grows_without_being_trained_again(
    keys: np.ndarray, kind: Kind
) -> None:
    structure = build_structure(kind, [keys[:2000]])
    extend_structure(structure, [keys[2000:]])
    _, rows = approximate_search(structure, [keys[:2000], keys[2000:]], keys[2000::50], 1)
    assert np.mean(rows[:, 0] == np.arange(2000, 3000, 50)) > 0.9


def test_too_few_entries_for_inverted_lists(keys: np.ndarray) -> None:
    with pytest.raises(PolyptychError, match="needs 1000 entries or more, got 999"):
        build_structure("ivfpq", [keys[:999]])


def test_the_kind_is_chosen_by_size() -> None:
    kinds = [choose_kind(n) for n in (1, 200_000, 200_001, 2_000_000, 2_000_001)]
    assert kinds == ["flat", "flat", "hnsw", "hnsw", "ivfpq"]


def test_a_graph_on_disk_is_read_memory_mapped_and_extended(
    tmp_path: Path, entries: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FLAT_UP_TO", 4)
    encoder = ToyEncoder()
    info = build_index(entries[:12], tmp_path, encoder).info
    assert info.kind == "hnsw"
    assert info.recall is not None
    assert info.recall.value == 1.0
    old = info.structure
    info = add_to_index(entries, tmp_path, encoder).info
    assert info.structure != old
    assert not (tmp_path / str(old)).exists()
    retriever = Retriever(tmp_path, encoder)
    vectors, asking = retriever.encode(entries, "image")
    assert asking == list(range(20))
    hits = retriever.search(vectors, 3)
    assert [found[0].id for found in hits] == [e.id for e in entries]
    structure = tmp_path / str(info.structure)
    structure.write_bytes(structure.read_bytes()[:-8])
    with pytest.raises(PolyptychError, match="of another build, or damaged"):
        Retriever(tmp_path, encoder)


def test_queries_by_text_and_fused(tmp_path: Path, encoder: ToyEncoder) -> None:
    entries = [entry(number) for number in range(8)]
    build_index(entries, tmp_path, encoder, key="both")
    retriever = Retriever(tmp_path, encoder)
    for query in ("text", "fused"):
        vectors, _ = retriever.encode(entries, query)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        truth = np.argsort(-(vectors @ retriever.store.keys[0].T), axis=1)[:, 0]
        assert [hits[0].row for hits in retriever.search(vectors, 1)] == truth.tolist()


def test_more_shots_than_entries(
    tmp_path: Path, encoder: ToyEncoder, entries: list[Example]
) -> None:
    build_index(entries, tmp_path, encoder)
    retriever = Retriever(tmp_path, encoder)
    vectors, _ = retriever.encode(entries[:1], "image")
    assert len(retriever.search(vectors, 20)[0]) == 20
    with pytest.raises(PolyptychError, match="21 shots wanted, but the index has 20"):
        retriever.search(vectors, 21)


def test_what_is_left_out_is_made_up_for_by_what_comes_after(
    tmp_path: Path, encoder: ToyEncoder
) -> None:
    """40 conversations about one picture stand before all others in its own search."""
    crowd = [entry(number, picture=0) for number in range(40)]
    others = [entry(number) for number in range(40, 60)]
    build_index([*crowd, *others], tmp_path, encoder)
    retriever = Retriever(tmp_path, encoder)
    vectors, _ = retriever.encode(crowd[:1], "image")
    (plain,) = retriever.search(vectors, 5)
    assert {hit.id for hit in plain} <= {e.id for e in crowd}
    hashes = retriever.store.column("image_hashes", [0])[0]
    (left,) = retriever.search(vectors, 5, left_out=[LeftOut(ids={"e45"}, image_hashes=hashes)])
    ranked = np.argsort(-(vectors @ retriever.store.keys[0].T)[0], kind="stable")
    expected = [row for row in ranked.tolist() if row >= 40 and row != 45][:5]
    assert [hit.row for hit in left] == expected
    (unique,) = retriever.search(vectors, 21, unique_images=True)
    assert [hit.row for hit in unique] == [0, *(row for row in ranked.tolist() if row >= 40)]


def test_digest_of_a_large_file_sees_its_size_and_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyptych.retrieval.store._DIGEST_BLOCK", 4)
    monkeypatch.setattr("polyptych.retrieval.store._DIGEST_BLOCKS", 8)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(64)))
    sampled, whole = digest(path), digest(path, whole=True)
    assert sampled != whole
    for place in (0, 63):
        data = bytearray(range(64))
        data[place] ^= 1
        path.write_bytes(data)
        assert digest(path) != sampled
    path.write_bytes(bytes(range(65)))
    assert digest(path) != sampled
