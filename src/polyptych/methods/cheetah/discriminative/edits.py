"""Step 2, edit description: what is to be changed about an ignored object.

Four kinds: modify an attribute, swap the object, delete it, add a new one on free background. Here
an instruction-tuned language model writes them; those of drawn pictures are in
:mod:`.storybook_edits`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from polyptych.methods.cheetah.discriminative import (
    DroppedError,
    Edit,
    EditKind,
    Region,
    SourcePicture,
)
from polyptych.methods.cheetah.discriminative.local_models import ask


@runtime_checkable
class EditWriter(Protocol):
    """Writes an edit of a given kind that fits a picture."""

    @property
    def name(self) -> str:
        """For the records."""

    def __call__(
        self, picture: SourcePicture, region: Region, kind: EditKind, rng: random.Random
    ) -> Edit:
        """The edit of ``region``; raises `DroppedError` where none fits."""


EDIT_PROMPT = (
    "You plan small edits of photographs. You get the caption of a photograph, one region of it "
    "and the kind of edit. Think of one edit of that kind that fits the scene and that anybody "
    "would notice when the photographs lie side by side.\n"
    "Kinds: modify = the object stays, one visible property of it changes; swap = another object "
    "of similar size takes its place; delete = the object is gone; add = a new object stands in "
    "the free region.\n"
    'Answer with one line of JSON and nothing else: {"kind": "<the kind>", "edit": "<the edit as '
    'a short instruction>", "shows": "<what the region shows after the edit, without reference '
    'to what was there before>"}\n\n'
    "Caption: a man reads on a bench in the park\n"
    "Region: hat, at the top in the middle, 2 % of the photograph\n"
    "Kind: modify\n"
    'Answer: {"kind": "modify", "edit": "turn the hat bright yellow", "shows": "a man\'s head '
    'with a bright yellow hat"}\n\n'
    "Caption: {caption}\n"
    "Region: {region}\n"
    "Kind: {kind}\n"
    "Answer:"
)
"""What the language model is told; the three last names in braces are filled in."""

_LONGEST_REPLY = 200  # characters of each text in it


@dataclass(frozen=True)
class LanguageModelEdits:
    """Edits by a ``text-generation`` pipeline of transformers, decoded greedily.

    Args:
        pipeline: ``prompt -> [{"generated_text": reply}]``.
        prompt: See :data:`EDIT_PROMPT`.
        name: What wrote the edits, for the records.
    """

    pipeline: Any
    prompt: str = EDIT_PROMPT
    name: str = "text-generation"

    def __call__(
        self, picture: SourcePicture, region: Region, kind: EditKind, rng: random.Random
    ) -> Edit:
        """Ask once; a reply that is not exactly as asked for is dropped."""
        values = {"caption": picture.caption, "region": describe_region(region), "kind": kind}
        prompt = self.prompt
        for field_name, value in values.items():
            prompt = prompt.replace(f"{{{field_name}}}", value)
        reply = parse_reply(ask(self.pipeline, prompt), kind)
        return Edit(kind, reply["edit"], reply["shows"], region)


def describe_region(region: Region) -> str:
    """Label, position and size in words: "cup, at the bottom on the left, 4 % of ..."."""
    height, width = region.mask.shape
    left, top, right, bottom = region.box
    rows = ("at the top", "in the middle", "at the bottom")
    columns = ("on the left", "in the center", "on the right")
    row = rows[min(2, int(3 * (top + bottom) / 2 / height))]
    column = columns[min(2, int(3 * (left + right) / 2 / width))]
    share = max(1, round(100 * float(region.mask.mean())))
    return f"{region.label or 'object'}, {row} {column}, {share} % of the photograph"


def parse_reply(reply: str, kind: EditKind) -> Mapping[str, str]:
    """The fields of a reply, which is one JSON object in its first line.

    Raises:
        DroppedError: For anything else, or another kind than asked for.
    """
    line = next(iter(reply.strip().splitlines()), "")
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DroppedError("unparsable edit", f"no JSON: {line[:80]!r}") from None
    if not isinstance(fields, dict) or fields.keys() != {"kind", "edit", "shows"}:
        raise DroppedError("unparsable edit", f"other fields than asked for: {line[:80]!r}")
    if fields["kind"] != kind:
        raise DroppedError("unparsable edit", f"kind {fields['kind']!r}, asked for {kind!r}")
    for name in ("edit", "shows"):
        text = fields[name]
        if not isinstance(text, str) or not 0 < len(text.strip()) <= _LONGEST_REPLY:
            raise DroppedError(
                "unparsable edit", f"{name!r} is no text of 1 to {_LONGEST_REPLY} letters"
            )
    return {name: text.strip() for name, text in fields.items()}
