"""The critic's prompt as data: what it is told, what is fixed in it, and where the verdict stands.

The parts and their order are the paper's (task, three visual metrics, two demonstrations, the
case), the words are ours. What never changes stands before the images, so that it is read once for
all cases; ``released_order`` puts the images first, as the published code does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from polyptych.schema import Block, ImageBlock, Message, TextBlock

VERDICTS = ("1", "2")
"""How the first and the second response are named."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A worked case."""

    question: str
    ground_truth: str
    first: str
    second: str
    reason: str
    verdict: str


@dataclass(frozen=True, slots=True)
class CriticPrompt:
    """All words of a critic's prompt; ``version`` grows with every change of them."""

    name: str
    version: int
    task: str
    task_without_truth: str
    """The task where the critic sees no ground truth."""
    metrics: tuple[str, ...]
    """The three visual metrics; left out in the ablation."""
    demonstrations: tuple[Demonstration, ...] = ()
    before_case: str = "Your task:\n"
    question: str = "Question"
    ground_truth: str = "Ground truth"
    response: str = "AI generated response {}"
    closing: str = "The better AI generated response: [["
    """How an answer says its verdict, up to ``1`` or ``2``."""


FULL = CriticPrompt(
    name="full",
    version=1,
    task=(
        "Below stand a question about an image, the ground truth, and two responses that an AI "
        "wrote. Hold both responses against the ground truth and decide which of them agrees with "
        "it, and with the image, better.\n"
    ),
    task_without_truth=(
        "Below stand a question about an image and two responses that an AI wrote. Hold both "
        "responses against the image and decide which of them agrees with it better.\n"
    ),
    metrics=(
        "Judge by these three metrics:\n",
        "1. Object description: the better response mentions fewer objects that are not there, and "
        "describes those that are there without mistakes.\n",
        "2. Relationships: the better response makes fewer mistakes about where objects are and "
        "what they do to each other.\n",
        "3. Attributes: the better response makes fewer mistakes about color, number, size, shape "
        "and other properties of objects.\n",
    ),
    demonstrations=(
        Demonstration(
            question="What can you say about the number on the runner's shirt?",
            ground_truth="The runner's shirt shows the number seven, her place in the team list.",
            first="The number seven on her shirt tells that she is the seventh in the team list.",
            second=(
                "The number seven may mean that she came seventh last year, or that she likes to "
                "play board games for seven players at home."
            ),
            reason=(
                "Both see the seven. Response 1 says what it stands for and leaves it at that. "
                "Response 2 adds a race of last year and board games, which nothing supports."
            ),
            verdict="1",
        ),
        Demonstration(
            question="Describe the image in detail.",
            ground_truth=(
                "A white boat lies on the sand of a small bay. An old man in a blue coat sits "
                "beside it and mends a net. Behind them are two palms."
            ),
            first=(
                "A white boat lies on the beach. A man in a red coat stands in the boat and holds "
                "an oar; a dog waits under the palms."
            ),
            second=(
                "A white boat lies on the sand. A man in a blue coat sits beside the boat with a "
                "net in his hands, and there are palms behind him."
            ),
            reason=(
                "Response 1 invents an oar and a dog (objects), puts the man into the boat "
                "(relationships) and gives his coat a wrong color (attributes). Response 2 makes "
                "none of these mistakes."
            ),
            verdict="2",
        ),
    ),
)
"""For models with a context of some thousand tokens; about 560 words."""

BRIEF = CriticPrompt(
    name="brief",
    version=1,
    task="Which one is true of the picture, and the same as the true one?",
    task_without_truth="Which one is true of the picture?",
    metrics=(" Which has all the things, the place of each, and the color of each?",),
    before_case=" ",
    question="Question",
    ground_truth="True",
    response="{}",
    closing=" ",
)
"""For the bundled models, whose context has 256 tokens and whose words are few."""

CRITIC_PROMPTS = {prompt.name: prompt for prompt in (FULL, BRIEF)}
"""Every prompt by its name."""


@dataclass(frozen=True, slots=True)
class CriticFormat:
    """A prompt and what of it is used."""

    prompt: CriticPrompt = FULL
    metrics: bool = True
    """Whether the three visual metrics are told."""
    ground_truth: bool = True
    """Whether the critic sees the ground truth."""
    released_order: bool = False
    """Images first and line breaks of the case deleted, as published; nothing can be shared then
    between cases."""

    @property
    def fingerprint(self) -> str:
        """Name, version and twelve hex digits of every word: ``full-1-0a1b2c3d4e5f``."""
        words = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(words.encode()).hexdigest()[:12]
        return f"{self.prompt.name}-{self.prompt.version}-{digest}"

    def fixed_text(self) -> str:
        """What every case is preceded by."""
        prompt = self.prompt
        parts = [prompt.task if self.ground_truth else prompt.task_without_truth]
        if self.metrics:
            parts += prompt.metrics
        for number, shown in enumerate(prompt.demonstrations, start=1):
            parts.append(f"Example {number}:\n")
            parts.append(self.case_text(shown.question, shown.ground_truth))
            parts.append(self.answers_text(shown.first, shown.second))
            parts.append(
                f"ASSISTANT:\nThe reason: {shown.reason}\n{prompt.closing}{shown.verdict}]].\n"
            )
        return "".join([*parts, prompt.before_case])

    def case_text(self, question: str, ground_truth: str | None) -> str:
        """What both orders of a case begin with.

        Raises:
            ValueError: If a ground truth is to be shown and there is none.
        """
        lines = self._field(self.prompt.question, question)
        if self.ground_truth:
            if ground_truth is None:
                raise ValueError("no ground truth to show")
            lines += self._field(self.prompt.ground_truth, ground_truth)
        return lines

    def answers_text(self, first: str, second: str) -> str:
        """The two responses in the order in which they are judged."""
        return "".join(
            self._field(self.prompt.response.format(name), answer)
            for name, answer in zip(VERDICTS, (first, second), strict=True)
        )

    def _field(self, name: str, text: str) -> str:
        words = text.replace("\n", "") if self.released_order else " ".join(text.split())
        return f"{name}: [{words}]\n"

    def messages(
        self, question: Sequence[Block], ground_truth: str | None, first: str, second: str
    ) -> tuple[Message, ...]:
        """The user's turn for one order of a case.

        Args:
            question: Blocks of the question; its images move in front of the case.
            ground_truth: None where it is not shown.
            first: The response called ``1``.
            second: The response called ``2``.
        """
        asked = "".join(block.text for block in question if isinstance(block, TextBlock))
        images = [block for block in question if isinstance(block, ImageBlock)]
        case = self.case_text(asked.strip(), ground_truth) + self.answers_text(first, second)
        fixed = self.fixed_text()
        content: tuple[Block, ...] = (
            (*images, TextBlock(f"\n{fixed}{case}"))
            if self.released_order
            else (TextBlock(fixed), *images, TextBlock(case))
        )
        return (Message("user", content),)
