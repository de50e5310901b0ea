"""CHAIR against recorded results of the published scripts, and against cases worked by hand."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.scorers import estimate
from polyptych.evaluation.scoring.amber import amber, amber_scorer
from polyptych.evaluation.scoring.chair import (
    FLAVORS,
    CaptionChair,
    Flavor,
    ObjectFinder,
    ObjectWords,
    chair,
    chair_scorer,
    overall,
    read_synonyms,
    storybook_words,
)
from polyptych.evaluation.scoring.nouns import singular, singular_of, tokens
from polyptych.schema import Example, Message, Prediction, TextBlock

SETS = (
    "Instruction1_instructblip",
    "Instruction1_llava",
    "Instruction2_instructblip",
    "Instruction2_llava",
    "Instruction2_minigpt-4",
)
WORDS = ObjectWords(
    (
        ("person", "man", "woman", "baby", "people"),
        ("bus", "minibus"),
        ("chair", "seat"),
        ("toilet",),
        ("vase",),
        ("tie", "bow", "bow tie"),
        ("bird",),
        ("hot dog",),
        ("dog", "puppy"),
        ("oven", "stove", "stove top oven"),
        ("cake", " cheesecake"),
    )
)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judge(caption: str, truth: set[str], flavor: Flavor = "fixed") -> CaptionChair:
    return chair(ObjectFinder(WORDS, flavor), caption, frozenset(truth))


def names(caption: str, flavor: Flavor = "fixed") -> list[str]:
    return [mention.name for mention in judge(caption, set(), flavor).mentions]


# Recorded results.


@pytest.fixture(scope="module")
def coco_objects(shared_dir: Path) -> dict[int, frozenset[str]]:
    with gzip.open(shared_dir / "data" / "chair" / "coco2014_objects.jsonl.gz", "rt") as file:
        return {r["image_id"]: frozenset(r["objects"]) for r in map(json.loads, file)}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", SETS)
def test_reference_equals_the_published_script(
    shared_dir: Path, coco_objects: dict[int, frozenset[str]], name: str
) -> None:
    folder = shared_dir / "data" / "chair"
    finder = ObjectFinder(read_synonyms(folder / "synonyms.txt"), "reference")
    captions = read_lines(folder / f"captions_{name}.jsonl")
    recorded = read_lines(folder / f"expected_{name}.jsonl")
    judged = [chair(finder, c["caption"], coco_objects[c["image_id"]]) for c in captions]
    for ours, theirs in zip(judged, recorded, strict=True):
        assert [mention.name for mention in ours.mentions] == theirs["generated"]
        assert [[m.word, m.name] for m in ours.hallucinated] == theirs["hallucinated"]
        assert ours.chair_i == theirs["CHAIRi"]
        assert ours.chair_s == theirs["CHAIRs"]
        assert ours.recall == theirs["Recall"]
    total = json.loads((folder / "expected_overall.json").read_text())[name]
    found = overall(judged)
    assert len(judged) == total["n"]
    for ours, theirs in (("chair_i", "CHAIRi"), ("chair_s", "CHAIRs"), ("recall", "Recall")):
        assert found[ours] == pytest.approx(total[theirs], abs=1e-15)


@pytest.mark.shared_data
@pytest.mark.parametrize("case", ["a", "b"])
def test_released_equals_the_script_of_sima(shared_dir: Path, case: str) -> None:
    golden = shared_dir / "golden" / "sima"
    given = json.loads((golden / f"chair_{case}_input.json").read_text())
    recorded = json.loads((golden / f"chair_{case}_output.json").read_text())
    finder = ObjectFinder(read_synonyms(shared_dir / "data" / "chair" / "synonyms.txt"), "released")
    category = {row["id"]: row["name"] for row in given["categories"]}
    judged = []
    for sentence in recorded["sentences"]:
        image = sentence["image_id"]
        rows = [row for part in ("train", "val") for row in given["instances"][part]]
        humans = [row for part in ("train", "val") for row in given["captions"][part]]
        truth = finder.truth(
            [category[row["category_id"]] for row in rows if row["image_id"] == image],
            [row["caption"] for row in humans if row["image_id"] == image],
        )
        ours = chair(finder, sentence["caption"], truth)
        judged.append(ours)
        assert sorted(truth) == sentence["mscoco_gt_words"]
        assert list(ours.words) == sentence["words"]
        assert [m.word for m in ours.mentions] == sentence["objects"]
        assert [m.name for m in ours.mentions] == sentence["mscoco_generated_words"]
        assert [m.index for m in ours.mentions] == sentence["object_idxs"]
        wrong = [[m.word, m.name] for m in ours.hallucinated]
        assert wrong == sentence["mscoco_hallucinated_words"]
        assert [m.index for m in ours.hallucinated] == sentence["hallucination_idxs"]
        assert {"CHAIRs": ours.chair_s, "CHAIRi": ours.chair_i} == sentence["metrics"]
    found = overall(judged)
    assert found["chair_s"] == recorded["overall_metrics"]["CHAIRs"]
    assert found["chair_i"] == pytest.approx(recorded["overall_metrics"]["CHAIRi"], abs=1e-15)
    printed = f"{100 * found['chair_s']:.1f}\t{100 * found['chair_i']:.1f}"
    assert printed == recorded["printed"]


@pytest.mark.shared_data
def test_ten_thousand_captions_take_less_than_ten_seconds(
    shared_dir: Path, coco_objects: dict[int, frozenset[str]]
) -> None:
    folder = shared_dir / "data" / "chair"
    words = read_synonyms(folder / "synonyms.txt")
    captions = [row for name in SETS for row in read_lines(folder / f"captions_{name}.jsonl")]
    examples = [
        Example(
            str(place),
            (Message("user", (TextBlock("?"),)),),
            metadata={"objects": sorted(coco_objects[row["image_id"]])},
        )
        for place, row in enumerate(captions)
    ]
    answers = [Prediction(e.id, row["caption"]) for e, row in zip(examples, captions, strict=True)]
    start = time.process_time()
    chair_scorer(words, "fixed")(examples, answers)
    assert len(captions) == 10_000
    assert time.process_time() - start < 10


# The flavors.


def test_fixed_finds_what_the_scripts_miss() -> None:
    said = "Men with vases and ties wait for a bus."
    assert names(said) == ["person", "vase", "tie", "bus"]
    assert names(said, "reference") == ["person", "vase"]
    assert names(said, "released") == ["tie", "bus"]
    assert names("A cheesecake on a stove top oven") == ["cake", "oven"]
    assert names("A cheesecake on a stove top oven", "reference") == ["oven", "oven"]


def test_names_of_two_words_and_their_exceptions() -> None:
    assert names("a baby bird and a baby eat hot dogs") == ["bird", "person", "hot dog"]
    assert names("the seat of the toilet, and a toilet seat") == ["toilet", "toilet"]
    assert names("the seat of the bus") == ["chair", "bus"]
    assert names("two bow ties") == ["tie"]


def test_every_mention_counts_but_in_released_every_word_once() -> None:
    said = "A puppy, a dog, a dog, and a man."
    assert [m.index for m in judge(said, {"person"}).hallucinated] == [1, 4, 7]
    assert judge(said, {"person"}).chair_i == 3 / 4
    assert [m.index for m in judge(said, {"person"}, "released").hallucinated] == [1, 4]
    assert judge(said, {"person"}, "released").chair_i == 2 / 4


def test_recall_is_over_objects_and_coverage_over_captions() -> None:
    judged = [judge("a dog", {"dog", "bus", "vase"}), judge("a dog", {"dog"}), judge("sky", set())]
    found = overall(judged)
    assert found["recall"] == 2 / 4
    assert found["coverage"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["chair_i"] == found["chair_s"] == 0
    assert str(overall([judge("sky", set())])["chair_i"]) == "nan"


def test_indices_are_those_of_tokens_in_fixed() -> None:
    said = "The seat of the toilet and a dog."
    assert [m.index for m in judge(said, set()).mentions] == [4, 7]
    assert [m.index for m in judge(said, set(), "released").mentions] == [3, 6]


# Words.


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("policemen", "policeman"),
        ("people", "people"),
        ("glasses", "glass"),
        ("scissors", "scissors"),
        ("benches", "bench"),
        ("wolves", "wolf"),
        ("gloves", "glove"),
        ("canoes", "canoe"),
        ("potatoes", "potato"),
        ("horses", "horse"),
        ("magpies", "magpie"),
        ("puppies", "puppy"),
        ("tennis", "tennis"),
        ("taxis", "taxi"),
        ("buses", "bus"),
    ],
)
def test_singulars(plural: str, one: str) -> None:
    assert singular(plural) == one


@pytest.mark.shared_data
def test_fixed_knows_the_plural_of_every_listed_word(shared_dir: Path) -> None:
    words = read_synonyms(shared_dir / "data" / "chair" / "synonyms.txt")
    irregular = {"man": "men", "child": "children", "goose": "geese", "mouse": "mice"}
    irregular |= {"calf": "calves", "knife": "knives", "thief": "thieves", "ox": "oxen"}
    same = {"people", "children", "sheep", "cattle", "oxen", "bison", "scissors", "skis", "luggage"}

    def plural(word: str) -> str:
        for one, many in irregular.items():
            if word.endswith(one) and word != "human":
                return word.removesuffix(one) + many
        if word.endswith("y") and word[-2] not in "aeiou":
            return word[:-1] + "ies"
        return word + ("es" if word.endswith(("s", "ch", "sh", "x")) else "s")

    finder = ObjectFinder(words, "fixed")
    for row in words.synonyms:
        for entry in row:
            many = entry.strip() if entry.strip() in same else plural(entry.strip())
            found = [mention.name for mention in finder.find(f"three {many}")[1]]
            assert len(found) == 1, (many, found)


def test_tokens_leave_no_mark_on_words() -> None:
    assert tokens('A "dog", a cat (two). He isn\'t; 1,000 dogs\' bowls. Said "no."') == [
        *("a", '"', "dog", '"', ",", "a", "cat", "(", "two", ")", ".", "he", "is", "n't", ";"),
        *("1,000", "dogs", "'", "bowls", ".", "said", '"', "no", ".", '"'),
    ]
    assert tokens("") == []


def test_readings_differ_in_their_quirks_only() -> None:
    words = ("dogs", "glass", "bus", "men", "vases", "smartphones")
    assert [singular_of("reference")(w) for w in words[:4]] == ["dog", "glas", "bu", "man"]
    assert [singular_of("released")(w) for w in words] == [
        *("dog", "glass", "bus", "men", "vas", "smartphones"),
    ]


# Lists and scorers.


def test_storybook_has_a_list_of_its_own() -> None:
    finder = ObjectFinder(storybook_words(), "fixed")
    said = "A red cactus, two cherries, fish and butterflies beside the buses and a dog."
    found = [mention.name for mention in finder.find(said)[1]]
    assert found == ["cactus", "cherry", "fish", "butterfly", "bus"]


def test_truth_joins_categories_and_human_captions() -> None:
    finder = ObjectFinder(WORDS, "fixed")
    assert finder.truth(["puppy"], ["Two men wait."]) == {"dog", "person"}
    with pytest.raises(PolyptychError, match="category 'kite' is no word"):
        finder.truth(["kite"])


def test_bad_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("person, man\n\ncar\n")
    with pytest.raises(PolyptychError, match=r"synonyms.txt line 2: empty"):
        read_synonyms(path)
    path.write_text("")
    with pytest.raises(PolyptychError, match="no objects"):
        read_synonyms(path)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_scorer_gives_four_numbers_and_the_length(flavor: Flavor) -> None:
    asked = (Message("user", (TextBlock("?"),)),)
    examples = [
        Example("1", asked, references=("A man.",), metadata={"objects": ["dog"]}),
        Example("2", asked, metadata={"objects": ["vase"]}),
    ]
    answers = [Prediction("1", "A dog, a man and a bird."), Prediction("2", "")]
    found = {
        m.name: estimate(m, resamples=20) for m in chair_scorer(WORDS, flavor)(examples, answers)
    }
    assert found[f"chair_i[{flavor}]"].value == 1 / 3
    assert found[f"chair_s[{flavor}]"].value == (1 if flavor == "released" else 1 / 2)
    assert found[f"recall[{flavor}]"].value == (1 if flavor == "released" else 2 / 3)
    assert found[f"length[{flavor}]"].value == 3.5
    with pytest.raises(PolyptychError, match="'3': no list 'objects'"):
        chair_scorer(WORDS, flavor)([Example("3", asked)], [Prediction("3", "x")])


# AMBER.


def test_amber_by_hand() -> None:
    assert amber({"dog", "car"}, {"dog", "bus", "vase", "tie"}, {"car"}) == (0.5, 0.25, 1.0, 0.5)
    assert amber(set(), {"dog"}) == (None, 0.0, 0.0, None)
    assert amber({"dog"}, set()) == (1.0, None, 1.0, 0.0)


def test_amber_counts_objects_once_and_means_over_captions() -> None:
    asked = (Message("user", (TextBlock("?"),)),)
    examples = [
        Example("1", asked, metadata={"objects": ["dog", "vase"], "likely": ["bird"]}),
        Example("2", asked, references=("A man.",), metadata={"objects": ["bus"]}),
    ]
    answers = [
        Prediction("1", "A dog, a puppy and birds."),
        Prediction("2", "People wait for a bus."),
    ]
    measured = amber_scorer(WORDS)(examples, answers)
    found = {m.name: estimate(m, resamples=20).value for m in measured}
    assert found["amber_chair[fixed]"] == 0.25
    assert found["amber_cover[fixed]"] == 0.75
    assert found["amber_hal[fixed]"] == 0.5
    assert found["amber_cog[fixed]"] == 0.25
