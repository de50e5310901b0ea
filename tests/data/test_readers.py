"""Readers of other formats, on small files made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polyptych.data.readers import READERS, detect_format, read_examples
from polyptych.data.readers.llava import parse_llava, read_llava
from polyptych.data.readers.native import read_native
from polyptych.data.readers.sam import read_sam
from polyptych.data.readers.splitting import SPLITS, connected, split_keys
from polyptych.data.records import write_records
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageBlock, Message, TextBlock

# ---------------------------------------------------------------- LLaVA


def llava(**changes: object) -> dict[str, object]:
    return {
        "id": "7",
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nand <image>: what is shared?"},
            {"from": "gpt", "value": "A ball."},
        ],
        "source": "made here",
    } | changes


def test_llava_tokens_become_image_blocks_in_place(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([llava()]))
    (example,) = read_llava(path)
    assert example.messages == (
        Message(
            "user",
            (ImageBlock(), TextBlock("\nand "), ImageBlock(), TextBlock(": what is shared?")),
        ),
        Message("assistant", (TextBlock("A ball."),)),
    )
    assert [ref.path for ref in example.images] == [str(tmp_path / n) for n in ("a.png", "b.png")]
    assert example.metadata == {"source": "made here"}


@pytest.mark.parametrize(
    ("image", "tokens"), [(None, 0), ("", 0), ([], 0), ("a.png", 1), (["a.png"], 1)]
)
def test_llava_image_may_be_missing_a_string_or_a_list(image: object, tokens: int) -> None:
    turns = [{"from": "human", "value": "<image>" * tokens + "What?"}]
    example = parse_llava({"id": 7, "image": image, "conversations": turns}, "test", "folder")
    assert example.id == "7"
    assert [ref.path for ref in example.images] == ["folder/a.png"] * tokens


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (llava(image="test1.jpg"), r"\(id '7'\): 2 image placeholder.* but 1 image"),
        (llava(image=[1, 2]), r"'image' must be a string or a list of strings"),
        (llava(id=None), r"'id' must be a string or a number, got None"),
        (llava(conversations="Hi"), r"must have a list 'conversations'"),
        (llava(conversations=[{"from": "bot", "value": "x"}]), r"'from' must be one of"),
        (llava(conversations=[{"from": "gpt"}]), r"a turn must be"),
        (llava(conversations=[{"from": "human", "value": "<image><image>"}]), r"empty instruction"),
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_llava_errors_name_the_record(
    tmp_path: Path, bad: object, message: str, lines: bool
) -> None:
    items = [llava(id="1"), bad, llava(id="3")]
    path = tmp_path / ("a.jsonl" if lines else "a.json")
    path.write_text("\n".join(map(json.dumps, items)) if lines else json.dumps(items))
    place = "line 2" if lines else "record 2"
    with pytest.raises(PolyptychError, match=f"{path.name} {place}.*{message}"):
        list(read_examples(path, "llava"))
    problems: list[PolyptychError] = []
    assert [e.id for e in read_llava(path, on_error=problems.append)] == ["1", "3"]
    assert len(problems) == 1


# ---------------------------------------------------------------- SAM's test sets

STORY = "Finish the story.{image#1}Caption#1:A fox.{image#2}Caption#2:"


def sam_set(folder: Path, *items: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(items))
    return folder


def sam_item(**changes: object) -> dict[str, object]:
    return {
        "id": 3,
        "img_list": ["x/1.jpg", "x/2.jpg"],
        "instruction": STORY,
        "output": "It sleeps.",
    } | changes


def test_sam_released_layout_keeps_the_instruction_verbatim(tmp_path: Path) -> None:
    (example,) = read_sam(sam_set(tmp_path / "AESOP", sam_item()))
    assert example.id == "AESOP/3"
    assert example.messages[0].content == (ImageBlock(), ImageBlock(), TextBlock(STORY))
    assert [ref.path for ref in example.images] == [
        str(tmp_path / "AESOP" / "x" / name) for name in ("1.jpg", "2.jpg")
    ]
    assert (example.target, example.references) == ("It sleeps.", ("It sleeps.",))
    assert example.metadata == {"dataset": "AESOP", "sample_id": 3}


def test_sam_interleaved_puts_images_at_their_slots(tmp_path: Path) -> None:
    swapped = "{image#2} then {image#1}"
    folder = sam_set(tmp_path / "VIST", sam_item(), sam_item(id=4, instruction=swapped))
    story, other = read_sam(folder, interleaved=True)
    assert story.messages[0].content == (
        TextBlock("Finish the story."),
        ImageBlock(),
        TextBlock("Caption#1:A fox."),
        ImageBlock(),
        TextBlock("Caption#2:"),
    )
    assert other.messages[0].content == (ImageBlock(), TextBlock(" then "), ImageBlock())
    assert [Path(ref.path or "").name for ref in other.images] == ["2.jpg", "1.jpg"]


@pytest.mark.parametrize("text", ["What is shared?", "Only {image#1}.", "{image#1}{image#1} a"])
def test_sam_interleaved_without_all_slots_keeps_images_first(tmp_path: Path, text: str) -> None:
    folder = sam_set(tmp_path / "Animal", sam_item(instruction=text))
    (example,) = read_sam(folder, interleaved=True)
    assert example.messages[0].content == (ImageBlock(), ImageBlock(), TextBlock(text))


def test_sam_interleaved_slot_without_image(tmp_path: Path) -> None:
    folder = sam_set(tmp_path / "Animal", sam_item(instruction="{image#5} a"))
    with pytest.raises(PolyptychError, match=r"record 1 \(id 3\): slot {image#5} but 2 image"):
        list(read_sam(folder, interleaved=True))


def test_sam_sets_come_in_the_released_order(tmp_path: Path) -> None:
    for name in ("Vehicle", "AESOP", "Conceptual"):
        sam_set(tmp_path / name, sam_item())
    assert [e.id for e in read_sam(tmp_path)] == ["AESOP/3", "Conceptual/3", "Vehicle/3"]


@pytest.mark.parametrize("key", ["id", "img_list", "instruction", "output"])
def test_sam_missing_key(tmp_path: Path, key: str) -> None:
    folder = sam_set(tmp_path / "DM800K", sam_item(), sam_item(**{key: None}))
    with pytest.raises(
        PolyptychError, match=f"annotations.json record 2: missing or wrong '{key}'"
    ):
        list(read_sam(folder))


# ---------------------------------------------------------------- splits


@given(st.sets(st.text(max_size=5)), st.integers(0, 9))
def test_split_covers_all_keys_and_ignores_their_order(keys: set[str], seed: int) -> None:
    fractions = dict(zip(SPLITS, (0.6, 0.2, 0.2), strict=True))
    splits = split_keys(sorted(keys), fractions, seed)
    assert splits.keys() == keys
    assert splits == split_keys(sorted(keys, reverse=True), fractions, seed)
    assert abs(sum(name == "train" for name in splits.values()) - 0.6 * len(keys)) <= 0.5


def test_relatives_are_found_through_others() -> None:
    traits = {"a": ["1"], "b": ["2"], "c": ["2", "1"], "d": ["3"], "e": []}
    family = connected(list(traits), traits)
    assert len({family[key] for key in "abc"}) == 1
    assert len(set(family.values())) == 3


# ---------------------------------------------------------------- the three picture sets


def african_storybook(root: Path) -> Path:
    lines = []
    for number in range(12):
        pages = [{"image": f"{number}_{p}.png", "text": f"Text {number} {p}."} for p in range(6)]
        for index, page in enumerate(pages):
            Image.new("RGB", (1, 1), (number, index, 0)).save(root / page["image"])
        if number == 11:  # a second telling with a picture of the first book
            pages[3]["image"] = "0_2.png"
        story = {"id": f"s{number}", "title": f"Title {number}", "cover": "", "pages": pages}
        credit = {"text_by": f"Author {number}", "illustration_by": "Painter", "license": "CC BY"}
        lines.append(json.dumps(story | credit))
    (root / "stories.jsonl").write_text("\n".join(lines) + "\n")
    return root


def trashnet(root: Path) -> Path:
    labels = [
        {"file": f"{material}{number}.jpg", "label": material}
        for material in ("glass", "metal", "paper")
        for number in range(100)
    ]
    for number in (5, 6):  # one photo under two labels
        labels[number + 100 * (number - 5)]["file"] = f"same{number}.jpg"
        (root / f"same{number}.jpg").write_bytes(b"one photo")
    (root / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    return root


def noto_emoji(root: Path) -> Path:
    subgroups = {"animal-bird": 20, "animal-mammal": 20, "plant-flower": 20, "drink": 20}
    emoji = [
        {"file": f"{sub}{n}.png", "name": f"{sub} {n}", "group": "", "subgroup": sub}
        for sub, count in subgroups.items()
        for n in range(count)
    ]
    emoji += [
        {"file": f"{who}{n}.png", "name": f"{who} in job {n}", "subgroup": "person-role"}
        for n in range(10)
        for who in ("man", "woman", "person")
    ]
    emoji.append({"file": "x.png", "name": "x", "subgroup": "no such subgroup"})
    (root / "emoji.jsonl").write_text("\n".join(map(json.dumps, emoji)))
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    "african_storybook": african_storybook,
    "trashnet": trashnet,
    "noto_emoji": noto_emoji,
}


@pytest.mark.parametrize("name", MAKERS)
def test_picture_sets_are_deterministic_by_seed_and_split_cleanly(
    tmp_path: Path, name: str
) -> None:
    folder = MAKERS[name](tmp_path)
    examples = list(read_examples(folder))
    assert examples == list(read_examples(folder, name, seed=0))
    assert examples != list(read_examples(folder, seed=1))
    assert len({example.id for example in examples}) == len(examples)
    shown: dict[str, set[str | None]] = {split: set() for split in SPLITS}
    for example in examples:
        shown[example.metadata["split"]] |= {ref.path for ref in example.images}
    assert all(shown.values())
    for split, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not shown[split] & shown[other]
    for split in SPLITS:
        wanted = [example for example in examples if example.metadata["split"] == split]
        assert list(read_examples(folder, split=split)) == wanted


@pytest.mark.parametrize("name", ["trashnet", "noto_emoji"])
def test_groups_have_five_phrasings_and_an_answer_among_them(tmp_path: Path, name: str) -> None:
    examples = list(read_examples(MAKERS[name](tmp_path), count=60))
    assert len(examples) == 180
    assert {len(example.images) for example in examples} == {3, 4, 5, 6}
    for example in examples:
        assert len(set(example.references)) == 5
        assert example.target in example.references
        assert len(set(example.images)) == len(example.images)
    for position in range(5):
        assert any(example.target == example.references[position] for example in examples)


def test_trashnet_truth(tmp_path: Path) -> None:
    examples = list(read_examples(trashnet(tmp_path), count=200, split="train"))
    ordinals = ("first", "second", "third", "fourth", "fifth", "sixth")
    odd_groups = 0
    for example in examples:
        names = [Path(ref.path or "").stem for ref in example.images]
        assert not any(name.startswith("same") for name in names)
        found = [name.rstrip("0123456789") for name in names]
        shared, odd = example.metadata["shared"], example.metadata["odd"]
        assert shared in (example.target or "")
        fits = [material == shared for material in found]
        assert fits == [place != odd for place in range(1, len(found) + 1)]
        if odd is not None:
            odd_groups += 1
            assert all(ordinals[odd - 1] in text for text in example.references)
    assert 70 <= odd_groups <= 130


def test_noto_emoji_truth_is_the_deepest_common_node(tmp_path: Path) -> None:
    tree = {
        "animal-bird": ("animals or plants", "animals", "birds"),
        "animal-mammal": ("animals or plants", "animals", "mammals"),
        "plant-flower": ("animals or plants", "plants", "flowers"),
        "drink": ("food, drinks or dishes", "drinks"),
    }
    levels = set()
    for example in read_examples(noto_emoji(tmp_path), count=100):
        stems = [Path(ref.path or "").stem.rstrip("0123456789") for ref in example.images]
        if set(stems) <= {"man", "woman", "person"}:
            assert example.metadata["shared"] == "people in a role or job"
            continue
        paths = [tree[stem] for stem in stems]
        common = [level[0] for level in zip(*paths, strict=False) if len(set(level)) == 1]
        assert example.metadata["shared"] == common[-1]
        assert common[-1] in (example.target or "")
        levels.add(example.metadata["level"])
    assert levels == {"group", "family", "subgroup"}


def test_variants_of_one_emoji_stay_in_one_split(tmp_path: Path) -> None:
    splits: dict[str, set[str]] = {}
    for example in read_examples(noto_emoji(tmp_path), count=300):
        for ref in example.images:
            stem = Path(ref.path or "").stem
            if stem.startswith(("man", "woman", "person")):
                number = stem[-1]
                splits.setdefault(number, set()).add(example.metadata["split"])
    assert len(splits) == 10
    assert all(len(found) == 1 for found in splits.values())


def test_storytelling_shows_a_window_and_asks_for_the_next_page(tmp_path: Path) -> None:
    examples = {e.id: e for e in read_examples(african_storybook(tmp_path), window=2)}
    assert len(examples) == 12 * 5
    example = examples["s4-05"]
    assert [Path(ref.path or "").name for ref in example.images] == [
        "4_2.png",
        "4_3.png",
        "4_4.png",
    ]
    _, *rest = example.messages[0].content
    assert rest == [
        ImageBlock(),
        TextBlock("\nPage 1: Text 4 2.\n"),
        ImageBlock(),
        TextBlock("\nPage 2: Text 4 3.\n"),
        ImageBlock(),
        TextBlock("\nPage 3:"),
    ]
    assert example.target == "Text 4 4."
    assert example.metadata["text_by"] == "Author 4"
    assert example.metadata["license"] == "CC BY"
    assert len(examples["s4-02"].images) == 2
    assert examples["s0-02"].metadata["split"] == examples["s11-02"].metadata["split"]
    with pytest.raises(PolyptychError, match="window must be at least 1, got 0"):
        list(read_examples(tmp_path, window=0))


def test_bad_lines_of_a_label_file(tmp_path: Path) -> None:
    folder = trashnet(tmp_path)
    path = folder / "labels.jsonl"
    path.write_text('{"file": "a.jpg"}\n' + path.read_text())
    with pytest.raises(PolyptychError, match=r"labels.jsonl line 1: missing or wrong 'label'"):
        list(read_examples(folder))
    problems: list[PolyptychError] = []
    assert len(list(read_examples(folder, count=5, on_error=problems.append))) == 15
    assert len(problems) == 1


def test_too_small_a_set(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text('{"file": "a.jpg", "label": "glass"}\n')
    with pytest.raises(PolyptychError, match="too few photos in split 'train'"):
        list(read_examples(tmp_path))


# ---------------------------------------------------------------- choosing a reader


def native_file(path: Path) -> Path:
    message = Message("user", (TextBlock("What?"),))
    write_records(path, [Example(path.stem, (message,))])
    return path


def test_formats_are_found_by_looking(tmp_path: Path) -> None:
    for name, make in MAKERS.items():
        folder = tmp_path / name
        folder.mkdir()
        assert detect_format(make(folder)) == name
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.jsonl").write_text(json.dumps(llava()))
    assert detect_format(tmp_path / "a.json") == "llava"
    assert detect_format(tmp_path / "b.jsonl") == "llava"
    assert detect_format(native_file(tmp_path / "c" / "c.jsonl")) == "native"
    assert detect_format(tmp_path / "c") == "native"
    sam_set(tmp_path / "sam" / "AESOP")
    assert detect_format(tmp_path / "sam") == detect_format(tmp_path / "sam" / "AESOP") == "sam"
    assert set(READERS) == {"native", "llava", "sam", *MAKERS}


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "no data found"), ("a.txt", "unknown kind"), ("no", "not exist")],
)
def test_nothing_known(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(PolyptychError, match=message):
        read_examples(tmp_path / name)


def test_unknown_format_option_and_split(tmp_path: Path) -> None:
    path = native_file(tmp_path / "a.jsonl")
    with pytest.raises(PolyptychError, match="no format 'coco'; the formats are native"):
        read_examples(path, "coco")
    with pytest.raises(PolyptychError, match="unexpected keyword argument 'window'"):
        read_examples(path, window=3)
    with pytest.raises(PolyptychError, match="no split 'dev'; the splits are train"):
        list(read_examples(trashnet(tmp_path), "trashnet", split="dev"))


def test_native_folder_with_splits(tmp_path: Path) -> None:
    for split in SPLITS:
        native_file(tmp_path / f"{split}.jsonl")
    assert [example.id for example in read_native(tmp_path, split="test")] == ["test"]
    with pytest.raises(PolyptychError, match=r"found test.jsonl, train.jsonl, validation.jsonl"):
        list(read_native(tmp_path))
    with pytest.raises(PolyptychError, match=r"wanted dev.jsonl"):
        list(read_native(tmp_path, split="dev"))
