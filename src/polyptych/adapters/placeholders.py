"""A token id that stands for context tokens: in the vocabulary, and otherwise never used."""

from __future__ import annotations

import re
from typing import Any

from polyptych.errors import PolyptychError

CONTEXT_TOKEN = "<polyptych_context>"
"""What the placeholder is called where the tokenizer has room for another token."""

_SPARE = re.compile(r"<\|?(reserved|unused|extra)[\w ]*\d+\|?>|\[unused\d+\]")


def context_placeholder(model: Any, processor: Any) -> int:
    """The id of context tokens on this base.

    A row of the table of embeddings without a token, which then gets one; else a token that the
    base's makers have reserved and left unused. Embeddings are never resized: the base stays as it
    is.

    Raises:
        PolyptychError: If there is no processor to ask, or no such id.
    """
    if processor is None:
        raise PolyptychError(
            "context tokens need a placeholder in the vocabulary; give the processor"
        )
    tokenizer = processor.tokenizer
    known = tokenizer.convert_tokens_to_ids(CONTEXT_TOKEN)
    if known is not None and known != tokenizer.unk_token_id:
        return known
    rows, words = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if words < rows:
        tokenizer.add_tokens([CONTEXT_TOKEN], special_tokens=True)
        return tokenizer.convert_tokens_to_ids(CONTEXT_TOKEN)
    spare = sorted(
        (index, token) for token, index in tokenizer.get_vocab().items() if _SPARE.fullmatch(token)
    )
    if not spare:
        raise PolyptychError(
            f"no placeholder for context tokens: {words} tokens for {rows} embeddings, and none "
            "that is reserved"
        )
    return spare[-1][0]
