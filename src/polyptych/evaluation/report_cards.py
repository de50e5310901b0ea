"""The gallery of a run's page: which items are shown, and one card for each.

An item is chosen by its own value of one metric: the best, the worst, and, where two runs are
compared, those whose value changed most. Equal values are ordered by a hash of the id, so that the
choice neither follows the file's order nor differs between runs.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from polyptych.data.images import load_image
from polyptych.data.records import IMAGE_TOKEN
from polyptych.errors import PolyptychError
from polyptych.evaluation.report import drawing_uri, text
from polyptych.evaluation.scorers import accepted_answers
from polyptych.evaluation.task import prompt_text
from polyptych.schema import Example, ImageRef

SHOWN_SIDE = 256
"""Longest side of a shown picture in pixels."""

SHOWN_PICTURES = 8
"""Pictures of one card; more are counted."""

SHOWN_REFERENCES = 6
_DRAWING_COLORS = 4096
"""Pictures of fewer colors than this, of 65,536 pixels, are drawings and kept as PNG."""

Kind = str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one system said."""

    system: str
    text: str
    value: float | None
    """Its own value of the metric that the gallery is ordered by."""


def choose(values: Mapping[str, float], count: int) -> dict[str, Kind]:
    """Ids of the ``best`` and the ``worst`` items; none where all are equal.

    Args:
        values: Id to value, more is better.
        count: Of each kind, at most half of all items.
    """
    if not values or min(values.values()) == max(values.values()):
        return {}
    ordered = sorted(values, key=lambda identity: (-values[identity], _shuffled(identity)))
    count = min(count, len(ordered) // 2)
    top, bottom = max(values.values()), min(values.values())
    best = [identity for identity in ordered[:count] if values[identity] > bottom]
    worst = [identity for identity in ordered[::-1][:count] if values[identity] < top]
    return {**dict.fromkeys(best, "best"), **dict.fromkeys(worst, "worst")}


def some_of(ids: Iterable[str], count: int) -> list[str]:
    """Some ids in an order that does not follow theirs."""
    return sorted(ids, key=_shuffled)[:count]


def choose_changed(
    first: Mapping[str, float], second: Mapping[str, float], count: int
) -> dict[str, Kind]:
    """Ids that ``gained`` most from the first to the second, and those that ``lost`` most."""
    change = {i: second[i] - first[i] for i in first if i in second and second[i] != first[i]}
    ordered = sorted(change, key=lambda identity: (-abs(change[identity]), _shuffled(identity)))
    gained = [identity for identity in ordered if change[identity] > 0][:count]
    lost = [identity for identity in ordered if change[identity] < 0][:count]
    return {**dict.fromkeys(gained, "gained"), **dict.fromkeys(lost, "lost")}


def _shuffled(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).digest()


def card(example: Example, answers: Sequence[Answer]) -> str:
    """One item: question, pictures, what is accepted, and what each system said."""
    return (
        f'<p class="question"><small>{text(example.id)}</small>{_question(example)}</p>'
        f"{_panels(example.images)}{_reference(example)}"
        f'<div class="answers{" one" if len(answers) == 1 else ""}">'
        + "".join(_answer(answer, number) for number, answer in enumerate(answers))
        + "</div>"
    )


def _question(example: Example) -> str:
    """The whole prompt; the n-th picture stands as ``[n]`` where there are several."""
    pieces = prompt_text(example.prompt).split(IMAGE_TOKEN)
    several = len(pieces) > 2
    written = text(pieces[0]) + "".join(
        (f'<span class="place">[{number}]</span>' if several else "") + text(piece)
        for number, piece in enumerate(pieces[1:], start=1)
    )
    return f"<span>{written.strip()}</span>"


def _panels(images: Sequence[ImageRef]) -> str:
    if not images:
        return ""
    figures = "".join(
        f"<figure>{_picture(image, number)}</figure>"
        for number, image in enumerate(images[:SHOWN_PICTURES], start=1)
    )
    more = len(images) - SHOWN_PICTURES
    rest = f"<figure><small>and {more} more</small></figure>" if more > 0 else ""
    return f'<div class="panels">{figures}{rest}</div>'


def _picture(ref: ImageRef, number: int) -> str:
    try:
        image = load_image(ref)
    except PolyptychError as error:
        return f"<small>picture {number}: {text(error)}</small>"
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return (
        f'<img src="{picture_uri(image)}" alt="picture {number}" width="{image.width}" '
        f'height="{image.height}">'
    )


def picture_uri(image: Image.Image) -> str:
    """Inline PNG of a drawing, inline JPEG of a photo."""
    if image.getcolors(_DRAWING_COLORS) is not None:
        return drawing_uri(image)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _reference(example: Example) -> str:
    accepted = list(dict.fromkeys(accepted_answers(example)))
    parts = []
    if example.choices:
        listed = "".join(f"<li>{text(choice)}</li>" for choice in example.choices)
        parts.append(f'<details><summary>{len(example.choices)} options</summary><ol type="A">')
        parts.append(f"{listed}</ol></details>")
    if accepted:
        parts.insert(0, f"<b>Reference</b> {text(accepted[0])} ")
    if len(accepted) > 1:
        others = "".join(f"<li>{text(one)}</li>" for one in accepted[1 : 1 + SHOWN_REFERENCES])
        parts.append(f"<details><summary>{len(accepted) - 1} other answers</summary>")
        parts.append(f"<ul>{others}</ul></details>")
    return f'<div class="reference">{"".join(parts)}</div>'


def _answer(answer: Answer, number: int) -> str:
    kind = ("first", "second")[min(number, 1)]
    return (
        f'<section class="answer {kind}"><h3>{text(answer.system)} {_chip(answer.value)}</h3>'
        f'<p class="said">{text(answer.text) or "(no answer)"}</p></section>'
    )


def _chip(value: float | None) -> str:
    if value is None:
        return '<span class="chip">not scored</span>'
    if value in (0, 1):
        kind, said = (("wrong", "✗ 0"), ("right", "✓ 1"))[int(value)]
        return f'<span class="chip {kind}">{said}</span>'
    return f'<span class="chip middle">{value:.2f}</span>'


def with_kinds(
    chosen: Mapping[str, Kind], examples: Mapping[str, Example], order: Iterable[Kind]
) -> list[tuple[Kind, Example]]:
    """The chosen examples by kind, in the order of ``order``."""
    return [
        (kind, examples[identity])
        for kind in order
        for identity, own in chosen.items()
        if own == kind and identity in examples
    ]
