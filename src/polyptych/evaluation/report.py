"""Building blocks of report pages: one self-contained HTML file, no scripts, nothing fetched.

A page is text, score tables with intervals, and a gallery of cards that radio buttons filter by
style sheet alone. Pictures are inline PNG; where a model looked is a picture that fades to paper
where it did not look. Everything here returns HTML as a string; all text is escaped at this border.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polyptych.evaluation.scorers import Estimate
from polyptych.evaluation.statistics import Difference

PAPER = 255
"""Grey value of what fades: the cards are white."""

VEIL = 224
"""Opacity of the veil where nobody looked; below 255, so that the picture can still be guessed."""

NOTHING = "\N{EN DASH}"
"""Where a table has no number."""

LABELS = {
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "accuracy": "Accuracy",
    "mean_accuracy": "Mean accuracy",
    "circular_accuracy": "Circular accuracy",
    "accuracy@0.5": "Accuracy, IoU 0.5",
    "vqa_accuracy": "VQA accuracy",
    "f1": "F1",
    "mean_f1": "F1, mean of 3",
    "precision": "Precision",
    "recall": "Recall",
    "yes_ratio": "Yes ratio",
    "chair_s": "CHAIR, captions",
    "chair_i": "CHAIR, mentions",
    "chair": "CHAIR",
    "cover": "Cover",
    "hal": "Hal",
    "cog": "Cog",
    "coverage": "Coverage",
    "length": "Length, words",
    "mean_iou": "Mean IoU",
    "consistency": "Consistency",
    "unreadable": "Unreadable answers",
    "out_of_range": "Boxes outside the image",
    "perception": "Perception, points",
    "cognition": "Cognition, points",
    "change_accuracy": "Change accuracy",
    "factor_accuracy": "Exact-factor accuracy",
    "name_accuracy": "Name accuracy",
    "name_f1": "Name F1",
    "story_accuracy": "Names, acts and place",
}
"""How metrics are called in tables; others show their own name."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of two systems on the same items."""

    first: Estimate
    second: Estimate
    difference: Difference
    """Second minus first."""


def page(title: str, body: str) -> str:
    """A whole HTML document with the report's style sheet."""
    style = files("polyptych.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Escaped for HTML, in text and in attributes."""
    return html.escape(str(value), quote=True)


# Scores.


def label(name: str) -> tuple[str, str]:
    """``cider[coco]`` to its name in tables and its flavour: ``("CIDEr", "coco")``."""
    stem, _, flavour = name.partition("[")
    return LABELS.get(stem, stem), flavour.rstrip("]")


LOWER_IS_BETTER = frozenset(
    (
        *("chair_s", "chair_i", "chair", "hal", "cog", "amber_chair", "amber_hal", "amber_cog"),
        *("hallucination_rate", "unparsable", "unreadable", "out_of_range"),
    )
)
"""Metrics, without flavor, whose small values are the good ones."""


def is_lower_better(name: str) -> bool:
    """Whether a metric counts what is wrong."""
    return name.partition("[")[0].partition(".")[0] in LOWER_IS_BETTER


def percent(value: float) -> str:
    """A value times 100 with one decimal, with a true minus sign."""
    rounded = round(100 * value, 1) + 0.0  # no negative zero
    return f"{rounded:.1f}".replace("-", "\N{MINUS SIGN}")


def written(value: float, points: float | None = None) -> str:
    """A share as percent; a metric in ``points`` as it is; a dash where there is no number."""
    if math.isnan(value):
        return NOTHING
    if points is None:
        return percent(value)
    return f"{value + 0.0:.{1 if points > 10 else 2}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """As :func:`percent`, with a plus sign above zero."""
    return f"+{percent(value)}" if value > 0 else percent(value)


def p_text(p_value: float) -> str:
    """A p value with three decimals, never written as zero; a dash for none."""
    if math.isnan(p_value):
        return NOTHING
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def score_table(
    comparisons: Sequence[Comparison],
    systems: tuple[str, str],
    caption: str,
    points: Callable[[str], float | None] = lambda name: None,
) -> str:
    """Metrics of two systems, with dots and whiskers for the intervals.

    Args:
        comparisons: One per line.
        systems: What the two are called.
        caption: Of the table.
        points: The largest value of a metric that is no share, from its name; None for shares.
    """
    first, second = map(text, systems)
    head = (
        f'<table class="scores"><caption>{text(caption)}</caption><thead><tr>'
        f'<th scope="col">Metric</th><th scope="col" class="first">{first}</th>'
        f'<th scope="col" class="second">{second}</th><th scope="col">95 % intervals</th>'
        '<th scope="col">Difference</th><th scope="col">p</th></tr></thead><tbody>'
    )
    rows = "".join(
        _score_row(comparison, systems, points(comparison.first.name)) for comparison in comparisons
    )
    return f'<div class="scroll">{head}{rows}</tbody></table></div>'


def _score_row(comparison: Comparison, systems: tuple[str, str], points: float | None) -> str:
    name, flavour = label(comparison.first.name)
    difference, (low, high), p_value = comparison.difference
    plus = "+" if difference > 0 else ""
    cells = "".join(
        f'<td class="{kind}" data-label="{text(system)}">{written(estimate.value, points)}</td>'
        for kind, system, estimate in (
            ("first", systems[0], comparison.first),
            ("second", systems[1], comparison.second),
        )
    )
    return (
        f'<tr><th scope="row">{text(name)} <small>{text(flavour)}</small></th>{cells}'
        f'<td class="plot">{_whiskers(comparison, points)}</td>'
        f'<td data-label="Difference">{plus}{written(difference, points)} '
        f"<small>[{written(low, points)}, {written(high, points)}]</small></td>"
        f'<td data-label="p">{p_text(p_value)}</td></tr>'
    )


def _whiskers(comparison: Comparison, points: float | None) -> str:
    """Both values with their intervals on one axis; it ends at 100, or above the larger bound."""
    estimates = (comparison.first, comparison.second)
    top = max(points or 1.0, *(1.05 * estimate.interval.high for estimate in estimates))
    parts = []
    for kind, estimate, y in zip(("first", "second"), estimates, (7, 17), strict=True):
        low, high, at = (200 * v / top for v in (*estimate.interval, estimate.value))
        parts.append(
            f'<g class="{kind}"><line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{at:.1f}" cy="{y}" r="4"/></g>'
        )
    spoken = "; ".join(
        f"{written(e.interval.low, points)} to {written(e.interval.high, points)}"
        for e in estimates
    )
    return (
        f'<svg viewBox="-5 0 210 24" role="img" aria-label="intervals {text(spoken)}">'
        f'<line class="axis" x1="0" x2="200" y1="12" y2="12"/>{"".join(parts)}</svg>'
    )


def shares(counts: Mapping[str, tuple[str, int]]) -> str:
    """A bar split by counts: ``{css class: (what, how many)}``."""
    total = sum(count for _, count in counts.values())
    bars = "".join(
        f'<span class="{kind}" style="flex-grow:{count}" title="{text(what)}: {count}"></span>'
        for kind, (what, count) in counts.items()
        if count
    )
    keys = "".join(
        f'<li class="{kind}"><b>{count}</b> {text(what)}</li>'
        for kind, (what, count) in counts.items()
    )
    return (
        f'<div class="shares"><div class="bar" role="img" aria-label="shares of {total}">{bars}'
        f"</div><ul>{keys}</ul></div>"
    )


# Gallery.


def gallery(name: str, cards: Iterable[tuple[str, str]], outcomes: Mapping[str, str]) -> str:
    """Cards of ``(outcome, html)``, filtered by outcome through radio buttons.

    Args:
        name: Name of the group of buttons, unique on the page.
        cards: What is shown, in order.
        outcomes: Outcome to what its button says; without any there are no buttons.
    """
    shown = list(cards)
    articles = "".join(f'<article class="card {kind}">{body}</article>' for kind, body in shown)
    if not outcomes:
        return f'<div class="gallery">{articles}</div>'
    present = {outcome: sum(kind == outcome for kind, _ in shown) for outcome in outcomes}
    buttons = [
        f'<label><input type="radio" name="{name}" value="all" checked>all {len(shown)}</label>'
    ]
    buttons += [
        f'<label><input type="radio" name="{name}" value="{kind}"'
        f"{'' if count else ' disabled'}>{text(outcomes[kind])} {count}</label>"
        for kind, count in present.items()
    ]
    return (
        f'<div class="gallery"><fieldset class="filter"><legend>Show</legend>{"".join(buttons)}'
        f"</fieldset>{articles}</div>"
    )


def png_uri(image: Image.Image) -> str:
    """An inline PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def drawing_uri(image: Image.Image) -> str:
    """An inline PNG of 128 colors, which drawings do not miss: a third of the size."""
    return png_uri(image.quantize(128, dither=Image.Dither.NONE))


def fade_uri(attention: NDArray[np.float32], strongest: float) -> str:
    """A veil over a picture: clear where attention is ``strongest``, paper where there is none.

    In between by the square root, so that a weak second look can be seen beside a strong first
    one. A few hundred bytes; the browser stretches it over the picture.

    Args:
        attention: (rows, columns) of patches.
        strongest: Attention that leaves the picture clear.
    """
    seen = np.sqrt(np.clip(attention / max(strongest, 1e-12), 0, 1))
    opacity = Image.fromarray((VEIL * (1 - seen)).astype(np.uint8))
    size = (3 * opacity.width, 3 * opacity.height)
    opacity = opacity.resize(size, Image.Resampling.BICUBIC)
    return png_uri(Image.merge("LA", (Image.new("L", size, PAPER), opacity)))
