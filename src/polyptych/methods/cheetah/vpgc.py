"""VPG-C: the language model's middle layer tells the visual module what it missed.

arXiv 2308.04152, section 2. A visual prompt generator (VPG: a Q-Former, or one linear layer) is
trained on captions and so drops what captions leave out. Half-way through its layers the language
model already knows what the instruction asks for. VPG-C reads that from the last prompt token,
sends it back as a guidance to the visual prompt generator, which looks at the same images a second
time, and adds what it sees to the hidden states of each image's visual tokens:

    g   = W_g h_last                                     (guidance generation)
    r_j = W_r VPG(q + g; image j)                        (guided visual extraction)
    h_j = h_j + r_j                                      (reintegration)

Only W_g, W_r and the queries q are trained. W_r starts at zero: at first, nothing changes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.connectors.qformer import QFormer
from polyptych.connectors.zero_linear import ZeroLinear
from polyptych.errors import PolyptychError
from polyptych.language.prefill import Prefill


def last_prompt_state(
    hidden: Float[Tensor, "C T D_llm"], prefill: Prefill
) -> Float[Tensor, "B D_llm"]:
    """The raw residual stream at each example's last prompt token.

    Raises:
        PolyptychError: If nobody said where the prompts end.
    """
    if prefill.last_prompt is None:
        raise PolyptychError(
            f"VPG-C is guided by the last prompt token; {len(prefill.image_counts)} examples "
            "came without last_prompt"
        )
    rows = prefill.first_copies(hidden)
    return rows[torch.arange(len(rows), device=rows.device), prefill.last_prompt]


class VPGC(nn.Module):
    """VPG-C over a Q-Former: its frozen layers read every image again, with guided queries.

    The Q-Former belongs to the connector and is handed in, so that its weights exist once.

    Args:
        language_width: D_llm of the decoder's hidden states.
        qformer_width: D_q.
        num_query_tokens: Queries Q of the second look; as many as visual tokens per image.
    """

    def __init__(self, language_width: int, qformer_width: int, num_query_tokens: int) -> None:
        super().__init__()
        # The released code starts both linears at zero, hence only W_r learns in the first step.
        self.guidance_projection = ZeroLinear(language_width, qformer_width)  # W_g
        self.query_tokens = nn.Parameter(torch.zeros(1, num_query_tokens, qformer_width))
        self.residual_projection = ZeroLinear(qformer_width, language_width)  # W_r

    def residual_details(
        self, hidden: Float[Tensor, "C T D_llm"], prefill: Prefill, qformer: QFormer
    ) -> Float[Tensor, "N D_llm"]:
        """What each visual token has missed of its image, given what the prompt asks for.

        Keys and values of the images come from the first look where it kept them: the weights and
        the features are the same.
        """
        dtype = self.query_tokens.dtype
        guidance_hidden = last_prompt_state(hidden, prefill).to(dtype)
        guidance = self.guidance_projection(guidance_hidden)
        images = prefill.image_key_values
        if images is None:
            images = qformer.image_key_values(prefill.image_features.to(dtype))
        queries = self.query_tokens + guidance[prefill.example][:, None]
        record: dict[str, Tensor] | None = None if prefill.record is None else {}
        embedded = qformer.dropout(qformer.embedding_norm(queries))
        details = qformer(embedded, images, record=record)
        residual = self.residual_projection(details)
        if prefill.record is not None and record is not None:
            record |= {"guidance_hidden": guidance_hidden, "guidance": guidance}
            record |= {"query_embeds": queries, "embeddings": embedded, "residual": residual}
            prefill.record.update({f"vpgc.{name}": value for name, value in record.items()})
        return residual.flatten(0, 1)
