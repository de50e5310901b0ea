"""Step 4, the text target: the edit description rewritten as a sentence, and ways to ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from polyptych.errors import PolyptychError
from polyptych.methods.cheetah.discriminative import DroppedError, Edit
from polyptych.methods.cheetah.discriminative.local_models import ask
from polyptych.storybook.tasks.change_captioning import captions_for

INSTRUCTIONS = (
    "Describe the difference between the two pictures.",
    "What is different in the second picture?",
    "Compare the pictures and name the detail that was changed.",
    "Which detail of the first picture was edited in the second one?",
    "The second picture is an edited copy of the first. What was edited?",
    "Tell the two pictures apart in one sentence.",
    "What has changed?",
    "Look at both pictures closely: what distinguishes them?",
)
"""Wordings of the instruction; each item gets one by chance."""


@runtime_checkable
class TargetWriter(Protocol):
    """Rewrites an edit as sentences that say the difference."""

    @property
    def name(self) -> str:
        """For the records."""

    def __call__(self, edit: Edit) -> tuple[str, ...]:
        """All accepted sentences, at least one."""


@dataclass(frozen=True)
class StorybookTargets:
    """The captions of Storybook's ``change_captioning`` for the edit."""

    name: str = "storybook captions"

    def __call__(self, edit: Edit) -> tuple[str, ...]:
        """Several wordings of the same change."""
        if not edit.change:
            raise PolyptychError("only edits of drawn scenes have Storybook's captions")
        return captions_for(edit.change)


TARGET_PROMPT = (
    "An instruction was carried out on a photograph. Rewrite the instruction as one short sentence "
    "that tells what is different in the new photograph. Answer with the sentence and nothing "
    "else.\n\n"
    "Instruction: turn the hat bright yellow\n"
    "Sentence: The hat is bright yellow now.\n\n"
    "Instruction: {edit}\n"
    "Sentence:"
)
"""What the language model is told; ``{edit}`` is filled in."""

_LONGEST = 200  # characters of a target


@dataclass(frozen=True)
class LanguageModelTargets:
    """One sentence by a ``text-generation`` pipeline of transformers, decoded greedily.

    Args:
        pipeline: As for `LanguageModelEdits`, best the same one.
        prompt: See :data:`TARGET_PROMPT`.
        name: What wrote it, for the records.
    """

    pipeline: Any
    prompt: str = TARGET_PROMPT
    name: str = "text-generation"

    def __call__(self, edit: Edit) -> tuple[str, ...]:
        """The first line of the reply, which has to be one sentence."""
        reply = ask(self.pipeline, self.prompt.replace("{edit}", edit.description), 60)
        sentence = next(iter(reply.strip().splitlines()), "").strip().strip('"')
        if not sentence.endswith((".", "!")) or len(sentence) > _LONGEST:
            raise DroppedError("unparsable target", f"no sentence: {sentence[:80]!r}")
        return (sentence,)
