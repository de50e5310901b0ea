"""VPG-C (Cheetah) on the visual tokens of any base: the same images are read again, when asked.

arXiv 2308.04152, equations of section 2.2, where no Q-Former is there to read an image again: the
second look goes to the image's own visual tokens, which every base keeps.

    g   = W_g norm(h_last)                               the prompt's state before layer k
    r_j = W_r attend(W_q norm(X_j) + g; X_j)             X_j: the visual tokens of image j; W_r = 0
    h_j = h_j + r_j
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.adapters.attention import CrossAttention, fitting_width
from polyptych.adapters.method import BaseSizes, check_width
from polyptych.adapters.numbering import FlatPrefill
from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.errors import PolyptychError
from polyptych.methods.camml.shots import pad_ragged
from polyptych.methods.cheetah.layer_hook import check_injection_layer
from polyptych.methods.cheetah.vpgc import last_prompt_state


@dataclass(frozen=True, slots=True)
class VpgC:
    """VPG-C before one layer of the decoder."""

    name: ClassVar[str] = "vpgc"
    seam: ClassVar[str] = "layer"

    width: int | None = None
    """Channels of the second look; None: by the base's width."""
    layer: int | None = None
    """k; None: half of the layers, or what the family says."""

    def fitted(self, base: BaseSizes) -> VpgC:
        """With every size filled in.

        Raises:
            PolyptychError: If the base has no such layer, or still adds visual features there.
        """
        layer = base.default_layer if self.layer is None else self.layer
        layer = check_injection_layer(layer, base.num_layers)
        if layer < base.first_free_layer:
            raise PolyptychError(
                f"vpgc: layer {layer}, but the base itself adds visual features before layer "
                f"{base.first_free_layer}"
            )
        chosen = replace(self, width=self.width or fitting_width(base.hidden_size), layer=layer)
        check_width(self.name, chosen.width)
        return chosen

    def build(self, base: BaseSizes) -> nn.Module:
        """The module of a fitted method."""
        assert self.width is not None
        return Reattention(base.hidden_size, self.width)


class Reattention(nn.Module):
    """Each visual token looks at its image again, guided by the prompt's state.

    Args:
        hidden_size: D_llm.
        width: Channels of the second look.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.guidance_norm, self.token_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.guidance_projection = nn.Linear(hidden_size, width)  # W_g
        self.narrow = nn.Linear(hidden_size, width)  # W_q
        self.attention = CrossAttention(width)
        self.residual_projection = ZeroLinear(width, hidden_size)  # W_r

    def forward(
        self, hidden: Float[Tensor, "C T D_llm"], prefill: FlatPrefill
    ) -> Float[Tensor, "N D_llm"]:
        """What each visual token has missed, given the states that enter layer k."""
        dtype = self.narrow.weight.dtype
        state = self.guidance_norm(last_prompt_state(hidden, prefill).to(dtype))
        guidance = self.guidance_projection(state)
        tokens = self.narrow(self.token_norm(prefill.visual_tokens.to(dtype)))
        padded, mask = pad_ragged(tokens, prefill.tokens_per_image)
        asked = padded + guidance[prefill.example][:, None]
        details = self.attention(asked, padded, None if mask is None else mask[:, None])
        details = details.flatten(0, 1) if mask is None else details[mask]
        return self.residual_projection(details)
