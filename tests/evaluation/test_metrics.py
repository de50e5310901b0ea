"""Values of CIDEr, BLEU and ROUGE-L: worked by hand, published, and from the reference scorers."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.errors import PolyptychError
from polyptych.evaluation.metrics import METRICS, compute, resolve
from polyptych.evaluation.metrics.bleu import bleu
from polyptych.evaluation.metrics.cider import cider
from polyptych.evaluation.metrics.ngrams import Corpus
from polyptych.evaluation.metrics.rouge_l import rouge_l_coco
from polyptych.evaluation.metrics.sam_normalization import sam_normalize

ALL = ("bleu", "cider", "rouge_l")
EVERY_NAME = tuple(METRICS)


def values(names, predictions, references, ids=None):
    return {score.name: score for score in compute(names, predictions, references, ids)}


def corpus(candidates, references):
    return Corpus([c.split() for c in candidates], [[r.split() for r in rs] for rs in references])


# --- by hand -----------------------------------------------------------------------------------


def test_bleu_by_hand():
    # candidate: the the cat, 3 words; "the" is clipped at 2 (reference 1), cat 1: p1 = 3/3.
    # bigrams "the the" (no), "the cat" (yes): p2 = 1/2. trigram: none of 1.
    scores = values(["bleu"], ["the the cat"], [["on the mat sat the cat", "a cat"]])
    # closest length to 3 is 2 ("a cat"), which is shorter: no penalty
    assert scores["bleu_1[coco]"].value == pytest.approx(1.0, abs=1e-8)
    assert scores["bleu_2[coco]"].value == pytest.approx(math.sqrt(0.5), abs=1e-8)
    assert scores["bleu_3[coco]"].value == pytest.approx((0.5 * 1e-15) ** (1 / 3), rel=1e-6)


def test_bleu_clips_at_the_most_frequent_reference():
    scores = values(["bleu_1"], ["the the the the"], [["the cat the", "the dog sat here"]])
    # 2 of 4; the closest reference has 4 words: no penalty
    assert scores["bleu_1[coco]"].value == pytest.approx(0.5, abs=1e-8)


def test_bleu_brevity_penalty_and_corpus_sums():
    scores = values(["bleu_1"], ["a b", "c d e f"], [["a b c d"], ["c x x x"]], ids=["p", "q"])
    first, second = math.exp(1 - 4 / 2), 1 / 4
    assert scores["bleu_1[coco]"].per_item == pytest.approx({"p": first, "q": second}, abs=1e-8)
    # whole set: 3 matches of 6 words, 8 reference words
    assert scores["bleu_1[coco]"].value == pytest.approx(3 / 6 * math.exp(1 - 8 / 6), abs=1e-8)


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    scores = values(["bleu_1"], ["a b c"], [["a b c d", "a b"]])
    assert scores["bleu_1[coco]"].value == pytest.approx(1.0, abs=1e-8)


def test_rouge_l_by_hand():
    # longest common subsequence of "a c b d" and "a b c d" is 3, and 1 with "d e"
    score = values(["rouge_l"], ["a c b d"], [["a b c d", "d e"]])["rouge_l[coco]"]
    precision, recall, beta2 = 3 / 4, 3 / 4, 1.44
    expected = (1 + beta2) * precision * recall / (recall + beta2 * precision)
    assert score.value == pytest.approx(expected)


def test_rouge_l_takes_precision_and_recall_from_different_references():
    score = values(["rouge_l"], ["a b c d"], [["a b c x y z", "d"]])["rouge_l[coco]"]
    precision, recall, beta2 = 3 / 4, 1.0, 1.44
    expected = (1 + beta2) * precision * recall / (recall + beta2 * precision)
    assert score.value == pytest.approx(expected)


def test_cider_by_hand():
    # Two items of one reference each, so log N = log 2. Words in both items weigh 0.
    # Item 1: "a b" against "a c": no bigram shared, and unigrams share only "a", which weighs 0
    # ("a" stands in both items): 0. Item 2: candidate "a d e" = reference: order 1 and 2 are 1,
    # order 3 is 1, order 4 has no n-gram: 0. Mean over four orders 3/4, times 10.
    score = values(["cider"], ["a b", "a d e"], [["a c"], ["a d e"]], ids=["x", "y"])["cider[coco]"]
    assert score.per_item == pytest.approx({"x": 0.0, "y": 7.5})
    assert score.value == pytest.approx(3.75)


def test_cider_clips_and_punishes_length():
    # idf is log 2 for all words of item 1. Unigrams: candidate b:2, c:1; reference b:1, c:1.
    # dot = min(2,1)*1 + 1*1 = 2, norms sqrt(5) and sqrt(2). Bigrams: "b b", "b c" against "b c":
    # 1 / (sqrt(2) * 1). Higher orders 0. Lengths in bigrams 2 and 1.
    score = values(["cider"], ["b b c", "z"], [["b c"], ["y"]], ids=["x", "y"])["cider[coco]"]
    cosine = 2 / math.sqrt(10) + 1 / math.sqrt(2)
    assert score.per_item["x"] == pytest.approx(10 / 4 * cosine * math.exp(-1 / 72))


def test_cider_of_a_single_item_is_zero():
    score = values(["cider"], ["a red ball"], [["a red ball"]])["cider[coco]"]
    assert score.value == 0.0


def test_rouge_package_by_hand():
    # one sentence: LCS words {a, b}; distinct words 3 and 4
    flat = values(["rouge_l[rouge]"], ["a b x"], [["a y b z"]])["rouge_l[rouge]"].value
    precision, recall = 2 / 3, 2 / 4
    assert flat == pytest.approx(2 * precision * recall / (precision + recall + 1e-8), abs=1e-12)
    # words count once: "the" of three is one distinct word of two
    twice = values(["rouge_l[rouge]"], ["the cat the"], [["the dog the"]])["rouge_l[rouge]"].value
    assert twice == pytest.approx(2 * 0.25 / (1.0 + 1e-8), abs=1e-12)
    # two sentences: union of {a} and {c}
    union = values(["rouge_l[rouge]"], ["a b.c d"], [["a x.c y"]])["rouge_l[rouge]"].value
    assert union == pytest.approx(2 * 0.25 / (1.0 + 1e-8), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's a dog!", "it's a dog"),
        ("a-b,c", "a b c"),
        ("a - b-c", "a  bc"),
        ("1,000 dogs; two-fold", "1000 dogs twofold"),
        ("v2.5 is here. Yes.", "v2.5 is here yes"),
        ("'quoted \"text\"'", "quoted text"),
        (". " * 40, ". . . . . . . ."),
        ("\n\t", ""),
    ],
)
def test_sam_normalization(text, expected):
    assert sam_normalize(text) == expected


# --- names and bad input -----------------------------------------------------------------------


def test_names():
    assert resolve("bleu") == [f"bleu_{n}[coco]" for n in (1, 2, 3, 4)]
    assert resolve("cider") == ["cider[coco]"]
    assert resolve("rouge_l[rouge]") == ["rouge_l[rouge]"]
    scores = compute(["rouge_l[sam]", "bleu", "bleu_4"], ["a"], [["a"]])
    assert [s.name for s in scores] == ["rouge_l[sam]", *resolve("bleu")]
    for bad in ("meteor", "bleu_5", "cider[google]", ""):
        with pytest.raises(PolyptychError, match="unknown metric"):
            resolve(bad)


@pytest.mark.parametrize(
    ("predictions", "references", "ids", "message"),
    [
        (["a"], [["b"], ["c"]], None, "1 predictions for 2 items"),
        ([], [], None, "no predictions"),
        (["a", "b"], [["a"], []], ["x", "y"], "'y' has 0 references"),
        (["a", "b"], [["a"], ["b", " "]], ["x", "y"], "'y': reference 2 of 2 is empty"),
        (["a", "b"], [["a"], ["b"]], ["x", "x"], "'x' occurs 2 times"),
    ],
)
def test_bad_input(predictions, references, ids, message):
    with pytest.raises(PolyptychError, match=message):
        compute(["cider"], predictions, references, ids)


def test_empty_prediction_scores_zero():
    for score in compute(EVERY_NAME, ["", "a red dog"], [["a red dog"], ["a blue cat"]]):
        assert score.per_item["0"] == 0.0, score.name


def test_a_reference_of_punctuation_only():
    # as in the original, two texts without words are one equal empty word for ROUGE-L
    scores = values(["rouge_l", "bleu", "cider"], ["!", "dog"], [["..."], ["dog"]])
    assert scores["rouge_l[coco]"].per_item["0"] == pytest.approx(1.0)
    assert scores["bleu_4[coco]"].per_item["0"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(PolyptychError, match="needs words in every reference"):
        compute(["rouge_l[sam]"], ["dog"], [["..."]])


def test_unicode():
    scores = values(ALL, ["ein süßer Hund 🐶", "日本語"], [["Ein süßer Hund"], ["日本語"]])
    assert scores["bleu_1[coco]"].value == pytest.approx(1.0, abs=1e-6)
    assert scores["rouge_l[coco]"].value == pytest.approx(1.0)


def test_a_token_with_spaces_inside_is_one_word_for_rouge_and_several_for_bleu():
    scores = values(["bleu_1", "rouge_l"], ["add 1 1/2 cups"], [["add 1 1/2 spoons"]])
    assert scores["bleu_1[coco]"].value == pytest.approx(3 / 4, abs=1e-8)
    assert scores["rouge_l[coco]"].value == pytest.approx(2 / 3)


# --- properties --------------------------------------------------------------------------------

sentence = st.lists(
    st.sampled_from(["a", "red", "dog", "cat", "sits", ".", "on", "the"]), min_size=1
)
text = sentence.map(" ".join)
items = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=6)
UPPER = {name: 10.0 if name.startswith("cider") else 1.0 for name in METRICS}


def has_words(pair):
    return all(sam_normalize(reference) for reference in pair[1])


@settings(max_examples=60, deadline=None)
@given(items.map(lambda pairs: [p for p in pairs if has_words(p)]).filter(bool), st.randoms())
def test_bounds_and_permutation(pairs, random):
    order = list(range(len(pairs)))
    random.shuffle(order)
    ids = [f"id{i}" for i in order]
    straight = compute(
        EVERY_NAME,
        [p for p, _ in pairs],
        [r for _, r in pairs],
        [f"id{i}" for i in range(len(pairs))],
    )
    shuffled = compute(
        EVERY_NAME,
        [pairs[i][0] for i in order],
        [random.sample(pairs[i][1], len(pairs[i][1])) for i in order],
        ids,
    )
    for one, other in zip(straight, shuffled, strict=True):
        assert 0.0 <= one.value <= UPPER[one.name] + 1e-9
        assert all(0.0 <= v <= UPPER[one.name] + 1e-9 for v in one.per_item.values())
        assert other.value == pytest.approx(one.value, abs=1e-12)
        assert other.per_item == pytest.approx(dict(one.per_item), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(items.map(lambda pairs: [p for p in pairs if has_words(p)]).filter(bool))
def test_no_prediction_beats_the_single_reference_itself(pairs):
    references = [[several[0]] for _, several in pairs]
    perfect = compute(EVERY_NAME, [several[0] for several in references], references)
    others = compute(EVERY_NAME, [prediction for prediction, _ in pairs], references)
    for best, other in zip(perfect, others, strict=True):
        assert all(other.per_item[i] <= best.per_item[i] + 1e-9 for i in best.per_item), best.name


# --- published and reference values ------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.parametrize(("kept", "name"), [(48, "refs48"), (5, "refs5")])
def test_reference_scorers_on_abstract_scenes(shared_dir, kept, name):
    folder = shared_dir / "data" / "caption_scores"
    references = json.loads(gzip.decompress((folder / "abstract48S_refs.json.gz").read_bytes()))
    candidates = json.loads((folder / "abstract_candsB.json").read_text())
    expected = json.loads((folder / f"abstract_candsB_{name}_expected.json").read_text())
    tokenized = {c["image_id"]: c["tokenized"] for c in candidates}
    ids = expected["image_ids"]
    made = corpus(
        [tokenized[i] for i in ids], [[r["tokenized"] for r in references[i][:kept]] for i in ids]
    )
    ours = {f"Bleu_{n}": bleu(made, n) for n in (1, 2, 3, 4)}
    ours |= {"ROUGE_L": rouge_l_coco(made), "CIDEr": cider(made)}
    assert set(ours) == set(expected["overall"]) == set(expected["per_image"])
    for metric, (value, per_item) in ours.items():
        assert value == pytest.approx(expected["overall"][metric], abs=1e-9), metric
        # the per-image values are stored with eight decimals
        np.testing.assert_allclose(per_item, expected["per_image"][metric], atol=1e-8, rtol=0)


@pytest.mark.shared_data
def test_published_examples(shared_dir):
    file = shared_dir / "data" / "caption_scores" / "published_small.json"
    names = {f"Bleu_{n}": f"bleu_{n}[coco]" for n in (1, 2, 3, 4)}
    names |= {"ROUGE_L": "rouge_l[coco]", "CIDEr": "cider[coco]"}
    for title, case in json.loads(file.read_text()).items():
        ids = list(case["hyp"])
        scores = values(ALL, [case["hyp"][i] for i in ids], [case["refs"][i] for i in ids])
        digits = 6 if title == "nlg_eval_example" else 4
        for published, ours in names.items():
            printed = round(scores[ours].value, digits)
            assert printed == pytest.approx(case["published"][published], abs=1e-9), (title, ours)


@pytest.mark.shared_data
def test_scoring_script_of_sam(shared_dir):
    golden = json.loads(
        (shared_dir / "golden" / "sam" / "evaluate" / "evaluate_golden.json").read_text()
    )
    pairs = [(p["pred_response"], p["gt_response"]) for p in golden["predictions"]]
    assert [[sam_normalize(text) for text in pair] for pair in pairs] == golden["normalised"]
    ids = [str(p["sample_id"]) for p in golden["predictions"]]
    names = {"rouge": "rouge_l[sam]", "cider": "cider[sam]", "bleu4": "bleu_4[sam]"}
    scores = values(list(names.values()), [p for p, _ in pairs], [[g] for _, g in pairs], ids)
    for key, name in names.items():
        assert round(scores[name].value * 100, 2) == golden["summary"][key]
        for sample in golden["per_sample"]:
            assert scores[name].per_item[str(sample["id"])] == pytest.approx(sample[key], abs=1e-9)


def test_rouge_package_itself():
    package = pytest.importorskip("rouge", reason="the oracle package is not installed")
    random = np.random.default_rng(0)
    words = np.array(["a", "b", "c", "d", "e", "f", ".", "the", "the"])
    oracle = package.Rouge()
    for _ in range(300):
        prediction, reference = (
            " ".join(random.choice(words, random.integers(2, 14))) for _ in "ab"
        )
        if not prediction.replace(".", "").strip() or not reference.replace(".", "").strip():
            continue
        expected = oracle.get_scores(prediction, reference)[0]["rouge-l"]["f"]
        ours = compute(["rouge_l[rouge]"], [prediction], [[reference]])[0].value
        assert ours == pytest.approx(expected, abs=1e-12), (prediction, reference)
