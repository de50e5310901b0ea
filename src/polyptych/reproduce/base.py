"""The base model of a study: it sees and speaks before any variant starts from it.

The methods start from trained models, so a small base has to be trained, too, in BLIP-2's order:

1. *representation*: the visual tokens of a picture must tell what is in it. BLIP-2 contrasts images
   with texts; a drawn picture knows its truth, so a linear readout of the visual tokens is asked
   for it directly. What is asked is the study's choice: everything in the picture
   (:class:`FactReadout`), or what captions say only. The readout is thrown away.
2. *instruction*: next-token loss on the tasks, all pictures read alone.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm, normalize

from polyptych.models.blip2 import PolyptychBlip2ForConditionalGeneration
from polyptych.schema import Example, ImageRef
from polyptych.storybook.scenes import (
    Scene,
    acts_in,
    categories_in,
    colored_kinds_in,
    kinds_in,
    persons_in,
    scene_from_json,
)
from polyptych.storybook.vocabulary import (
    ACTS,
    CATEGORIES,
    CLOTHES,
    COLORS,
    HAIR_COLORS,
    HATS,
    KINDS,
    PLACES,
)
from polyptych.training.cpu_attention import Float32Attention
from polyptych.vision.feature_cache import FeatureCache

_FACTS: tuple[tuple[str, Any], ...] = (
    *(("kind", kind) for kind in KINDS),
    *(("colored kind", (kind, color)) for kind in KINDS for color in COLORS),
    *(("category", category) for category in CATEGORIES),
    *(("place", place) for place in PLACES),
    *(("act", act) for act in ACTS),
    *(
        ("person", (color, hat, clothes))
        for color in HAIR_COLORS
        for hat in HATS
        for clothes in COLORS
    ),
    *(("dress", clothes) for clothes in CLOTHES),
)
FACTS = {fact: index for index, fact in enumerate(_FACTS)}
"""Everything a picture may be asked: (type, value) -> column."""


def facts_of(scene: Scene) -> list[int]:
    """Columns of what is true of a scene."""
    persons = persons_in(scene)
    true = [
        *(("kind", kind) for kind in kinds_in(scene)),
        *(("colored kind", pair) for pair in colored_kinds_in(scene)),
        *(("category", category) for category in categories_in(scene)),
        ("place", scene.place),
        *(("act", act) for act in acts_in(scene)),
        *(("person", (p.hair_color, p.hat, p.clothes_color)) for p in persons),
        *(("dress", p.clothes) for p in persons),
    ]
    return [FACTS[fact] for fact in true if fact in FACTS]


class Readout(nn.Module, ABC):
    """Asks visual tokens what is in their picture."""

    @abstractmethod
    def loss(self, tokens: Float[Tensor, "n Q D_llm"], truths: Sequence[Any]) -> Tensor:
        """Sum over the questions, mean over the pictures; ``truths`` as the pictures came."""


class Hints(nn.Module, ABC):
    """Tells queries what to look for, while the connector learns; thrown away with the readout.

    A Q-Former of which one thing only is ever asked cannot look for another: no query, however
    trained, makes its frozen layers show the third thing of a picture (measured: 6 % right). One
    that has learned from millions of captions, in which people name different things, can.
    """

    @abstractmethod
    def draw(
        self, truths: Sequence[Any], rng: random.Random
    ) -> tuple[Float[Tensor, "n D_q"], Sequence[Any]]:
        """A hint for each picture, to be added to all its queries, and what it asks for."""

    @abstractmethod
    def loss(
        self, readout: Any, tokens: Float[Tensor, "n Q D_llm"], wanted: Sequence[Any]
    ) -> Tensor:
        """Mean over the pictures: whether the tokens show what was asked for."""


class FixedDirections(nn.Module):
    """Logits of answers, each along a direction that is fixed by chance.

    A readout that learns its directions also finds answers where the tokens hardly vary, and a
    language model that starts from nothing does not look there: it learned places and no things.
    With fixed random directions everything is said equally loudly, and is learned sooner, too.

    Args:
        answers: How many.
        width: Of what is read; hundreds of directions in it are nearly orthogonal.
        bias: Where each answer's bias starts.
    """

    directions: Tensor

    def __init__(self, answers: int, width: int, bias: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("directions", normalize(torch.randn(answers, width), dim=1))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.full((answers,), bias))

    def forward(self, states: Float[Tensor, "... D"]) -> Float[Tensor, "... answers"]:
        """``scale <LN(state), direction> + bias``."""
        normal = layer_norm(states, states.shape[-1:])
        return self.scale * (normal @ self.directions.T) + self.bias


class FactReadout(Readout):
    """All of :data:`FACTS` of all tokens together, each true or false."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        # Some 25 of hundreds of facts are true of a picture: each is unlikely at first.
        self.facts = FixedDirections(len(FACTS), tokens * width, bias=-4.0)

    def loss(self, tokens: Float[Tensor, "n Q D_llm"], truths: Sequence[Any]) -> Tensor:
        """Binary cross-entropy; truths are scenes as JSON."""
        target = torch.zeros(len(truths), len(FACTS))
        for row, scene in enumerate(truths):
            target[row, facts_of(scene_from_json(dict(scene)))] = 1.0
        logits = self.facts(tokens.flatten(1))
        return binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(truths)


def teach_to_see(
    model: PolyptychBlip2ForConditionalGeneration,
    pictures: Sequence[tuple[ImageRef, Any]],
    features: FeatureCache,
    make_readout: Callable[[int, int], Readout],
    *,
    make_hints: Callable[[int], Hints] | None = None,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> float:
    """Stage 1: train the connector by a linear readout of its visual tokens.

    Args:
        model: The base; only its connector is changed.
        pictures: Training pictures, each with the truth that the readout asks for.
        features: Cached features of the pictures.
        make_readout: Visual tokens Q per picture and their width -> what is asked.
        make_hints: Width of the queries -> what half of the pictures are asked for instead.
        steps: Optimizer steps.
        batch_size: Pictures per step.
        learning_rate: Peak; warm-up over a tenth, then cosine.
        seed: Decides the order and the readout's start.

    Returns:
        Mean loss of the last tenth of the steps.
    """
    torch.manual_seed(seed)
    connector, rng = model.connector, random.Random(seed)
    for parameter in connector.parameters():
        # 0.02 is made for a width of 768; here it would bury the picture under the queries.
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    nn.init.normal_(connector.qformer.query_tokens)
    readout = make_readout(model.config.num_query_tokens, model.language_width)
    hints = make_hints(connector.qformer.query_tokens.shape[-1]) if make_hints else None
    parameters = [*connector.parameters(), *readout.parameters()]
    parameters += list(hints.parameters()) if hints else []
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / (steps / 10)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        ),
    )
    model.train()
    losses = []
    for _ in range(steps):
        chosen = rng.sample(pictures, batch_size)
        seen, truths = features.get([ref for ref, _ in chosen]), [truth for _, truth in chosen]
        plain = batch_size // 2 if hints else batch_size
        with torch.autocast("cpu", torch.bfloat16), Float32Attention():
            tokens = _tokens(model, seen[:plain])
        loss = readout.loss(tokens.float(), truths[:plain])
        if hints:
            added, wanted = hints.draw(truths[plain:], rng)
            with torch.autocast("cpu", torch.bfloat16), Float32Attention():
                tokens = hinted_tokens(model, seen[plain:], added)
            loss = loss + hints.loss(readout, tokens.float(), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def _tokens(model: PolyptychBlip2ForConditionalGeneration, seen: Tensor) -> Tensor:
    """Visual tokens (n, Q, D_llm) of pictures, each an example of its own."""
    counts = torch.ones(len(seen), dtype=torch.long)
    output = model.encode_images(image_features=seen, image_counts=counts)
    return output.visual_tokens.unflatten(0, (len(seen), -1))


def hinted_tokens(
    model: PolyptychBlip2ForConditionalGeneration,
    seen: Float[Tensor, "n P D_v"],
    hints: Float[Tensor, "n D_q"],
) -> Float[Tensor, "n Q D_llm"]:
    """Visual tokens of pictures whose queries are told something, as by VPG-C's guidance."""
    connector = model.connector
    qformer = connector.qformer
    queries = qformer.query_tokens + hints[:, None]
    embedded = qformer.dropout(qformer.embedding_norm(queries))
    return connector.projection(qformer(embedded, qformer.image_key_values(seen)))


def pictures_of(examples: Sequence[Example]) -> list[tuple[ImageRef, Mapping[str, Any]]]:
    """Every picture of the examples with its scene."""
    return [
        (ref, scene)
        for example in examples
        for ref, scene in zip(example.images, example.metadata["scenes"], strict=True)
    ]
