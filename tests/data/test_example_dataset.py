"""The lazy dataset: order kept through workers, images decoded once, mixtures in exact shares."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from polyptych.data import dataset as module
from polyptych.data.dataset import ExampleDataset, LoadedExample
from polyptych.data.mixture import mixture
from polyptych.data.records import read_records, write_records
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock


def example(folder: Path, number: int) -> Example:
    """Example n has n % 4 images whose pixels say which example and place they belong to."""
    images = []
    for place in range(number % 4):
        path = folder / f"{number}_{place}.png"
        Image.new("RGB", (2, 2), (number, place, 0)).save(path)
        images.append(ImageRef(path=str(path)))
    question = (*(ImageBlock() for _ in images), TextBlock(f"What is {number}?"))
    return Example(str(number), (Message("user", question),), tuple(images))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "train.jsonl"
    write_records(file, (example(tmp_path, number) for number in range(20)))
    return file


def fingerprint(loaded: LoadedExample) -> tuple[str, list[tuple[int, ...]]]:
    return loaded.example.id, [
        tuple(int(value) for value in np.asarray(image)[0, 0]) for image in loaded.images
    ]


def expected(number: int) -> tuple[str, list[tuple[int, ...]]]:
    return str(number), [(number, place, 0) for place in range(number % 4)]


def keep(items: list[object]) -> list[object]:
    return items


def test_random_access_by_line(path: Path) -> None:
    data = ExampleDataset(path)
    assert len(data) == 20
    assert [data.example(n) for n in range(20)] == list(read_records(path))
    assert data.example(-1).id == "19"
    assert fingerprint(data[7]) == expected(7)
    with pytest.raises(IndexError):
        data[20]
    assert [item.example.id for item in data] == [str(n) for n in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_of_examples_and_images_survives_workers(path: Path, workers: int) -> None:
    loader = DataLoader(
        ExampleDataset(path, fingerprint), batch_size=3, num_workers=workers, collate_fn=keep
    )
    assert [item for batch in loader for item in batch] == [expected(n) for n in range(20)]


def test_a_dataset_in_memory_behaves_the_same(path: Path) -> None:
    lazy, held = ExampleDataset(path), ExampleDataset(list(read_records(path)))
    assert [fingerprint(item) for item in lazy] == [fingerprint(item) for item in held]


def test_nothing_is_decoded_before_or_twice(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str | None] = Counter()
    original = module.load_image

    def counting(ref: ImageRef, *, where: str = "") -> Image.Image:
        decoded[ref.path] += 1
        return original(ref, where=where)

    monkeypatch.setattr(module, "load_image", counting)
    data = ExampleDataset(path)
    assert [data.example(n).id for n in range(20)] == [str(n) for n in range(20)]
    assert not decoded
    for item in data:
        assert len(item.images) == int(item.example.id) % 4
    assert len(decoded) == sum(n % 4 for n in range(20))
    assert set(decoded.values()) == {1}
    twice = example(tmp_path, 1)
    question = Message("user", (ImageBlock(), TextBlock("and"), ImageBlock()))
    shown_twice = Example("x", (question,), twice.images * 2)
    decoded.clear()
    assert len(ExampleDataset([shown_twice])[0].images) == 2
    assert sum(decoded.values()) == 1


def test_without_images(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_image", None)
    assert ExampleDataset(path, load_images=False)[7].images == ()


def test_pickled_dataset_reads_its_file_again(path: Path) -> None:
    data = ExampleDataset(path, fingerprint)
    data[3]
    assert pickle.loads(pickle.dumps(data))[7] == expected(7)
    assert len(pickle.dumps(ExampleDataset(path))) < 2_000


def test_errors_name_line_or_example(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[6] = "{"
    path.write_text("\n".join(lines))
    data = ExampleDataset(path)
    assert data.example(5).id == "5"
    with pytest.raises(PolyptychError, match=r"train.jsonl line 7: not valid JSON"):
        data[6]
    (path.parent / "9_0.png").unlink()
    with pytest.raises(PolyptychError, match=r"example '9': image .*9_0.png does not exist"):
        data[9]
    path.unlink()
    with pytest.raises(PolyptychError, match=r"cannot read .*train.jsonl: No such file"):
        data[0]


def ids(folder: Path, letter: str, count: int) -> ExampleDataset:
    message = Message("user", (TextBlock("What?"),))
    return ExampleDataset([Example(f"{letter}{n}", (message,)) for n in range(count)])


def test_mixture_has_exact_shares_and_a_fixed_order(tmp_path: Path) -> None:
    parts = [ids(tmp_path, "a", 10), ids(tmp_path, "b", 100)]
    mixed = mixture(parts, [3, 1], seed=5, length=40)
    drawn = [item.example.id for item in mixed]
    assert Counter(name[0] for name in drawn) == {"a": 30, "b": 10}
    assert set(Counter(name for name in drawn if name[0] == "a").values()) == {3}
    assert max(Counter(name for name in drawn if name[0] == "b").values()) == 1
    assert drawn == [item.example.id for item in mixture(parts, [3, 1], seed=5, length=40)]
    assert drawn != [item.example.id for item in mixture(parts, [3, 1], seed=6, length=40)]
    assert len(mixture(parts, [1, 1])) == 110


def test_mixture_through_workers(tmp_path: Path) -> None:
    mixed = mixture([ids(tmp_path, "a", 5), ids(tmp_path, "b", 5)], [1, 1])
    loader = DataLoader(mixed, batch_size=None, num_workers=2)
    assert [item.example.id for item in loader] == [item.example.id for item in mixed]


def test_mixture_of_impossible_shares(tmp_path: Path) -> None:
    full, empty = ids(tmp_path, "a", 5), ids(tmp_path, "b", 0)
    with pytest.raises(PolyptychError, match=r"2 dataset\(s\) but 1 weight\(s\)"):
        mixture([full, empty], [1])
    with pytest.raises(PolyptychError, match="weights must be positive"):
        mixture([full], [0])
    with pytest.raises(PolyptychError, match="dataset 2 of the mixture is empty"):
        mixture([full, empty], [1, 1])
    assert len(mixture([full, empty], [1, 0])) == 5
