"""The SIMA study on real data: its sets, preferring by likelihood, every variant at toy size."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from polyptych.data.collation import Collator
from polyptych.data.records import read_records
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import load_model
from polyptych.reproduce.controls import no_pictures
from polyptych.reproduce.ranking import prefer
from polyptych.reproduce.sima.main import GRID, main, runs
from polyptych.reproduce.sima.real import (
    JUDGES,
    REAL_SETTINGS,
    SHOWN,
    CocoWorkshop,
    contests_of,
)
from polyptych.reproduce.sima.real_sets import (
    CocoSets,
    lists_of_others,
    no_objects,
    objects_in,
    other_objects,
)
from polyptych.reproduce.sima.study import Rounds
from polyptych.reproduce.small_models import ENCODER
from polyptych.reproduce.tables import all_tables
from polyptych.reproduce.workshop import Run
from polyptych.schema import Example, Message, TextBlock

OBJECTS = ("bench", "bird", "boat", "bus", "cake", "cat", "chair", "clock", "cup", "dog", "horse")
OTHERS = dict(zip(OBJECTS, (*OBJECTS[1:], OBJECTS[0]), strict=True))
VALSE, LEARNED, PHOTOS = range(100, 112), range(200, 208), range(300, 304)

TOY = replace(
    REAL_SETTINGS,
    descriptions=12,
    comparisons=8,
    prompts=4,
    test=2,
    base_steps=1,
    base_batch=4,
    steps=1,
    batch_size=2,
    variants=("base", "sima", "foils"),
    seeds=(0,),
)


def write_sets(folder):
    """A stand-in of the real sets: a few images, each with one to three objects."""
    for name in ("chair", "valse", "coco_cc/images"):
        (folder / name).mkdir(parents=True)
    (folder / "chair" / "synonyms.txt").write_text("".join(f"{name}\n" for name in OBJECTS))
    held = {
        image: sorted(random.Random(image).sample(OBJECTS, 1 + image % 3))
        for image in (*VALSE, *LEARNED, *PHOTOS)
    }
    with gzip.open(folder / "chair" / "coco2014_objects.jsonl.gz", "wt") as file:
        write(file, ({"image_id": i, "objects": names} for i, names in held.items()))
    for model in ("a", "b"):
        with (folder / "chair" / f"captions_{model}.jsonl").open("w") as file:
            captions = {
                i: f"A {names[0]} that {model} saw near the wall. Then more."
                for i, names in held.items()
            }
            write(file, ({"image_id": i, "caption": text} for i, text in captions.items()))
    with (folder / "valse" / "foil-it.jsonl").open("w") as file:
        write(file, (pair_row(image, held[image][0], n) for image in VALSE for n in range(2)))
    for split, images in (("train", PHOTOS[:2]), ("val", PHOTOS[2:])):
        with (folder / "coco_cc" / f"{split}.jsonl").open("w") as file:
            write(file, (photo_row(image, held[image][0]) for image in images))
    for image in PHOTOS:
        color = random.Random(image).randbytes(3)
        Image.new("RGB", (80, 60), tuple(color)).save(folder / "coco_cc" / f"images/{image}.jpg")
    return folder


def write(file, rows):
    file.writelines(json.dumps(row) + "\n" for row in rows)


def pair_row(image, name, number):
    return {
        "id": f"{image}{number}",
        "coco_image_id": image,
        "caption": f"The {name} of number {number} stands there",
        "foil": f"The {OTHERS[name]} of number {number} stands there",
        "word": name,
        "foil_word": OTHERS[name],
        "mturk": {"caption": 3 - image % 2 * number * 2, "foil": 0, "other": 0},
    }


def photo_row(image, name):
    return {
        "image": f"images/{image}.jpg",
        "image_id": image,
        "license": "CC BY 2.0",
        "flickr_url": "http://example.org/photo",
        "captions": [f"A {name} in view {n}." for n in range(5)],
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source):
    root = tmp_path_factory.mktemp("sima_real")
    results = main(root, settings=TOY, workers=1, real=source)
    return CocoWorkshop(root / "real", TOY, ENCODER, source), results


def images_of(examples):
    return {example.metadata["image"] for example in examples}


def check_sets(sets):
    """What has to hold of any of them."""
    train, test = sets.pairs("train"), sets.pairs("test")
    assert train and test and not images_of(train) & images_of(test)
    for pair in (*train, *test):
        assert set(pair.choices) == {pair.metadata["caption"], pair.metadata["foil"]}
        assert f"There are: {', '.join(objects_in(pair))}." in pair.messages[0].text
    captions = sets.captions(0)
    learned = {int(e.id.split("-")[1]) for e in captions}
    photos = [*sets.photos("train"), *sets.photos("test")]
    seen_later = images_of(train) | images_of(test) | {int(p.id.split("-")[1]) for p in photos}
    assert not learned & seen_later
    rng = random.Random(0)
    for example in captions[:50]:
        wrong = sets.spoil(rng, example, 1)
        named = {mention.name for mention in sets.finder.find(wrong)[1]}
        assert named - set(objects_in(example))
        assert wrong != example.target


def test_no_image_is_learned_from_and_tested_on(source):
    check_sets(CocoSets(source, 0))


def test_only_validated_pairs_are_tested_and_choices_come_in_both_orders(source):
    sets = CocoSets(source, 0)
    tested = Counter(pair.metadata["image"] % 2 for pair in sets.pairs("test"))
    images = Counter(image % 2 for image in images_of(sets.pairs("test")))
    assert tested == {0: 2 * images[0], 1: images[1]}
    places = {e.choices.index(e.metadata["caption"]) for e in sets.pairs("train")}
    assert places == {0, 1}


def test_comparisons_are_won_by_the_caption_with_the_truer_objects(source):
    sets = CocoSets(source, 0)
    asked = list(sets.comparisons(40))
    told = Counter("There are:" in e.messages[0].text for e in asked)
    assert told == {True: 20, False: 20}
    for example in asked:
        text = example.messages[0].text
        answers = [text.split(f"{n}: [")[1].split("]")[0] for n in (1, 2)]
        shown = [part.split("]")[0] for part in text.split("True: [")[1:]]
        shown += [part.split(".")[0] for part in text.split("There are: ")[1:]]
        for objects in shown:
            names = objects.rstrip(".").split(", ")
            values = [sets.truth(answer, names) for answer in answers]
            assert values.index(max(values)) == int(example.target) - 1
            assert values[0] != values[1]


def test_controls_change_what_is_told_and_nothing_else(source):
    sets = CocoSets(source, 0)
    photos = [*sets.photos("train"), *sets.photos("test")]
    for example, bare in zip(photos, no_objects(photos), strict=True):
        assert bare.messages[0].text == " Describe the picture."
        assert bare.images == example.images and bare.references == example.references
    others = other_objects(photos)
    lists = lists_of_others(photos)
    assert sorted(map(tuple, lists)) == sorted(tuple(objects_in(p)) for p in photos)
    for objects, example in zip(lists, others, strict=True):
        assert f"There are: {', '.join(objects)}." in example.messages[0].text
    assert all(not e.images and "There are" in e.messages[0].text for e in no_pictures(photos))


def test_photos_are_shared_between_base_and_loop(source):
    sets = CocoSets(source, 0)
    described = sets.described(sets.pairs("train"))
    photos = {e.id for e in described if e.images}
    learned = {e.id.rsplit("-", 1)[0] for e in sets.photo_captions()}
    assert photos and learned and not photos & learned
    assert photos | learned == {photo.id for photo in sets.photos("train")}
    assert all(e.target == e.references[0] and not e.choices for e in described)


def test_a_missing_table_of_objects_is_one_line(tmp_path):
    with pytest.raises(PolyptychError, match=r"cannot read .*coco2014_objects"):
        assert CocoSets(tmp_path, 0).objects


@pytest.mark.shared_data
def test_the_real_sets_are_as_described(shared_dir):
    sets = CocoSets(shared_dir / "data", REAL_SETTINGS.data_seed)
    check_sets(sets)
    test = sets.pairs("test")
    assert len(test) == 470 and len(sets.pairs("train")) == 501
    assert 0.8 < sum(pair.metadata["decides"] for pair in test) / len(test) < 0.9
    assert len(sets.captions(0)) == 7982 and len(list(sets.photos("test"))) == 20


def question(identity, choices):
    asked = Message("user", (TextBlock("What stands on the beach?"),))
    return Example(identity, (asked,), choices=choices)


def test_the_likelier_choice_is_that_of_the_greater_sum_over_its_tokens():
    model, processor = load_model("storybook-base")
    texts = ("a small red ball on the beach.", "a cat.", "seven trees", "zzz ggg")
    examples = [question(f"{a}/{b}", (a, b)) for a in texts for b in texts if a != b]
    sums = {text: log_prob(model, processor, text) for text in texts}
    for example, said in zip(examples, prefer(model, processor, examples, None), strict=True):
        assert said.id == example.id
        assert said.text == max(example.choices, key=sums.__getitem__)


@torch.inference_mode()
def log_prob(model, processor, text):
    """Of a whole answer behind the question, in a row of its own."""
    asked = question("alone", ())
    row = replace(asked, messages=(*asked.messages, Message("assistant", (TextBlock(text),))))
    batch = Collator(processor, training=True)([row])
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch).logits[:, :-1].log_softmax(-1)
    kept = labels != -100
    return logits.gather(2, labels.clamp(min=0)[..., None])[..., 0][kept].sum().item()


def test_one_choice_is_refused():
    model, processor = load_model("storybook-base")
    with pytest.raises(PolyptychError, match="has 1 choices, expected 2"):
        prefer(model, processor, [question("x", ("one",))], None)


def test_every_variant_is_run_with_controls(finished):
    _, path = finished
    results = json.loads(path.read_text())
    assert sorted(run["variant"] for run in results["runs"]) == sorted(TOY.variants)
    for run in results["runs"]:
        tasks = run["tasks"]
        assert tasks["foils"]["examples"] == TOY.test
        assert tasks["foils"]["controls"].keys() == {"other_objects", "no_objects"}
        assert tasks["photos"]["controls"].keys() >= {"shuffled_pictures", "no_pictures"}
        assert 0 <= tasks["foils"]["accuracy[likelihood]"] <= 1
    rows = results["summary"]["i1"]["foils"]["accuracy[likelihood]"]
    assert "gain" in rows["sima"] and rows["foils"]["over"].keys() == {"sima"}


def test_the_base_is_asked_as_a_critic_in_every_form(finished):
    _, path = finished
    (base,) = [r for r in json.loads(path.read_text())["runs"] if r["variant"] == "base"]
    forms = {(c["shown"], c["metrics"], c["judge"], c["orders"]) for c in base["critics"]}
    assert len(forms) == len(base["critics"]) == len(SHOWN) * 2 * len(JUDGES) * 2
    assert all(0 <= c["share"] <= 1 and c["count"] == TOY.test for c in base["critics"])


def test_a_critic_is_told_no_more_than_its_form_says(source):
    pairs = CocoSets(source, 0).pairs("test")
    for shown, (in_question, _) in SHOWN.items():
        for pair, contest in zip(pairs, contests_of(pairs, shown), strict=True):
            text = contest.prompt.example.messages[0].text
            assert ("There are" in text) == in_question
            own = f"{', '.join(objects_in(pair))}."
            if shown != "other_image":
                assert contest.prompt.ground_truth == own
                assert (own in text) == in_question


def test_loops_and_foils_change_the_language_model_alone(finished):
    shop, path = finished
    records = {run["variant"]: run for run in json.loads(path.read_text())["runs"]}
    assert records["sima"]["critic"][0]["critic_agrees_with_truth"] is None or (
        0 <= records["sima"]["critic"][0]["critic_agrees_with_truth"]["share"] <= 1
    )
    base, _ = shop.build(Run("base", 0, 0.0, 0, Rounds(), "main"))
    (foils,) = [r for r in runs(TOY, dict.fromkeys(GRID, 1e-3), Rounds()) if r.variant == "foils"]
    model, _ = shop.build(foils)
    own, other = model.state_dict(), base.state_dict()
    changed = {name.partition(".")[0] for name in own if not own[name].equal(other[name])}
    assert changed == {"language_model"}


def test_bases_start_with_the_drawn_worlds_eyes_and_words_of_their_own(finished):
    shop, _ = finished
    model, processor = shop.fresh(0)
    seeing, theirs = load_model(TOY.start)
    for name, weight in seeing.connector.state_dict().items():
        assert model.connector.state_dict()[name].equal(weight)
    text = next(read_records(shop.data["noisy-train"])).target
    ids = [len(p.tokenizer(text)["input_ids"]) for p in (processor, theirs)]
    assert ids[0] < ids[1]
    again, _ = shop.fresh(1)
    assert not torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_finished_runs_are_not_repeated_and_tables_are_made(finished, source):
    shop, path = finished
    before = path.read_text()
    assert main(shop.root.parent, settings=TOY, workers=1, real=source) == path
    assert path.read_text() == before
    tables = all_tables(path.parent)
    wanted = ("critic", "loops", "tuning", "controls", "lists", "photos", "photo-controls")
    assert {f"sima-real-{name}" for name in (*wanted, "by_decided")} <= tables.keys()
    assert tables["sima-real-critic"].count("\n") == 2 + 2 * len(SHOWN)
    assert "| own photo and list | " in tables["sima-real-photo-controls"]
    assert "| sima | " in tables["sima-real-loops"] and "foils" not in tables["sima-real-loops"]
