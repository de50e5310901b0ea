"""Scoring a JSONL file: what is written, and one clear line for each kind of bad input."""

from __future__ import annotations

import json

import pytest

from polyptych.errors import PolyptychError
from polyptych.evaluation.metrics import compute
from polyptych.evaluation.scoring_file import score_file

GOOD = [
    {"id": "g1", "prediction": "a red ball", "references": ["a red ball.", "one red ball"]},
    {"id": 2, "prediction": "", "references": ["a blue hat"], "extra": True},
]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_scores_and_file(tmp_path):
    file = write(tmp_path / "predictions.jsonl", GOOD)
    out = tmp_path / "new" / "scores.json"
    scores = score_file(file, ["cider", "bleu", "rouge_l"], out)
    expected = compute(
        ["cider", "bleu", "rouge_l"],
        [r["prediction"] for r in GOOD],
        [r["references"] for r in GOOD],
        ["g1", "2"],
    )
    assert scores == expected
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["count"] == 2
    assert written["scores"] == {s.name: s.value for s in scores}
    assert written["per_item"]["g1"] == {s.name: s.per_item["g1"] for s in scores}
    assert written["per_item"]["2"]["rouge_l[coco]"] == 0.0
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", ', r"line 3: not valid JSON"),
        ("", r"line 3: empty"),
        ("[1]", r"line 3: expected a JSON object, got list"),
        ('{"id": "x", "references": ["a"]}', r"line 3: 'prediction' is missing"),
        ('{"id": null, "prediction": "a", "references": ["a"]}', r"line 3: 'id' must be"),
        ('{"id": "x", "prediction": 5, "references": ["a"]}', r"line 3 \(id 'x'\): 'prediction'"),
        ('{"id": "x", "prediction": "a", "references": "a"}', r"line 3 \(id 'x'\): 'references'"),
        ('{"id": "x", "prediction": "a", "references": []}', r"line 3 \(id 'x'\): 'references'"),
        (
            '{"id": "x", "prediction": "a", "references": ["b", " "]}',
            r"line 3 \(id 'x'\): reference 2 of 2 is empty",
        ),
        (
            '{"id": "g1", "prediction": "a", "references": ["b"]}',
            r"line 3: id 'g1' occurs before, in .*line 1$",
        ),
        ('{"id": "2", "prediction": "a", "references": ["b"]}', r"id '2' occurs before"),
    ],
)
def test_bad_line(tmp_path, line, message):
    file = write(tmp_path / "predictions.jsonl", GOOD)
    file.write_text(file.read_text() + line + "\n")
    out = tmp_path / "scores.json"
    out.write_text("earlier")
    with pytest.raises(PolyptychError, match=message) as error:
        score_file(file, ["cider"], out)
    assert "predictions.jsonl" in str(error.value)
    assert "\n" not in str(error.value)
    assert out.read_text() == "earlier"


def test_no_file_empty_file_unknown_metric(tmp_path):
    with pytest.raises(PolyptychError, match="cannot read"):
        score_file(tmp_path / "absent.jsonl", ["cider"])
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(PolyptychError, match=r"empty\.jsonl: no predictions"):
        score_file(empty, ["cider"])
    with pytest.raises(PolyptychError, match="unknown metric 'meteor'"):
        score_file(empty, ["meteor"])


def test_out_that_cannot_be_written(tmp_path):
    file = write(tmp_path / "predictions.jsonl", GOOD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(PolyptychError, match="cannot write"):
        score_file(file, ["cider"], tmp_path / "folder")
    assert not list(tmp_path.glob("*.partial"))
