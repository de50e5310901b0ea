"""What a method is to a base: a few sizes, one module, and the seam where it acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from polyptych.adapters.attention import HEAD_WIDTH
from polyptych.adapters.families import family_of
from polyptych.errors import PolyptychError

Seam = Literal["guidance", "context", "layer"]

SEAM_ORDER: tuple[Seam, ...] = ("guidance", "context", "layer")
"""The order in which methods act, whatever the order they are named in."""


@dataclass(frozen=True, slots=True)
class BaseSizes:
    """What a method may know of its base."""

    hidden_size: int
    """D_llm."""
    num_layers: int
    """Of the decoder."""
    default_layer: int
    """k where nobody says otherwise."""
    first_free_layer: int
    """The first layer before which the base itself adds no visual features."""

    @classmethod
    def of(cls, config: Any) -> BaseSizes:
        """By a base's config."""
        text = config.get_text_config()
        deepstack = getattr(config.vision_config, "deepstack_visual_indexes", None) or ()
        default = int(text.num_hidden_layers * family_of(config.model_type).depth)
        return cls(
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            default_layer=max(default, len(deepstack)),
            first_free_layer=len(deepstack),
        )


class Method(Protocol):
    """A frozen dataclass of sizes, saved with the weights; see ``docs/extending.md``.

    The module that it builds is called by its seam:

    - ``guidance``: ``module(prefill) -> (N, D_llm)``, added to the visual tokens;
    - ``context``: ``module(words, mask, visual_tokens, lengths, counts) -> (X, C, D_llm)``;
    - ``layer``: ``module(hidden, prefill) -> (N, D_llm)``, added before decoder layer ``layer``.
    """

    name: ClassVar[str]
    seam: ClassVar[Any]

    def fitted(self, base: BaseSizes) -> Any:
        """The method with every size filled in."""

    def build(self, base: BaseSizes) -> nn.Module:
        """The module of a fitted method; its last linear starts at zero."""


def check_width(name: str, width: int | None) -> None:
    """Refuse a width that does not hold whole attention heads.

    Raises:
        PolyptychError: Naming both numbers.
    """
    if width is None or width < HEAD_WIDTH or width % HEAD_WIDTH:
        raise PolyptychError(f"{name}: width {width} is no multiple of {HEAD_WIDTH}")
