"""The demo's report page: what was seen, score tables, and the pictures with both answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from polyptych.data.images import load_image
from polyptych.evaluation.report import (
    Comparison,
    drawing_uri,
    fade_uri,
    gallery,
    label,
    p_text,
    page,
    percent,
    png_uri,
    score_table,
    shares,
    signed,
    text,
)
from polyptych.schema import Example, ImageBlock, Prediction
from polyptych.serving.attention import Grid, Looks
from polyptych.storybook.rendering import draw
from polyptych.storybook.scenes import scene_from_json

SHOWN_SIZE = 192
"""Pixels of the large pictures; the models see them at their own size."""

SHORT_NAMES = ("alone", "SAM")

OUTCOMES = {
    "both": "both right",
    "second": "only SAM right",
    "first": "only alone right",
    "neither": "both wrong",
}

JUDGED_BY = {
    "group_captioning": "factor_accuracy[storybook]",
    "storytelling": "name_accuracy[storybook]",
}
"""What makes an answer right: the metric whose item values mark the cards."""

_TITLES = {
    "group_captioning": (
        "What do the pictures share?",
        "Three to five pictures have exactly one kind of thing, category or place in common; "
        "others stand in all pictures but one. An answer is right if it names that and nothing "
        "else.",
    ),
    "storytelling": (
        "How does the story end?",
        "Earlier captions say who is who; nothing else does. The model writes the last caption, so "
        "it has to recognize the characters. An answer is right if it names exactly the characters "
        "of the last picture; whether acts and place are right, too, is counted in the table.",
    ),
}


@dataclass(frozen=True, slots=True)
class Answered:
    """One task, answered by both models."""

    task: str
    examples: Sequence[Example]
    predictions: tuple[Sequence[Prediction], Sequence[Prediction]]
    comparisons: Sequence[Comparison]
    looks: tuple[Sequence[Looks], Sequence[Looks]]
    """Of the first examples, those that are shown."""


def render(answered: Sequence[Answered], facts: Mapping[str, str]) -> str:
    """The whole page."""
    total = sum(len(part.examples) for part in answered)
    parts = [
        "<h1>Several pictures, one answer</h1>",
        f'<p class="lead">Two small models answer the same {total} freshly drawn questions over '
        'groups of pictures. One reads <span class="name-first">each picture alone</span>. In the '
        'other, <span class="name-second">the pictures guide each other</span> while they are read '
        "(SAM, arXiv 2408.12867).</p>",
        *(_scores(part) for part in answered),
        _how_to_read(),
        *(_section(part) for part in answered),
        "<h2>How this page was made</h2>",
        f'<dl class="facts">{"".join(_fact(*item) for item in facts.items())}</dl>',
    ]
    return page("polyptych: several pictures, one answer", "\n".join(parts))


def _fact(name: str, value: str) -> str:
    shown = f"<code>{text(value)}</code>" if name == "Command" else text(value)
    return f"<dt>{text(name)}</dt><dd>{shown}</dd>"


def _scores(part: Answered) -> str:
    name = part.task.replace("_", " ").capitalize()
    caption = f"{name}: {len(part.examples)} test examples, all values times 100"
    return score_table(part.comparisons, SHORT_NAMES, caption) + _finding(part)


def _finding(part: Answered) -> str:
    """One honest sentence about the judged metric, whatever came out."""
    row = _judged(part)
    name, _ = label(row.first.name)
    low, high = row.difference.interval
    numbers = (
        f"{text(name)}: {percent(row.first.value)} alone, {percent(row.second.value)} with SAM, "
        f"difference {signed(row.difference.value)} (95 % interval {percent(low)} to "
        f"{percent(high)}, p {_equals(p_text(row.difference.p_value))})."
    )
    if low > 0:
        verdict = "On these examples the pictures that guide each other win."
    elif high < 0:
        verdict = "On these examples reading each picture alone wins."
    else:
        verdict = "Zero lies inside the interval: these examples do not tell the two apart."
    return f"<p>{numbers} {verdict}</p>"


def _equals(p_value: str) -> str:
    return text(p_value if p_value.startswith("<") else f"= {p_value}")


def _judged(part: Answered) -> Comparison:
    name = JUDGED_BY[part.task]
    return next(row for row in part.comparisons if row.first.name == name)


def _how_to_read() -> str:
    return (
        "<h2>How to read the pictures below</h2>"
        "<p>The large pictures are redrawn sharper than the models see them; the small ones have "
        "the models’ own resolution. Small pictures stay clear where a model looked and fade "
        "where it did not: attention of the visual tokens over the patches, averaged over heads "
        "and tokens, in the last layer that looks at pixels, on a square-root scale. They show "
        "where a model looked, not why it answered as it did.</p>"
    )


# One task.


def _section(part: Answered) -> str:
    title, explanation = _TITLES[part.task]
    outcomes = _outcomes(part)
    counts = Counter(outcomes.values())
    shown = len(part.looks[0])
    cards = (
        (outcomes[e.id], _card(part, number)) for number, e in enumerate(part.examples[:shown])
    )
    return (
        f"<h2>{text(title)}</h2><p>{text(explanation)}</p>"
        + shares({kind: (what, counts[kind]) for kind, what in OUTCOMES.items()})
        + f"<p><small>The bar counts all {len(part.examples)} examples. Shown are the first "
        f"{shown} that were drawn; none was picked.</small></p>"
        + gallery(part.task, cards, OUTCOMES)
    )


def _outcomes(part: Answered) -> dict[str, str]:
    """Which of the two was right, by example id."""
    row = _judged(part)
    names = {
        (True, True): "both",
        (False, True): "second",
        (True, False): "first",
        (False, False): "neither",
    }
    first, second = row.first.per_item or {}, row.second.per_item or {}
    return {e.id: names[first[e.id] == 1, second[e.id] == 1] for e in part.examples}


def _card(part: Answered, number: int) -> str:
    example, outcome = part.examples[number], _outcomes(part)[part.examples[number].id]
    question, captions = _question(example)
    sources = ";".join(f"--p{i}:url({uri})" for i, uri in enumerate(_seen_uris(example)))
    answers = "".join(
        _answer(part, number, side, right=outcome in ("both", kind))
        for side, kind in enumerate(("first", "second"))
    )
    return (
        f'<p class="question"><small>{number + 1}</small>{text(question)}</p>'
        f'<div class="panels">{"".join(_panels(example, captions))}</div>'
        f'{_reference(example)}<div class="answers" style="{sources}">{answers}</div>'
    )


def _question(example: Example) -> tuple[str, list[str]]:
    """The question, and the captions told with the pictures (only in stories).

    ``"How does it end? " <1> " Caption 1: Mia runs. " <2> " Caption 2:"`` gives the question and
    ``["Mia runs.", ""]``; ``"Picture 1: " <1> " Picture 2: " <2> "What is shared?"`` gives the
    question and ``[]``.
    """
    pieces = [""]
    for block in example.prompt[-1].content:
        if isinstance(block, ImageBlock):
            pieces.append("")
        else:
            pieces[-1] += block.text
    if example.metadata["task"] != "storytelling":
        return pieces[-1].strip(), []
    return pieces[0].strip(), [piece.partition(":")[2].strip() for piece in pieces[1:]]


def _panels(example: Example, captions: Sequence[str]) -> Iterator[str]:
    for index, scene in enumerate(example.metadata["scenes"]):
        uri = drawing_uri(draw(scene_from_json(scene), SHOWN_SIZE))
        caption = ""
        if captions:
            told = text(captions[index]) or '<span class="asked">which caption?</span>'
            caption = f"<figcaption>{told}</figcaption>"
        yield (
            f'<figure><img src="{uri}" alt="picture {index + 1}" width="{SHOWN_SIZE}" '
            f'height="{SHOWN_SIZE}">{caption}</figure>'
        )


def _seen_uris(example: Example) -> list[str]:
    """The pictures as the models got them, once per card; strips refer to them by style."""
    return [png_uri(load_image(image).quantize(96)) for image in example.images]


def _reference(example: Example) -> str:
    others = "".join(f"<li>{text(reference)}</li>" for reference in example.references[1:])
    return (
        f'<div class="reference"><b>Reference</b> {text(example.references[0])} '
        f"<details><summary>{len(example.references) - 1} other phrasings</summary>"
        f"<ul>{others}</ul></details></div>"
    )


def _answer(part: Answered, number: int, side: int, *, right: bool) -> str:
    prediction: Prediction = part.predictions[side][number]
    seen = part.looks[side][number]
    kind, heading = (("first", "Each picture alone"), ("second", "Guided by each other"))[side]
    chip, said = ("right", "✓ right") if right else ("wrong", "✗ wrong")
    mark = f'<span class="chip {chip}">{said}</span>'
    strips = _strip("Where it looked in each picture", seen.own, shared_scale=False)
    if seen.from_others:
        strips += _strip(
            "What the other pictures looked for in it", seen.from_others, shared_scale=True
        )
    return (
        f'<section class="answer {kind}"><h3>{heading} {mark}</h3>'
        f'<p class="said">{text(prediction.text) or "(no answer)"}</p>{strips}</section>'
    )


def _strip(title: str, grids: Sequence[Grid], *, shared_scale: bool) -> str:
    """A row of small pictures under veils; one scale for the row, or one for each picture."""
    top = max((float(grid.max()) for grid in grids), default=0.0)
    pictures = "".join(
        f'<span style="background-image:var(--p{index})"><img alt="" '
        f'src="{fade_uri(grid, top if shared_scale else float(grid.max()))}"></span>'
        for index, grid in enumerate(grids)
    )
    return f'<p class="looked">{text(title)}</p><div class="strip">{pictures}</div>'
