"""What the published SIMA code does with the words of its critic, quirks and all.

Pure functions; everything that they get wrong is told in the golden data's notes: a bare ``1``
counts, an unclosed ``[[1`` counts, and a good verdict before a stray ``[[`` is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Winner = Literal["sampled", "greedy"]

_WINNERS: dict[str, Winner] = {"1": "sampled", "2": "greedy"}


def parsed_verdict(text: str) -> str:
    """What is compared with ``1`` and ``2``: behind the last ``[[``, before the next ``]]``.

    ``"... [[2]]." -> "2"``; a text without brackets stays whole.
    """
    return text.split("[[")[-1].split("]]")[0]


def parse_verdict(text: str) -> Winner | None:
    """Whose answer a critic's text prefers, response 1 being the sampled one; None: dropped."""
    return _WINNERS.get(parsed_verdict(text))


def recover_question(prompt: str) -> str:
    """The question inside a filled critic prompt; a nested ``Question: [`` spoils it."""
    return prompt.split("Question: [")[-1].split("]\n")[0]


def preference_records(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Preference records of one line of a critic's result file: one, or none without a verdict."""
    winner = parse_verdict(line["rank_result"])
    if winner is None:
        return []
    sampled, greedy = line["temperature_decodes_1"], line["greedy_decodes"]
    chosen, rejected = (sampled, greedy) if winner == "sampled" else (greedy, sampled)
    human = {"from": "human", "value": f"<image>\n{recover_question(line['question'])}"}
    return [
        {
            "id": line["id"].split(".")[0],
            "image": line["id"],
            "conversations": [human, {"from": "gpt", "value": chosen}],
            "rejected_conversations": [human, {"from": "gpt", "value": rejected}],
        }
    ]
