"""Pages of runs: what they show, that they fetch nothing, and their filters in a browser."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import headless_browser
import numpy as np
import pytest
from headless_browser import Browser
from PIL import Image

from polyptych.errors import PolyptychError
from polyptych.evaluation.comparison_report import write_comparison
from polyptych.evaluation.demon.published import published_models
from polyptych.evaluation.published import published_for, published_rows
from polyptych.evaluation.report_cards import choose, choose_changed
from polyptych.evaluation.report_scores import Row, points_of, published_table
from polyptych.evaluation.run_report import CARDS, write_report
from polyptych.evaluation.runner import evaluate
from polyptych.evaluation.samples.writing import DRAWN
from polyptych.evaluation.scorers import item_scorer
from polyptych.evaluation.task import GenerationSettings, Task
from polyptych.evaluation.tasks import demon
from polyptych.evaluation.tasks.catalog import BENCHMARKS
from polyptych.evaluation.tasks.finding import find_task
from polyptych.evaluation.tasks.listing import make_samples
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

with_browser = pytest.mark.skipif(headless_browser.FOUND is None, reason="no Chromium here")


class Guesser:
    """Answers the same of every question, but for each ``every``-th one."""

    tokens_per_image = 1
    ignores: frozenset[str] = frozenset()

    def __init__(self, name: str, usual: str, other: str, every: int) -> None:
        self.name = self.hash = name
        self.usual, self.other, self.every = usual, other, every

    def answer(self, examples: Any, settings: GenerationSettings) -> list[str]:
        return [
            self.other if sum(map(ord, example.id)) % self.every == 0 else self.usual
            for example in examples
        ]

    def context(self) -> dict[str, Any]:
        return {"model": {"name": self.name}}


FIRST = Guesser("always <yes>", "yes", "yes", 1)
SECOND = Guesser("mostly no", "no", "yes", 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of POPE and of drawn questions, with their pages."""
    root = tmp_path_factory.mktemp("runs")
    list(make_samples("pope", root / "data"))
    (root / "data" / "pope" / DRAWN).unlink()  # as if it were POPE
    tasks = [
        find_task("pope", data=root / "data"),
        find_task("storybook/existence", count=12),
    ]
    for name, guesser in (("first", FIRST), ("second", SECOND)):
        for task in tasks:
            folder = root / name / task.name.replace("/", "-")
            evaluate(guesser, task, folder, progress=False)
        write_report(root / name)
    write_comparison(root / "first", root / "second", root / "both.html")
    return root


def test_the_page_shows_scores_with_intervals_baselines_and_published_rows(runs: Path) -> None:
    page = (runs / "first" / "report.html").read_text()
    record = json.loads((runs / "first" / "pope" / "scores.json").read_text())
    scores = {score["name"]: score for score in record["scores"]}
    f1 = scores["mean_f1[reference]"]
    low, high = (f"{100 * bound:.1f}" for bound in f1["interval"])
    assert f"{low} to {high}" in page
    assert f">{100 * f1['value']:.1f}</td>" in page
    majority = record["baselines"]["majority"]["values"]["mean_f1[reference]"]
    assert f'data-label="Majority">{100 * majority:.1f}</td>' in page
    assert record["baselines"]["chance"]["values"]["accuracy[reference]"] == pytest.approx(
        0.5, abs=0.1
    )
    assert "Yes ratio" in page
    for row, value in published_for("pope", "mean_f1"):
        assert f">{row.model}</th>" in page
        assert f">{value:.1f}</td>" in page
    assert record["data_hash"] in page
    assert "always &lt;yes&gt;" in page
    assert "<yes>" not in page


def test_a_drawn_sample_is_called_one_and_stands_beside_nothing_published(tmp_path: Path) -> None:
    list(make_samples("pope", tmp_path / "data"))
    task = find_task("pope", data=tmp_path / "data")
    assert task.origin["drawn"] is True
    evaluate(FIRST, task, tmp_path / "run", progress=False)
    page = write_report(tmp_path / "run").read_text()
    assert page.count("drawn sample</span>") == 2
    assert "their numbers say nothing about the benchmark" in page
    assert all(row.model not in page for row, _ in published_for("pope", "mean_f1"))


def test_where_no_item_stands_out_some_are_shown(tmp_path: Path) -> None:
    never = Guesser("never", "fish", "fish", 1)
    evaluate(never, find_task("storybook/existence", count=12), tmp_path, progress=False)
    page = write_report(tmp_path).read_text()
    assert "No item stands out" in page
    assert page.count('class="card some"') == CARDS
    assert 'type="radio"' not in page


def test_pages_fetch_nothing_and_run_nothing(runs: Path) -> None:
    for path in (runs / "first" / "report.html", runs / "both.html"):
        page = path.read_text()
        links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")\s>]+)', page)
        assert {link.split(":")[0] for link in links if not link.startswith("#")} <= {"data"}
        assert "<script" not in page


def test_a_page_can_be_made_again_without_the_data(runs: Path, tmp_path: Path) -> None:
    record = json.loads((runs / "first" / "pope" / "scores.json").read_text())
    record["origin"]["data"] = str(tmp_path / "gone")
    copy = tmp_path / "run"
    copy.mkdir()
    for path in (runs / "first" / "pope").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "scores.json").write_text(json.dumps(record))
    page = write_report(copy).read_text()
    assert page.count('class="card') == 16
    assert "data:image/" in page, "pictures are found by their paths in the answers' file"
    with pytest.raises(PolyptychError, match=r"no run here \(no scores.json\)"):
        write_report(tmp_path / "data")


def test_the_comparison_shows_both_answers_and_warns_of_small_differences(runs: Path) -> None:
    page = (runs / "both.html").read_text()
    assert "Inside the interval, so no difference shown" in page
    assert page.count('class="answer first"') == page.count('class="answer second"') > 0
    assert "gained most" in page


def test_demon_stands_beside_its_published_rows(tmp_path: Path) -> None:
    benchmark = demon.read_benchmark(demon.make_sample(tmp_path / "data", per_task=4))
    guesser = Guesser("mixed", "A", "yes", 2)
    demon.evaluate_demon(guesser, benchmark, tmp_path / "run", progress=False)
    page = write_report(tmp_path / "run").read_text()
    assert "DEMON-Core" in page
    assert page.count("<td data-label=") == 9 * (11 + 2), "categories and averages of 13 rows"
    for row in published_models():
        assert f'<th scope="row">{row.name}</th>' in page
    assert "mixed [fixed]" in page
    assert "of 29 tasks missing" in page
    assert '<p class="of">demon/' in page


@with_browser
def test_filters_work_on_a_desktop(runs: Path) -> None:
    with Browser(runs / "first" / "report.html", width=1200) as page:
        total = page.visible("#pope .card")
        assert total == page.visible("#pope .card.best") + page.visible("#pope .card.worst") == 16
        page.click('#pope label:has([value="worst"])')
        assert page.visible("#pope .card") == page.visible("#pope .card.worst") == 8
        page.click('#pope label:has([value="best"])')
        assert page.visible("#pope .card") == page.visible("#pope .card.best") == 8
        assert page.visible("#storybook-existence .card") == 12, "other tasks have their own filter"
        page.click('#pope label:has([value="all"])')
        assert page.visible("#pope .card") == total
        page.click('table.overview a[href="#storybook-existence"]')
        assert page.run("location.hash") == "#storybook-existence"
        assert page.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        fetched = [url for url in page.requests if not url.startswith(("file:", "data:"))]
        assert fetched == []


@with_browser
def test_nothing_is_wider_than_a_phone(runs: Path) -> None:
    for path in (runs / "first" / "report.html", runs / "both.html"):
        with Browser(path, width=390) as page:
            assert page.run("document.documentElement.scrollWidth") <= 390
            before = page.visible(".card")
            page.click('.filter label:has([value="best"], [value="gained"])')
            assert 0 < page.visible(".card") < before


def test_items_are_chosen_by_value_and_not_by_place() -> None:
    values = {f"q{n}": float(n % 2) for n in range(40)}
    chosen = choose(values, 5)
    assert {values[i] for i, kind in chosen.items() if kind == "best"} == {1.0}
    assert {values[i] for i, kind in chosen.items() if kind == "worst"} == {0.0}
    assert len(chosen) == 10
    assert [i for i in chosen if chosen[i] == "best"] != ["q1", "q3", "q5", "q7", "q9"]
    assert choose(dict(reversed(values.items())), 5) == chosen
    assert choose({"a": 1.0, "b": 1.0}, 5) == {}
    assert choose({"a": 1.0, "b": 0.0}, 5) == {"a": "best", "b": "worst"}
    changed = choose_changed({"a": 0.0, "b": 1.0, "c": 1.0}, {"a": 0.5, "b": 0.0, "c": 1.0}, 5)
    assert changed == {"a": "gained", "b": "lost"}


def test_published_rows_name_tasks_and_metrics_that_exist() -> None:
    assert len(published_rows()) == 23
    for row in published_rows():
        assert row.source
        assert row.values.keys() <= BENCHMARKS.keys()
    headlines = {"mme": "perception", "pope": "mean_f1", "chair": "chair_s", "mm_vet": "score"}
    for task, metric in headlines.items():
        assert BENCHMARKS[task].metric == metric
        assert published_for(task, metric)


def test_points_and_percent_keep_their_units_and_less_can_be_better() -> None:
    assert points_of("mme", "perception[official]") == 2000
    assert points_of("mme", "OCR[official]") == 200
    assert points_of("mme", "accuracy[official]") is None
    assert points_of("mmhal", "score.attribute[fixed]") == 6
    own = Row("mme", "perception[official]", 1400.04, 1300.0, 1500.0, 10, {})
    page = published_table("ours", own, published_for("mme", "perception"))
    models = re.findall(r'<th scope="row">([^<]+)</th>', page)
    assert models.index("CaMML-13B") < models.index("ours") < models.index("VPG-C")
    assert ">1400.0<" in page
    chair = Row("chair", "chair_s[reference]", 0.45, 0.4, 0.5, 10, {})
    page = published_table("ours", chair, published_for("chair", "chair_s"))
    models = re.findall(r'<th scope="row">([^<]+)</th>', page)
    assert models[0] == "VILA-7B with SIMA"
    assert models.index("SIMA-7B") < models.index("ours") < models.index("LLaVA-1.5-7B")


@pytest.mark.slow
def test_ten_thousand_items_take_seconds_and_few_megabytes(tmp_path: Path) -> None:
    """Photos of noise, four to an item: the worst that JPEG can meet."""
    generator = np.random.default_rng(0)
    for number in range(64):
        pixels = generator.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")

    def example(number: int) -> Example:
        places = [(4 * number + place) % 64 for place in range(4)]
        message = Message("user", (*[ImageBlock()] * 4, TextBlock(f"Is {number} there?")))
        images = tuple(ImageRef(path=str(tmp_path / f"{place}.jpg")) for place in places)
        return Example(f"q{number}", (message,), images, ("yes",))

    examples = [example(number) for number in range(10_000)]
    task = Task("many", lambda: examples, (item_scorer("a[t]", lambda t, _: t == "yes"),))
    evaluate(SECOND, task, tmp_path / "run", progress=False)
    start = time.process_time()
    path = write_report(tmp_path / "run")
    assert time.process_time() - start < 5
    page = path.read_text()
    assert page.count("data:image/jpeg") == 4 * 16
    assert len(page) < 20_000_000
