"""Questions that come with what an index holds near them: answers, and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation.local_model import answer
from polyptych.evaluation.report import page, text
from polyptych.evaluation.report_cards import SHOWN_SIDE, picture_uri
from polyptych.evaluation.task import GenerationSettings
from polyptych.files import write_aside
from polyptych.models.checkpoint import load_model
from polyptych.retrieval.retriever import Retriever
from polyptych.schema import Example, ImageRef
from polyptych.serving.chat import SETTINGS, Picture, question_example

TOP_K = 3
"""Shots of a question that asks for no other number: CaMML's published choice."""


@dataclass(frozen=True, slots=True)
class FoundShot:
    """A retrieved example and how near it is."""

    example: Example
    score: float
    """Cosine of question and entry."""


@dataclass(frozen=True, slots=True)
class GroundedAnswer:
    """An answer with all that led to it."""

    question: Example
    text: str
    shots: tuple[FoundShot, ...]


class ShotFinder:
    """Finds the shots of questions in one index.

    Args:
        index: Folder of the index.
        top_k: Shots of each question.
        device: Where the index's encoder computes.

    Raises:
        PolyptychError: If the index cannot be read or has fewer entries.
    """

    def __init__(self, index: str | Path, top_k: int = TOP_K, *, device: str = "cpu") -> None:
        self.retriever = Retriever(index, device=device)
        self.top_k = top_k
        entries = len(self.retriever.store)
        if not 0 < top_k <= entries:
            raise PolyptychError(f"{index}: {top_k} shots wanted, but the index has {entries}")

    def find(self, question: Example) -> tuple[FoundShot, ...]:
        """The nearest entries, best first: by the words where the encoder reads any.

        Raises:
            PolyptychError: If the question has nothing that the encoder reads.
        """
        retriever = self.retriever
        vectors, asking = retriever.encode([question], retriever.default_query())
        if not asking:
            readable = " or ".join(retriever.encoder.modalities)
            raise PolyptychError(
                f"{retriever.store.folder} is searched by {readable}, and the question has none"
            )
        hits = retriever.search(vectors, self.top_k)[0]
        return tuple(FoundShot(retriever.example(hit), hit.score) for hit in hits)


def require_shots(model: Any, processor: Any) -> None:
    """Refuse a model to which shots say nothing.

    Raises:
        PolyptychError: Naming its kind.
    """
    if not processor.context_tokens:
        raise PolyptychError(
            f"a {model.config.model_type} reads no shots; an index is for models of CaMML"
        )


def ask_with_shots(
    model_path: str | Path | None,
    index: str | Path,
    images: Sequence[Picture],
    question: str,
    *,
    top_k: int = TOP_K,
    settings: GenerationSettings = SETTINGS,
    device: str = "cpu",
) -> GroundedAnswer:
    """Load a model and answer one question with what an index holds near it.

    Raises:
        PolyptychError: As :func:`polyptych.serving.chat.ask`; for a model that reads no shots, an
            index that cannot be searched by this question, or an entry whose image is gone.
    """
    asked = question_example(images, question)
    model, processor = load_model(model_path, device=device)
    require_shots(model, processor)
    found = ShotFinder(index, top_k, device=device).find(asked)
    asked = replace(asked, shots=tuple(shot.example for shot in found))
    said = answer(model, processor, [asked], settings)[0]
    return GroundedAnswer(asked, said, found)


def listing(shots: Sequence[FoundShot]) -> str:
    """The shots in plain text: rank, nearness, id, what is said, where the pictures are."""
    lines = []
    for rank, shot in enumerate(shots, start=1):
        lines.append(f"{rank:>3}. {shot.score:.4f}  {shot.example.id}")
        for message in shot.example.messages:
            lines.append(f"       {message.role}: {' '.join(message.text.split())}")
        lines += [f"       {ref.path or 'a picture'}" for ref in shot.example.images]
    return "\n".join(lines)


def write_page(result: GroundedAnswer, system: str, path: str | Path) -> None:
    """One HTML file with question, answer and shots, all pictures inside.

    Args:
        result: What was asked and answered.
        system: What the model is called.
        path: The file.

    Raises:
        PolyptychError: For a picture that cannot be read, or a file that cannot be written.
    """
    shots = "".join(
        _card(shot.example, f"number {rank}, cosine {shot.score:.3f}", shot.example.target or "")
        for rank, shot in enumerate(result.shots, start=1)
    )
    body = (
        f"<h1>An answer and what it rests on</h1>{_card(result.question, system, result.text)}"
        f"<h2>The {len(result.shots)} retrieved examples it was given</h2>"
        f'<div class="gallery">{shots}</div>'
    )
    with write_aside(path) as file:
        file.write(page("An answer and what it rests on", body))


def _card(example: Example, who: str, said: str) -> str:
    """Pictures, what is asked, and who says what."""
    pictures = "".join(f"<figure>{_thumbnail(ref, example.id)}</figure>" for ref in example.images)
    panels = f'<div class="panels">{pictures}</div>' if pictures else ""
    asked = " ".join(message.text.strip() for message in example.prompt)
    return (
        f'<article class="card"><p class="question"><small>{text(example.id)}</small>'
        f"<span>{text(asked)}</span></p>{panels}"
        f'<div class="answers one"><section class="answer second"><h3>{text(who)}</h3>'
        f'<p class="said">{text(said) or "(no answer)"}</p></section></div></article>'
    )


def _thumbnail(ref: ImageRef, identity: str) -> str:
    image = load_image(ref, where=f"example {identity}")
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="{picture_uri(image)}" alt="picture of {text(identity)}" {size}>'
