"""A drawn set in AMBER's layout: pictures to describe, and questions of yes or no about them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from polyptych.evaluation.samples.album import persons, picture, scenes
from polyptych.evaluation.samples.writing import write_image, write_json, write_text
from polyptych.evaluation.tasks import amber
from polyptych.storybook.graph import colored_kinds_in, kinds_in
from polyptych.storybook.tasks.phrasing import with_article
from polyptych.storybook.vocabulary import COLORS, KINDS, PERSON

COUNT = 12
LIKELY = 3
"""Objects that are not there, of each picture."""
REQUEST = "Describe this image."


def sample_amber(root: Path) -> None:
    """Twelve descriptions; questions about what is absent, colors and the number of persons."""
    queries: list[dict[str, Any]] = []
    truths: list[dict[str, Any]] = []

    def add(number: int, query: str, kind: str, truth: Any, **more: Any) -> None:
        identity, image = len(queries) + 1, f"AMBER_{number + 1}.jpg"
        queries.append({"id": identity, "image": image, "query": query})
        truths.append({"id": identity, "type": kind, "truth": truth, **more})

    for number in range(COUNT):
        kinds = kinds_in(scenes()[number])
        absent = random.Random(f"amber/{number}").sample(sorted(set(KINDS) - kinds), LIKELY)
        objects = sorted(kinds) + [PERSON] * bool(persons(number))
        add(number, REQUEST, amber.GENERATIVE, objects, hallu=absent)
        write_image(root / amber.IMAGES[0] / f"AMBER_{number + 1}.jpg", picture(number))
    for number in range(COUNT):
        _ask(number, truths[number]["hallu"][0], add)

    generative = [q for q, t in zip(queries, truths, strict=True) if t["type"] == amber.GENERATIVE]
    write_json(root / amber.QUERIES["amber"], queries)
    write_json(root / amber.QUERIES["amber_generative"], generative)
    write_json(root / amber.QUERIES["amber_discriminative"], queries[len(generative) :])
    write_json(root / amber.ANNOTATIONS, truths)
    associated = {**{kind: [] for kind in KINDS}, PERSON: ["man", "woman", "girl", "boy", "people"]}
    write_json(root / amber.ASSOCIATED, associated)
    write_text(root / amber.SAFE_WORDS, "light\nsign\n")


def _ask(number: int, absent: str, add: Any) -> None:
    """What is not there, one color that is right and one that is not, how many persons."""
    rng = random.Random(f"amber/questions/{number}")
    kind, color = rng.choice(sorted(colored_kinds_in(scenes()[number])))
    others = {c for k, c in colored_kinds_in(scenes()[number]) if k == kind}
    wrong = rng.choice(sorted(set(COLORS) - others))
    add(
        number,
        f"Is there {with_article(absent)} in this image?",
        "discriminative-hallucination",
        "no",
    )
    for said, truth in ((color, "yes"), (wrong, "no")):
        query = f"Is the {kind} {said} in this image?"
        add(number, query, "discriminative-attribute-state", truth)
    count = persons(number) + number % 2
    query = f"Are there exactly {count} persons in this image?"
    add(number, query, "discriminative-attribute-number", "no" if number % 2 else "yes")
