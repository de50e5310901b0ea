"""The discriminative data pipeline: exact attention, each step, whole runs, breaks, bad input."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from polyptych.data.images import load_image
from polyptych.data.records import read_records
from polyptych.errors import PolyptychError
from polyptych.methods.cheetah import commands
from polyptych.methods.cheetah.discriminative import DroppedError, Edit, Region, SourcePicture
from polyptych.methods.cheetah.discriminative.detection import (
    QFormerAttention,
    cross_attention,
    importance,
    select,
)
from polyptych.methods.cheetah.discriminative.edits import (
    LanguageModelEdits,
    describe_region,
    parse_reply,
)
from polyptych.methods.cheetah.discriminative.filters import ClipSimilarity, PixelChange
from polyptych.methods.cheetah.discriminative.images import InpaintingEditor, StorybookEditor
from polyptych.methods.cheetah.discriminative.local_models import (
    ClipModel,
    load_clip,
    load_pipeline,
)
from polyptych.methods.cheetah.discriminative.masks import (
    CaptionLabels,
    SegmentAnythingMasks,
    StorybookMasks,
    background_windows,
)
from polyptych.methods.cheetah.discriminative.sources import StorybookPictures, read_pictures
from polyptych.methods.cheetah.discriminative.storybook_edits import StorybookEdits
from polyptych.methods.cheetah.discriminative.texts import LanguageModelTargets
from polyptych.methods.cheetah.discriminative_data import (
    DiscriminativeSettings,
    Steps,
    build_discriminative_data,
    storybook_steps,
)
from polyptych.schema import ImageRef
from polyptych.storybook.graph import scene_from_json
from polyptych.storybook.rendering import draw
from polyptych.storybook.scoring import change_correct
from polyptych.storybook.vocabulary import pair_split
from polyptych.testing import tiny_image, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("off")


@pytest.fixture(scope="module")
def steps(model: Any) -> Steps:
    return storybook_steps(model, tiny_processor())


# Where the Q-Former looks.


def _attention_by_hand(qformer: Any, features: torch.Tensor) -> torch.Tensor:
    """The stack written out with plain matrices; mean over layers, heads and queries."""

    def heads(x: torch.Tensor, layer: torch.nn.Linear, count: int) -> torch.Tensor:
        y = x @ layer.weight.T + layer.bias
        return y.reshape(len(y), y.shape[1], count, -1).permute(0, 2, 1, 3)

    def attend(block: Any, x: torch.Tensor, source: torch.Tensor) -> tuple[Any, torch.Tensor]:
        query, key, value = (
            heads(states, layer, block.heads)
            for states, layer in ((x, block.query), (source, block.key), (source, block.value))
        )
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ value).permute(0, 2, 1, 3).reshape(x.shape)
        return mixed @ block.output.weight.T + block.output.bias, weights

    x = qformer.embedding_norm(qformer.query_tokens.expand(len(features), -1, -1))
    seen = []
    for layer in qformer.layers:
        x = layer.self_attention_norm(x + attend(layer.self_attention, x, x)[0])
        if layer.has_cross_attention:
            mixed, weights = attend(layer.cross_attention, x, features)
            seen.append(weights.mean((1, 2)))
            x = layer.cross_attention_norm(x + mixed)
        x = layer.query_ffn(x)
    return torch.stack(seen).mean(0)


@torch.no_grad()
def test_attention_is_that_of_the_pass_itself() -> None:
    qformer = tiny_model("off", seed=3).connector.qformer
    for weight in qformer.parameters():  # far from the flat attention of small initial weights
        torch.nn.init.normal_(weight, std=0.3)
    features = torch.randn(4, 17, 24, generator=torch.Generator().manual_seed(0))

    found = cross_attention(qformer, features)

    assert sum(layer.has_cross_attention for layer in qformer.layers) == 2
    assert torch.allclose(found, _attention_by_hand(qformer, features), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(4), atol=1e-6)
    assert float(found.max()) > 1.5 / 17  # not flat, so that the comparison says something


def test_no_hook_is_left_behind(model: Any) -> None:
    cross_attention(model.connector.qformer, torch.randn(1, 17, 24))

    assert not any(
        layer.cross_attention._forward_pre_hooks
        for layer in model.connector.qformer.layers
        if layer.has_cross_attention
    )


@torch.no_grad()
def test_map_leaves_out_the_class_token_and_has_mean_one(model: Any) -> None:
    processor = tiny_processor()
    images = [load_image(tiny_image(seed)) for seed in (0, 1)]

    maps = QFormerAttention(model, processor)(images)

    raw = cross_attention(model.connector.qformer, model.vision_encoder(processor.pixels(images)))
    assert raw.shape == (2, 17)
    patches = raw[:, 1:] / raw[:, 1:].mean(1, keepdim=True)
    assert [grid.shape for grid in maps] == [(4, 4), (4, 4)]
    assert np.allclose(np.stack(maps), patches.reshape(2, 4, 4).numpy(), atol=1e-6)
    assert np.allclose([grid.mean() for grid in maps], 1, atol=1e-6)


def test_wide_pictures_are_not_cut_to_the_middle(model: Any) -> None:
    """A processor that crops is told not to: the map has to cover the whole picture."""
    told: dict[str, Any] = {}

    def crops(images: list[Image.Image], **options: Any) -> dict[str, torch.Tensor]:
        told.update(options)
        return {"pixel_values": torch.zeros(len(images), 3, 28, 28)}

    crops.do_center_crop, crops.crop_size = True, {"height": 28, "width": 28}  # type: ignore[attr-defined]

    QFormerAttention(model, SimpleNamespace(image_processor=crops))([Image.new("RGB", (80, 20))])

    assert told["do_center_crop"] is False and told["size"] == {"height": 28, "width": 28}


def test_a_model_without_qformer_is_refused() -> None:
    other = SimpleNamespace(connector=object(), config=SimpleNamespace(model_type="linear"))
    with pytest.raises(PolyptychError, match="'linear' has no Q-Former"):
        QFormerAttention(other, None)


def test_importance_is_the_mean_of_the_interpolated_map() -> None:
    row = np.array([0.0, 0.25, 0.75, 1.0])  # [0, 1] between centers of patches, at 4 pixels
    left, corner = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    left[:, :2] = True
    corner[0, 3] = True

    values = importance(np.array([[0, 1], [0, 1]], dtype=np.float32), [left, corner])

    assert values == pytest.approx([row[:2].mean(), row[3]])


# Which regions are ignored.


def _stripes(count: int) -> list[Region]:
    return [Region(np.arange(count)[None, :].repeat(count, 0) == index) for index in range(count)]


def test_the_least_attended_regions_are_selected() -> None:
    attention = np.array([[4, 1, 3, 0, 2, 5]] * 6, dtype=np.float32)

    def chosen(selection: Any, most: int, quantile: float) -> list[int]:
        found = select(
            _stripes(6),
            attention,
            random.Random(1),
            selection=selection,
            most=most,
            quantile=quantile,
        )
        assert all(candidate.of == 6 for candidate in found)
        return [candidate.rank for candidate in found]

    best = select(
        _stripes(6), attention, random.Random(0), selection="least_attended", most=2, quantile=1.0
    )
    assert [int(np.flatnonzero(item.region.mask[0])[0]) for item in best] == [3, 1]
    assert [item.importance for item in best] == [0.0, 1.0]
    assert chosen("least_attended", 9, 0.5) == [0, 1, 2]
    assert chosen("least_attended", 9, 0.01) == [0]
    by_chance = chosen("random", 3, 0.5)
    assert len(set(by_chance)) == 3 and by_chance != [0, 1, 2]


def test_background_windows_hold_no_object() -> None:
    occupied = np.zeros((40, 60), dtype=bool)
    occupied[:, :30] = True

    windows = background_windows(occupied, 0.25)

    assert windows and not any((window.mask & occupied).any() for window in windows)
    assert {window.mask.sum() for window in windows} == {10 * 15}
    assert background_windows(np.ones((40, 60), dtype=bool), 0.25) == ()


def test_segment_anything_masks_are_objects_or_background() -> None:
    """Masks of a pipeline's documented shape; the large one is a wall, not an object."""
    cup, wall, empty = (np.zeros((20, 30), dtype=bool) for _ in range(3))
    cup[2:6, 3:9], wall[:, 10:] = True, True
    masks = SegmentAnythingMasks(
        lambda image: {"masks": [wall, torch.from_numpy(cup), empty], "scores": torch.ones(3)},
        labels=lambda image, region, caption: caption.split()[-1],
    )
    picture = SourcePicture("p", tiny_image(0), "a cup")

    found = masks(picture, Image.new("RGB", (30, 20)))

    (region,) = found.objects
    assert (region.mask == cup).all() and (found.occupied == cup).all()
    assert region.label == "cup" and region.box == (3, 2, 9, 6)
    assert describe_region(region) == "cup, at the top on the left, 4 % of the photograph"


# Edits of drawn pictures.


@pytest.mark.parametrize("kind", ["modify", "swap", "delete", "add"])
def test_drawn_edits_are_true(kind: Any) -> None:
    done = 0
    for picture in StorybookPictures(12, seed=5):
        image = load_image(picture.image)
        segmentation = StorybookMasks()(picture, image)
        assert picture.scene is not None
        regions = segmentation.objects
        if kind == "add":
            regions = background_windows(segmentation.occupied, 0.15)
        if not regions:
            continue
        try:
            edit = StorybookEdits()(picture, regions[0], kind, random.Random(7))
        except DroppedError as dropped:
            assert dropped.reason in ("no fitting edit", "ambiguous object")
            continue
        done += 1
        assert edit.scene is not None
        more = {"delete": -1, "add": 1}.get(kind, 0)
        assert len(edit.scene.things) == len(picture.scene.things) + more
        new = [thing for thing in edit.scene.things if thing not in picture.scene.things]
        assert len(new) == (kind != "delete")
        for thing in new:
            assert pair_split(thing.kind, thing.color) == "train"
            assert edit.change.get("new_color", thing.color) == thing.color
            assert edit.change.get("new_kind", thing.kind) == thing.kind
        edited = StorybookEditor()(image, edit, 0)
        before, after = (np.asarray(x, dtype=int) for x in (image, edited))
        changed = np.abs(before - after).max(-1) > 24
        assert changed[edit.region.mask].any()
        if kind == "add":
            things = np.logical_or.reduce([item.mask for item in segmentation.objects])
            assert (edit.region.mask & things).sum() <= 0.1 * edit.region.mask.sum()
    assert done >= 6


def test_second_view_moves_nothing_but_turns_and_shades(steps: Steps) -> None:
    picture = StorybookPictures(1)[0]
    image = load_image(picture.image)
    region = StorybookMasks()(picture, image).objects[0]
    edit = StorybookEdits()(picture, region, "delete", random.Random(0))

    same, turned = StorybookEditor()(image, edit, 4), StorybookEditor(True)(image, edit, 4)

    assert edit.scene is not None
    assert np.array_equal(np.asarray(same), np.asarray(draw(edit.scene, image.width)))
    assert not np.array_equal(np.asarray(same), np.asarray(turned))
    assert np.array_equal(np.asarray(turned), np.asarray(StorybookEditor(True)(image, edit, 4)))


def test_pixel_filter_refuses_what_cannot_be_seen() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10] = True
    edit = Edit("modify", "", "", Region(mask))
    gray = Image.new("RGB", (20, 20), (100, 100, 100))

    def painted(rows: int, value: int) -> Image.Image:
        pixels = np.asarray(gray).copy()
        pixels[:rows] = value
        return Image.fromarray(pixels)

    assert PixelChange()(gray, painted(5, 200), edit) == 0.5
    for rows, value, reason in ((5, 110, "edit not visible"), (10, 200, "edit too large")):
        with pytest.raises(DroppedError) as dropped:
            PixelChange()(gray, painted(rows, value), edit)
        assert dropped.value.reason == reason


# Whole runs.


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_records_are_whole_and_true(tmp_path: Path, steps: Steps) -> None:
    pictures = StorybookPictures(20, seed=1)
    settings = DiscriminativeSettings(edits_per_picture=2, batch_size=8)

    summary = build_discriminative_data(pictures, tmp_path, steps, settings=settings)

    examples = list(read_records(tmp_path / "records.jsonl"))
    dropped = sum(entry["count"] for entry in summary["dropped"].values())
    assert summary["tried"] == 40 == summary["kept"] + dropped
    assert len(examples) == summary["kept"] == sum(summary["kinds"].values()) > 25
    assert len({example.id for example in examples}) == len(examples)
    assert min(summary["kinds"].values()) > 0
    assert not (tmp_path / "records.jsonl.running").exists()
    for example in examples:
        metadata = example.metadata
        original, edited = (load_image(image) for image in example.images)
        scenes = [scene_from_json(scene) for scene in metadata["scenes"]]
        assert np.array_equal(np.asarray(original), np.asarray(draw(scenes[0], 96)))
        assert np.array_equal(np.asarray(edited), np.asarray(draw(scenes[1], 96)))
        assert all(str(image.path).endswith(".png") for image in example.images)
        assert example.target in example.references
        assert change_correct(example.target or "", metadata)
        assert metadata["source"]["id"] == example.id.rpartition("-")[0]
        assert metadata["region"]["rank"] < metadata["region"]["of"]
        assert metadata["split"] == "train"


def test_random_selection_edits_other_objects(tmp_path: Path, steps: Steps) -> None:
    means = {}
    for selection in ("least_attended", "random"):
        settings = DiscriminativeSettings(selection=selection)  # type: ignore[arg-type]
        summary = build_discriminative_data(
            StorybookPictures(16), tmp_path / selection, steps, settings=settings
        )
        means[selection] = summary["mean_importance"]

    assert means["least_attended"] < means["random"]


class _Interrupted:
    """A step that is killed at its nth call, and counts them."""

    def __init__(self, step: Any, stop: int | None) -> None:
        self.step, self.stop, self.calls, self.name = step, stop, 0, step.name

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return self.step(*args)


@pytest.mark.parametrize("torn", [b"", b'{"id": "descrip'])
def test_a_killed_run_goes_on_without_a_difference(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    monkeypatch.setattr(Steps, "_described", staticmethod(lambda step: step.name))
    pictures, settings = StorybookPictures(10), DiscriminativeSettings(batch_size=4)

    def run(folder: Path, stop: int | None) -> _Interrupted:
        editor = _Interrupted(steps.images, stop)
        build_discriminative_data(
            pictures, folder, dataclasses.replace(steps, images=editor), settings=settings
        )
        return editor

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", 6)
    running = tmp_path / "broken" / "records.jsonl.running"
    assert running.exists() and not (tmp_path / "broken" / "records.jsonl").exists()
    running.write_bytes(running.read_bytes() + torn)
    rest = run(tmp_path / "broken", None)

    assert rest.calls == whole.calls - 5  # nothing finished is done again
    assert _files(tmp_path / "whole") == _files(tmp_path / "broken")


def test_a_finished_run_is_kept_and_not_mixed_with_another(tmp_path: Path, steps: Steps) -> None:
    first = build_discriminative_data(StorybookPictures(4), tmp_path, steps)
    before = _files(tmp_path)

    assert build_discriminative_data(StorybookPictures(4), tmp_path, steps) == first
    for pictures, seed, words in (
        (StorybookPictures(4), 9, "settings (seed 0, now 9)"),
        (StorybookPictures(5), 0, "pictures (4, now 5)"),
        (StorybookPictures(4, seed=3), 0, "first_picture"),
    ):
        with pytest.raises(PolyptychError, match="choose another folder") as error:
            settings = DiscriminativeSettings(seed=seed)
            build_discriminative_data(pictures, tmp_path, steps, settings=settings)
        assert words in str(error.value)
    assert _files(tmp_path) == before


def test_every_dropped_item_is_counted(tmp_path: Path, steps: Steps) -> None:
    drawn = list(StorybookPictures(6))
    missing = dataclasses.replace(drawn[2], image=ImageRef(path=str(tmp_path / "gone.png")))
    pictures = [*drawn[:2], missing, *drawn[3:]]
    blind = dataclasses.replace(steps, similarity=PixelChange(least_in_region=1.1))
    settings = DiscriminativeSettings(kinds=("delete",), edits_per_picture=2)

    summary = build_discriminative_data(pictures, tmp_path / "out", blind, settings=settings)

    counts = {reason: entry["count"] for reason, entry in summary["dropped"].items()}
    assert summary["kept"] == 0 and summary["tried"] == 12 == sum(counts.values())
    assert counts["unreadable picture"] == 2
    assert counts["edit not visible"] >= 5
    assert "gone.png does not exist" in summary["dropped"]["unreadable picture"]["examples"][0]
    assert list(read_records(tmp_path / "out" / "records.jsonl")) == []


# Photographs: fakes with the documented shapes, and tiny real models.


def _photographs(count: int) -> list[SourcePicture]:
    return [
        SourcePicture(f"photo-{seed}", tiny_image(seed), "a red cup on a table")
        for seed in range(count)
    ]


def _photograph_steps(model: Any, reply: Any, painted: Any) -> Steps:
    def segment(image: Image.Image) -> dict[str, Any]:
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[26:38, 4:16] = True
        return {"masks": [mask], "scores": torch.ones(1)}

    return Steps(
        QFormerAttention(model, tiny_processor()),
        SegmentAnythingMasks(segment, labels=lambda *_: "cup"),
        LanguageModelEdits(lambda prompt, **_: [{"generated_text": reply(prompt)}]),
        InpaintingEditor(painted, longest_side=64),
        PixelChange(),
        LanguageModelTargets(lambda prompt, **_: [{"generated_text": "A plant is there now.\n"}]),
    )


def _good_reply(prompt: str) -> str:
    kind = prompt.rpartition("Kind: ")[2].splitlines()[0]
    assert "Region: cup, at the bottom on the left" in prompt or "background" in prompt
    return json.dumps({"kind": kind, "edit": "replace it by a plant", "shows": "a plant"})


def test_photographs_run_through_models(tmp_path: Path, model: Any) -> None:
    asked: list[dict[str, Any]] = []

    def paint(**inputs: Any) -> Any:
        asked.append(inputs)
        assert inputs["image"].size == inputs["mask_image"].size == (64, 64)
        green = Image.new("RGB", inputs["image"].size, (0, 255, 0))
        return SimpleNamespace(images=[green], nsfw_content_detected=[False])

    steps = _photograph_steps(model, _good_reply, paint)
    summary = build_discriminative_data(_photographs(6), tmp_path, steps)

    examples = list(read_records(tmp_path / "records.jsonl"))
    assert summary["kept"] == len(examples) == 6
    assert {example.target for example in examples} == {"A plant is there now."}
    for example, inputs in zip(examples, asked, strict=True):
        original, edited = (np.asarray(load_image(image), dtype=int) for image in example.images)
        left, top, right, bottom = (round(40 * side) for side in example.metadata["region"]["box"])
        outside = np.ones((40, 40), dtype=bool)
        outside[max(0, top - 4) : bottom + 4, max(0, left - 4) : right + 4] = False
        assert np.array_equal(original[outside], edited[outside])
        assert (edited[(top + bottom) // 2, (left + right) // 2] == (0, 255, 0)).all()
        kind = example.metadata["edit"]["kind"]
        assert inputs["negative_prompt"] == ("cup" if kind in ("delete", "swap") else None)
        assert "scenes" not in example.metadata


def test_refused_and_unparsable_photographs_are_counted(tmp_path: Path, model: Any) -> None:
    black = Image.new("RGB", (64, 64))

    def refuse(**_: Any) -> Any:
        return SimpleNamespace(images=[black], nsfw_content_detected=[True])

    for name, reply, reason in (
        ("refused", _good_reply, "refused by the safety checker"),
        ("chatty", lambda prompt: "Sure! Here is an edit.", "unparsable edit"),
    ):
        steps = _photograph_steps(model, reply, refuse)
        summary = build_discriminative_data(_photographs(3), tmp_path / name, steps)
        assert {k: entry["count"] for k, entry in summary["dropped"].items()} == {reason: 3}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "no",
        "[]",
        '{"kind": "swap", "edit": "x"}',
        '{"kind": "delete", "edit": "x", "shows": "y"}',
        '{"kind": "swap", "edit": "", "shows": "y"}',
        '{"kind": "swap", "edit": 3, "shows": "y"}',
        '{"kind": "swap", "edit": "x", "shows": "y", "more": 1}',
        '{"kind": "swap", "edit": "' + "x" * 201 + '", "shows": "y"}',
        "[" * 100_000,
    ],
)
def test_replies_are_parsed_strictly(reply: str) -> None:
    good = ' {"kind": "swap", "edit": "put a plant there", "shows": "a plant"}\nThat was fun.'
    assert parse_reply(good, "swap")["shows"] == "a plant"

    with pytest.raises(DroppedError) as dropped:
        parse_reply(reply, "swap")
    assert dropped.value.reason == "unparsable edit"


def test_targets_have_to_be_sentences() -> None:
    edit = Edit("delete", "remove the cup", "a table", Region(np.ones((2, 2), dtype=bool)))
    for reply, kept in (("The cup is gone.\nOk?", True), ("gone", False), ("", False)):
        write = LanguageModelTargets(lambda prompt, reply=reply, **_: [{"generated_text": reply}])
        if kept:
            assert write(edit) == ("The cup is gone.",)
        else:
            with pytest.raises(DroppedError, match="unparsable target"):
                write(edit)


@pytest.fixture(scope="module")
def writer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with a chat template."""
    folder = tmp_path_factory.mktemp("writer")
    tokenizer = tiny_processor().tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    tiny_model("off", max_position_embeddings=4096).language_model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("chat", [True, False])
def test_a_real_language_model_is_asked(writer_folder: Path, chat: bool) -> None:
    pipeline = load_pipeline("text-generation", str(writer_folder))
    if not chat:
        pipeline.tokenizer.chat_template = None
    mask = np.zeros((20, 20), dtype=bool)
    mask[:5, :5] = True
    picture = SourcePicture("p", tiny_image(0), "a red cup")

    with pytest.raises(DroppedError, match="unparsable edit"):  # its weights are random
        LanguageModelEdits(pipeline, prompt="{caption} {region} {kind}")(
            picture, Region(mask, "cup"), "swap", random.Random(0)
        )


class _Words(dict[str, Any]):
    def to(self, device: Any) -> _Words:
        return self


def _colored_clip() -> ClipModel:
    """Pictures are embedded as their mean color, texts as the color that they name."""
    colors = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

    def process(images: list[Image.Image], text: list[str], **_: Any) -> _Words:
        return _Words(images=images, text=text)

    def embed(images: list[Image.Image], text: Sequence[str]) -> Any:
        pixels = [np.asarray(image, dtype=np.float32).mean((0, 1)) + 1e-3 for image in images]
        words = [colors[line.split()[-1]] for line in text]
        return SimpleNamespace(
            image_embeds=torch.tensor(np.stack(pixels)), text_embeds=torch.tensor(words)
        )

    model: Any = embed
    model.device = "cpu"
    return ClipModel(model, process)


def test_clip_keeps_what_shows_the_edit() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    edit = Edit("swap", "", "green", Region(mask))
    red, green = (Image.new("RGB", (20, 20), color) for color in ((255, 0, 0), (0, 255, 0)))
    judge = ClipSimilarity(_colored_clip())

    assert judge(red, green, edit) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(DroppedError, match="similarity too low"):
        judge(red, red, edit)
    with pytest.raises(DroppedError, match="edit not visible"):
        ClipSimilarity(_colored_clip(), least_gain=0.1)(green, green, edit)


def test_labels_are_words_of_the_caption() -> None:
    region = Region(np.ones((8, 8), dtype=bool))
    label = CaptionLabels(_colored_clip())

    assert label(Image.new("RGB", (8, 8), (0, 0, 255)), region, "Red on the blue, green.") == "blue"
    assert label(Image.new("RGB", (8, 8)), region, "on the") == ""


# Bad input.


def _record(identity: str, images: int = 1, answer: str | None = "a cup") -> dict[str, Any]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": "Describe."}]
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    paths = [f"{number}.png" for number in range(images)]
    return {"id": identity, "messages": messages, "images": paths}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([json.dumps(_record("a", 2))], "id 'a': 2 images, expected 1"),
        ([json.dumps(_record("a", answer=None))], "id 'a': no caption"),
        ([json.dumps(_record("a"))] * 2, "id 'a': this id occurs twice"),
        ([json.dumps(_record("a")), '{"id": '], "line 2: not valid JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[str], words: str) -> None:
    path = tmp_path / "photos.jsonl"
    path.write_text("\n".join(lines) + "\n")

    with pytest.raises(PolyptychError) as error:
        read_pictures(path)
    assert words in str(error.value) and "photos.jsonl" in str(error.value)


def test_photographs_come_with_their_captions(tmp_path: Path) -> None:
    path = tmp_path / "photos.jsonl"
    path.write_text(json.dumps(_record("a")) + "\n")

    (picture,) = read_pictures(path)

    assert (picture.id, picture.caption, picture.scene) == ("a", "a cup", None)
    assert picture.image.path == str(tmp_path / "0.png")


def test_settings_and_folders_are_checked(tmp_path: Path, steps: Steps) -> None:
    with pytest.raises(PolyptychError, match="known: modify, swap, delete, add"):
        DiscriminativeSettings(kinds=())
    with pytest.raises(PolyptychError, match="edits_per_picture 0"):
        DiscriminativeSettings(edits_per_picture=0)
    with pytest.raises(PolyptychError, match="0 pictures"):
        build_discriminative_data([], tmp_path / "none", steps)
    with pytest.raises(PolyptychError, match="no such folder; expected a local CLIP model"):
        load_clip(str(tmp_path / "clip"))
    with pytest.raises(PolyptychError, match="no text-generation model"):
        load_pipeline("text-generation", str(tmp_path))
    with pytest.raises(PolyptychError, match="'photo-0' is not drawn"):
        build_discriminative_data(_photographs(1), tmp_path / "photos", steps)


# The command.


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    app.command("discriminate")(commands.discriminative)
    app.callback()(lambda: None)
    return app


def test_the_command_makes_data_and_says_how_much(app: typer.Typer, tmp_path: Path) -> None:
    words = ["discriminate", "--count", "4", "--out", str(tmp_path / "out")]

    result = CliRunner().invoke(app, words, catch_exceptions=False)

    assert result.exit_code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert f"kept {summary['kept']} of 4" in result.stdout
    assert summary["kept"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pictures", "p.jsonl", "--clip", "c"], "needs --segmenter, --writer, --painter, too"),
        (["--clip", "c"], "--clip without --pictures"),
        (["--selection", "most"], "--selection 'most'; known: least_attended, random"),
        (["--split", "dev"], "--split 'dev'; known: train, validation, test"),
    ],
)
def test_the_command_refuses_in_one_line(
    app: typer.Typer, tmp_path: Path, words: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["discriminate", "--out", str(tmp_path / "out"), *words])

    assert isinstance(result.exception, PolyptychError)
    assert message in str(result.exception)
