"""The nouns of the package: what travels from raw files to scores.

    raw files -> Example -> Batch -> image features -> visual tokens -> LLM -> Prediction -> Score

Shape legend, used in every docstring and annotation:

    B  examples in the batch              N  visual tokens, flat over the batch
    I  images, flat over the batch        T  sequence length with the visual tokens in place
    P  patches (vision tokens) per image  S  shots (retrieved examples)
    Q  query tokens per image             V  vocabulary
    D_v, D_q, D_llm  widths of vision encoder, Q-Former and language model

Images stay flat with ``image_counts (B,)``: examples with different numbers of images (also none)
share a batch without padding images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

if TYPE_CHECKING:  # the nouns themselves need no torch: reading data and `--help` stay fast
    from torch import Tensor

IGNORE_INDEX = -100
"""Label of positions that do not count in the loss."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A run of text inside a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageBlock:
    """The place of the next image of the example: images are named by order, never by path."""


Block = TextBlock | ImageBlock


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and text and images in reading order."""

    role: Role
    content: tuple[Block, ...]

    @property
    def text(self) -> str:
        """The text blocks joined, without the images."""
        return "".join(block.text for block in self.content if isinstance(block, TextBlock))

    @property
    def image_count(self) -> int:
        """How many images stand in this message."""
        return sum(isinstance(block, ImageBlock) for block in self.content)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is; it is decoded only when a worker needs its pixels.

    Exactly one of ``path`` and ``data`` (an encoded file, e.g. PNG bytes) is set.
    """

    path: str | None = None
    data: bytes | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("an ImageRef has either a path or data")


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation over an ordered list of images.

    ``messages`` end with the assistant's answer where the example can be trained on. ``references``
    are all answers that scoring accepts; ``shots`` are retrieved examples (CaMML); ``metadata`` is
    free (task name, truth of a drawn scene, licence, credit).
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    shots: tuple[Example, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages up to the last answer: what a model is asked."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[:-1]
        return self.messages

    @property
    def target(self) -> str | None:
        """The text of the last answer, or None where there is none."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[-1].text
        return None


class Shots(TypedDict, total=False):
    """The part of a batch that speaks of retrieved examples; absent where no example has any.

    Shots lie flat in the order of their examples; none is padding. Either ``shot_pixel_values`` or
    ``shot_image_features`` is present where they have images. The last four fields, what a model
    has made of the shots before, stand in place of all but ``shot_counts``.
    """

    shot_counts: Tensor  # (B,) shots of each example
    shot_input_ids: Tensor  # (S, L) the shots' texts, padded on the right
    shot_attention_mask: Tensor  # (S, L)
    shot_image_counts: Tensor  # (S,) images of each shot
    shot_pixel_values: Tensor  # (I_S, 3, H, W)
    shot_image_features: Tensor  # (I_S, P, D_v) precomputed
    shot_vision_tokens: Tensor  # (N_S, W) flat over the shots
    shot_vision_lengths: Tensor  # (S,)
    shot_language_tokens: Tensor  # (M_S, W) flat over the shots
    shot_language_lengths: Tensor  # (S,)


SHOT_FIELDS = tuple(Shots.__annotations__)
"""Names of these fields."""


def shots_of(fields: Mapping[str, Any]) -> Shots | None:
    """What a batch says of shots; None where it has none."""
    found = {name: fields[name] for name in SHOT_FIELDS if fields.get(name) is not None}
    return cast("Shots", found) if found else None


class Batch(Shots, total=False):
    """What the collator makes and every model's ``forward`` takes, by these names.

    The collator owns ``image_counts`` and ``last_prompt``; nobody guesses them later. Either
    ``pixel_values`` or ``image_features`` (from the feature cache) is present when I > 0.
    """

    input_ids: Tensor  # (B, T) text ids, one placeholder id per visual token
    attention_mask: Tensor  # (B, T) 1 where a token stands
    position_ids: Tensor  # (B, T) only for layouts whose positions are not the default ones
    labels: Tensor  # (B, T) IGNORE_INDEX on prompt, visual tokens and padding
    pixel_values: Tensor  # (I, 3, H, W)
    image_features: Tensor  # (I, P, D_v) precomputed
    lower_states: Tensor  # (B, T, D_llm) what enters the decoder layer of a method, precomputed
    image_counts: Tensor  # (B,) images of each example
    last_prompt: Tensor  # (B,) index in T of the last prompt token
    qformer_input_ids: Tensor  # (B, T_q) the instruction for an instruction-aware connector
    qformer_attention_mask: Tensor  # (B, T_q)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with a better and a worse answer (SIMA)."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    images: tuple[ImageRef, ...] = ()
    shots: tuple[Example, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model said to one example, with the settings that made it."""

    id: str
    text: str
    references: tuple[str, ...] = ()
    prompt: str = ""
    seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One number over a set of predictions, named with its flavour (``cider[coco]``).

    ``per_item`` maps each prediction's id to its own value; ``None`` where the measure exists only
    for the whole set.
    """

    name: str
    value: float
    count: int
    per_item: Mapping[str, float] | None = None
