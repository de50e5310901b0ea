"""Report pages: escaped, self-contained, well-formed, and true to the numbers."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from polyptych.evaluation.report import (
    Comparison,
    fade_uri,
    gallery,
    label,
    p_text,
    page,
    percent,
    score_table,
    shares,
    signed,
    text,
)
from polyptych.evaluation.scorers import Estimate
from polyptych.evaluation.statistics import Difference, Interval

VOID = {"meta", "img", "input", "line", "circle", "br"}


class Balanced(HTMLParser):
    """Raises on a tag that is closed wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def assert_balanced(html: str) -> None:
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []


def comparison(name: str = "cider[coco]", first: float = 0.5, second: float = 0.625) -> Comparison:
    return Comparison(
        Estimate(name, first, 10, interval=Interval(first - 0.1, first + 0.1)),
        Estimate(name, second, 10, interval=Interval(second - 0.1, second + 0.1)),
        Difference(second - first, Interval(-0.01, 0.26), 0.0004),
    )


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_table_shows_values_intervals_and_flavour() -> None:
    table = score_table([comparison()], ("alone", "SAM & co"), "ten items")
    assert_balanced(table)
    for part in ("CIDEr", "coco", "50.0", "62.5", "+12.5", "−1.0, 26.0", "&lt; 0.001", "SAM &amp;"):
        assert part in table.replace("< 0.001", "&lt; 0.001")
    assert "ten items" in table


def test_whiskers_lie_where_the_numbers_are() -> None:
    table = score_table([comparison()], ("a", "b"), "")
    circles = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', table)]
    assert circles == [100.0, 125.0]  # 200 units wide, from 0 to 1
    above = score_table([comparison(first=3.0, second=4.0)], ("a", "b"), "")
    assert all(float(x) <= 200 for x in re.findall(r'cx="([\d.]+)"', above))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rouge_l[coco]", ("ROUGE-L", "coco")),
        ("factor_accuracy[storybook]", ("Exact-factor accuracy", "storybook")),
        ("unknown", ("unknown", "")),
    ],
)
def test_label(name: str, expected: tuple[str, str]) -> None:
    assert label(name) == expected


def test_numbers() -> None:
    assert [percent(v) for v in (0.1234, -0.05, -1e-9)] == ["12.3", "−5.0", "0.0"]
    assert [signed(v) for v in (0.05, -0.05, 0.0)] == ["+5.0", "−5.0", "0.0"]
    assert [p_text(v) for v in (0.0004, 0.0321, 1.0)] == ["< 0.001", "0.032", "1.000"]


def test_gallery_counts_and_marks_outcomes() -> None:
    html = gallery("g", [("first", "A"), ("both", "B"), ("both", "C")], {"both": "x", "first": "y"})
    assert_balanced(html)
    assert "all 3" in html
    assert "x 2" in html
    assert "y 1" in html
    assert html.count('class="card both"') == 2


def test_shares_leave_out_empty_parts_of_the_bar() -> None:
    html = shares({"both": ("both right", 3), "neither": ("both wrong", 0)})
    assert_balanced(html)
    assert html.count("<span") == 1
    assert "<b>0</b> both wrong" in html


def test_veil_is_clear_where_attention_is_strongest_and_thick_where_there_is_none() -> None:
    attention = np.zeros((4, 4), dtype=np.float32)
    attention[0, 3] = 0.5
    veil = decoded(fade_uri(attention, strongest=0.5))
    assert veil.mode == "LA"
    opacity = np.asarray(veil)[..., 1]
    assert opacity[1, -2] < 40
    assert opacity[-2, 1] > 215
    weaker = np.asarray(decoded(fade_uri(attention, strongest=2.0)))[..., 1]
    assert 90 < weaker[1, -2] < 160  # a quarter of the strongest: half clear


def test_page_is_self_contained() -> None:
    html = page("A <b> title", f"<p>{text('<script>')}</p>")
    assert "A &lt;b&gt; title" in html
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\((?!data:)|@import|https?://", html)
