"""ImageBind's file as a user brings it, and CLIP's tokenizer on a vocabulary made here."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_toys import square

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.retrieval import clip_tokenizer, imagebind
from polyptych.retrieval.clip_tokenizer import ClipTokenizer, byte_characters, clean, read_merges
from polyptych.retrieval.encoders import load_encoder
from polyptych.retrieval.imagebind import ImageBind, ImageBindConfig, TowerSize, load_imagebind

MERGES = [("t", "h"), ("th", "e</w>"), ("r", "e"), ("re", "d</w>"), ("a", "n")]
IDS = 512 + len(MERGES) + 2
TINY = ImageBindConfig(TowerSize(20, 1, 2), TowerSize(16, 1, 2), 28, 14, 2, IDS, 12, 8)


@pytest.fixture
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(MERGES)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny file in the published layout, with the other modalities' keys, and its vocabulary."""
    monkeypatch.setattr(clip_tokenizer, "MERGES", len(MERGES))
    torch.manual_seed(0)
    model = ImageBind(TINY)
    theirs = {ours: published for published, ours in imagebind._OUR_NAMES.items()}
    state = {}
    for key, value in model.state_dict().items():
        prefix = next(p for p in theirs if key == p or key.startswith(p + "."))
        state[theirs[prefix] + key.removeprefix(prefix)] = torch.randn_like(value) * 0.3
    mask = torch.full((12, 12), -torch.inf).triu(1)
    state["modality_preprocessors.text.mask"] = mask
    state["modality_trunks.audio.blocks.0.attn.bias_k"] = torch.ones(1, 1, 4)
    torch.save(state, tmp_path / "imagebind_huge.pth")
    lines = ["#version", *(" ".join(pair) for pair in MERGES), ""]
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(
        gzip.compress("\n".join(lines).encode())
    )
    return tmp_path / "imagebind_huge.pth"


def test_the_published_layout_is_loaded_and_its_licence_said(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_imagebind(weights, config=TINY)
    assert "non-commercial use only" in capsys.readouterr().err
    pictures = [load_image(square(n)).resize((30 + n, 50)) for n in range(3)]
    for vectors in (encoder.encode_images(pictures), encoder.encode_texts(["the red", "an", ""])):
        assert vectors.shape == (3, 8)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_long_texts_differ_unless_the_published_rule_is_asked_for(weights: Path) -> None:
    long = ["the red " * 20, "an the " * 20]
    one, other = load_imagebind(weights, config=TINY).encode_texts(long)
    assert np.abs(one - other).max() > 1e-3
    released = load_imagebind(weights, config=TINY, keep_end_token=False)
    one, other = released.encode_texts(long)
    np.testing.assert_array_equal(one, other)
    assert released.fingerprint != load_imagebind(weights, config=TINY).fingerprint


def test_a_file_of_another_size_or_none_is_refused(weights: Path) -> None:
    with pytest.raises(PolyptychError, match="tensors"):
        load_encoder(weights)
    with pytest.raises(PolyptychError, match="no weights here"):
        load_encoder(weights.with_name("other.pth"))
    weights.write_bytes(b"no zip file")
    with pytest.raises(PolyptychError, match="cannot be read"):
        load_encoder(weights)
    weights.with_name("bpe_simple_vocab_16e6.txt.gz").unlink()
    with pytest.raises(PolyptychError, match="beside the weights"):
        load_encoder(weights)


def test_merges_go_by_rank_and_words_end(tokenizer: ClipTokenizer) -> None:
    parts = {number: part for part, number in tokenizer.ids.items()}
    assert [parts[n] for n in tokenizer.encode("The  RED\nthread an!")] == [
        *("the</w>", "red</w>"),
        *("th", "re", "a", "d</w>"),
        *("a", "n</w>"),
        "!</w>",
    ]


def test_rows_are_cut_with_or_without_their_end(tokenizer: ClipTokenizer) -> None:
    start, end = tokenizer.ids["<|startoftext|>"], tokenizer.ids["<|endoftext|>"]
    the = tokenizer.ids["the</w>"]
    assert (start, end, the) == (IDS - 2, IDS - 1, 513)
    assert tokenizer.row("the", 5, keep_end=True) == [start, the, end, 0, 0]
    assert tokenizer.row("the the the", 5, keep_end=True) == [start, the, the, the, end]
    assert tokenizer.row("the the the the", 5, keep_end=True) == [start, the, the, the, end]
    assert tokenizer.row("the the the the", 5, keep_end=False) == [start, the, the, the, the]
    assert tokenizer.encode("the<|endoftext|>") == [the, end]


def test_every_byte_has_a_character_of_its_own() -> None:
    table = byte_characters()
    assert sorted(table) == list(range(256))
    assert len(set(table.values())) == 256
    assert next(iter(table.values())) == "!"
    assert table[ord(" ")] == "Ġ"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A\tB\n\nC ", "a b c"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("It’s", "it's"),
        ("schÃ¶n", "schön"),
        ("ﬁn", "fin"),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_vocabulary_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    path.write_text("#version\nt h\nth e</w>\n")
    with pytest.raises(PolyptychError, match="2 merges, CLIP has 48894"):
        read_merges(path)
