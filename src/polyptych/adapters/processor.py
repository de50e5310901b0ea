"""Examples become batches of a family: its own chat template, its own processor, our extra names.

Images stand in the prompt where the example puts them. The processor sees prompts only; the ids of
an answer follow them, so that training and generation read the very same prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyptych.adapters.families import Family, family_of
from polyptych.adapters.image_only import save_processor
from polyptych.data.conversation import CONTEXT_TEMPLATES, shot_text
from polyptych.data.images import load_image
from polyptych.data.tokenization import EncodedExample
from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import first_line
from polyptych.schema import IGNORE_INDEX, Example, ImageBlock, ImageRef, Message, TextBlock


@dataclass(frozen=True, slots=True)
class FamilySettings:
    """How rows are laid out, beside the chat template."""

    max_length: int | None = None
    """Tokens that the base can hold; a longer row is an error, since images are never cut."""
    context_tokens: int = 0
    """Placeholders in a row whose example has shots; 0: shots are not read."""
    context_template: str = "instruction"
    """Name in :data:`polyptych.data.conversation.CONTEXT_TEMPLATES`."""
    max_shot_tokens: int = 2048
    """Limit on a shot's row; a longer one is an error."""
    image_options: Mapping[str, Any] = field(default_factory=dict)
    """For the family's image processor: ``crop_to_patches=False`` makes one tile of an image."""


class FamilyProcessor:
    """Makes batches for an adapted base; stands where the collator asks for a processor.

    Each example teaches its last answer; earlier answers are part of its prompt.

    Args:
        processor: The family's own, with a chat template.
        family: What is known of the family.
        image_token_id: Placeholder id of visual tokens.
        context_token_id: Placeholder id of context tokens.
        settings: Row layout.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        *,
        image_token_id: int,
        context_token_id: int | None = None,
        settings: FamilySettings | None = None,
    ) -> None:
        if processor.chat_template is None:
            raise PolyptychError(
                f"{type(processor).__name__}: no chat template, which says how the base reads "
                "questions and images"
            )
        self.processor, self.family = processor, family
        self.image_token_id, self.context_token_id = image_token_id, context_token_id
        self.settings = settings or FamilySettings()
        self._tokens_per_image: int | None = None

    @classmethod
    def of(cls, processor: Any, model: Any) -> FamilyProcessor:
        """For a model that has methods on it."""
        queries = [getattr(method, "num_query_tokens", 0) for method in model.methods.values()]
        return cls(
            processor,
            family_of(model.config.model_type),
            image_token_id=model.config.image_token_id,
            context_token_id=model.seams.context_token_id,
            settings=FamilySettings(
                max_length=model.config.get_text_config().max_position_embeddings,
                context_tokens=2 * sum(queries),
            ),
        )

    # What others ask of a processor.

    @property
    def tokenizer(self) -> Any:
        """The language model's."""
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        """The vision encoder's."""
        return self.processor.image_processor

    @property
    def template(self) -> str:
        """The chat template."""
        return self.processor.chat_template

    @property
    def context_tokens(self) -> int:
        """Placeholders in a row whose example has shots."""
        return self.settings.context_tokens

    @property
    def max_length(self) -> int | None:
        """Tokens that the base can hold."""
        return self.settings.max_length

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows; eos where the tokenizer has no pad token."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of a square image of 336 pixels; others may have more or fewer."""
        if self._tokens_per_image is None:
            from PIL import Image

            square = Image.new("RGB", (336, 336), "gray")
            ids = self._run(["prompt"], [self._prompt_text((_LOOK,))], [[square, square]])
            self._tokens_per_image = int((ids["input_ids"] == self.image_token_id).sum()) // 2
        return self._tokens_per_image

    def encode(self, example: Example, *, with_target: bool) -> EncodedExample:
        """One row by itself: its images are read, since they decide how many tokens they take."""
        batch = self.collate([example], training=with_target)
        ids = batch["input_ids"][0].tolist()
        labels = batch["labels"][0].tolist() if with_target else [IGNORE_INDEX] * len(ids)
        return EncodedExample(
            input_ids=ids,
            labels=labels,
            last_prompt=int(batch["last_prompt"][0]),
            instruction_ids=[],
            image_count=len(example.images),
            visual_prefix=0,
        )

    def decode_answers(self, sequences: Tensor, prompt_width: int) -> list[str]:
        """The generated part of each row, without special tokens and outer blanks."""
        texts = self.tokenizer.batch_decode(sequences[:, prompt_width:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def save_pretrained(self, folder: str | Path) -> None:
        """The family's processor, as any program of transformers reads it."""
        save_processor(self.processor, folder)

    def without_limit(self) -> FamilyProcessor:
        """The same, for rows of any length."""
        other = copy.copy(self)
        other.settings = replace(self.settings, max_length=None)
        return other

    # Batches.

    def collate(
        self, examples: Sequence[Example], *, training: bool, begun: Sequence[int] = ()
    ) -> dict[str, Tensor]:
        """A batch with the family's own fields and ``image_counts``, ``last_prompt``, ``shot_*``.

        Prompts are padded on the left. In training, answers follow, padded on the right, with
        ``labels`` on them alone.

        Args:
            examples: One row each.
            training: Whether answers follow.
            begun: Ids that every answer begins with, where they do not.

        Raises:
            PolyptychError: If places and images of an example differ in number, an answer is
                missing, or a row is longer than the base can hold; names the example.
        """
        names = [f"example {example.id}" for example in examples]
        prompts = [self._prompt(example) for example in examples]
        batch = self._run(
            names,
            [self._prompt_text(prompt) for prompt in prompts],
            [_pixels(e.images, name) for e, name in zip(examples, names, strict=True)],
        )
        rows, width = batch["input_ids"].shape
        batch["image_counts"] = torch.tensor([len(example.images) for example in examples])
        batch["last_prompt"] = torch.full((rows,), width - 1)
        if training:
            answers = [self._answer(e, p) for e, p in zip(examples, prompts, strict=True)]
            self._append(batch, answers)
        elif begun:
            self._append(batch, [begun] * rows)
            del batch["labels"]
        self._check_lengths(names, batch)
        batch.update(self._shots(examples))
        return batch

    def _prompt(self, example: Example) -> tuple[Message, ...]:
        """The messages before the last answer, with context tokens before the first question."""
        places = sum(message.image_count for message in example.messages)
        if places != len(example.images):
            raise PolyptychError(
                f"example {example.id}: {places} image placeholders for {len(example.images)} "
                "images"
            )
        if not self._reads_shots(example):
            return example.prompt
        asked = CONTEXT_TEMPLATES[self.settings.context_template]
        token = self.tokenizer.convert_ids_to_tokens(self.context_token_id)
        context = TextBlock(asked.before + token * self.context_tokens + asked.after)
        first = next(i for i, message in enumerate(example.prompt) if message.role == "user")
        return tuple(
            replace(message, content=(context, *message.content)) if index == first else message
            for index, message in enumerate(example.prompt)
        )

    def _prompt_text(self, messages: Sequence[Message]) -> str:
        return self.processor.apply_chat_template(
            [_as_chat(message) for message in messages], add_generation_prompt=True, tokenize=False
        )

    def _answer(self, example: Example, prompt: Sequence[Message]) -> list[int]:
        """Ids of the last answer with the token that ends it."""
        if not example.target:
            raise PolyptychError(f"example {example.id}: no answer to learn from")
        turns = [_as_chat(message) for message in (*prompt, example.messages[-1])]
        asked = self._prompt_text(prompt)
        text = self.processor.apply_chat_template(turns, tokenize=False)
        if not text.startswith(asked):
            raise PolyptychError(
                f"example {example.id}: the chat template writes a prompt of {len(asked)} letters "
                f"otherwise once {len(text) - len(asked)} letters of its answer are known"
            )
        end = self.family.prompt_end if asked.endswith(self.family.prompt_end) else ""
        before = self.tokenizer(end, add_special_tokens=False)["input_ids"]
        ids = self.tokenizer(end + text[len(asked) :].rstrip(), add_special_tokens=False)[
            "input_ids"
        ]
        if ids[: len(before)] != before:
            ids, before = (
                self.tokenizer(text[len(asked) :].rstrip(), add_special_tokens=False)["input_ids"],
                [],
            )
        answer = ids[len(before) :]
        special = set(self.tokenizer.all_special_ids)
        return answer if answer[-1] in special else [*answer, self.tokenizer.eos_token_id]

    def _run(
        self, names: Sequence[str], texts: Sequence[str], images: Sequence[Sequence[Any]]
    ) -> dict[str, Tensor]:
        """The family's processor over prompts and their images."""
        bos = self.tokenizer.bos_token
        written = bos is not None and all(text.startswith(bos) for text in texts)
        pictures: Any = [list(group) for group in images] if any(images) else None
        if pictures is not None and self.family.grouping == "entry":
            pictures = [group for group in pictures if group]  # the flat ones refuse empty groups
        try:
            batch = self.processor(
                text=list(texts),
                images=pictures,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                add_special_tokens=not written,
                **(self.settings.image_options if pictures is not None else {}),
            )
        except ValueError as error:
            raise PolyptychError(
                f"{names[0]}{' …' if len(names) > 1 else ''}: {first_line(error)}"
            ) from error
        return dict(batch)

    def _append(self, batch: dict[str, Tensor], answers: Sequence[Sequence[int]]) -> None:
        """Answers behind the prompts, in every field that has a value per token."""
        rows, width = batch["input_ids"].shape
        longest = max(map(len, answers))
        ids = torch.full((rows, longest), self.pad_token_id)
        mask = torch.zeros(rows, longest, dtype=torch.long)
        for row, answer in enumerate(answers):
            ids[row, : len(answer)], mask[row, : len(answer)] = torch.tensor(answer), 1
        ignored = torch.full((rows, width), IGNORE_INDEX)
        batch["labels"] = torch.cat([ignored, ids.masked_fill(mask == 0, IGNORE_INDEX)], dim=1)
        batch["input_ids"] = torch.cat([batch["input_ids"], ids], dim=1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], mask], dim=1)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                batch[name] = torch.cat([batch[name], torch.zeros_like(mask)], dim=1)

    def _check_lengths(self, names: Sequence[str], batch: dict[str, Tensor]) -> None:
        limit = self.max_length
        for name, length in zip(names, batch["attention_mask"].sum(1).tolist(), strict=True):
            if limit is not None and length > limit:
                row = batch["input_ids"][names.index(name)]
                visual = int((row == self.image_token_id).sum())
                raise PolyptychError(
                    f"{name}: {length} tokens, {visual} of them of images, for a context of {limit}"
                )

    def _reads_shots(self, example: Example) -> bool:
        return self.context_tokens > 0 and len(example.shots) > 0

    def _shots(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The shots of all examples as rows of their own, their names beginning with ``shot_``."""
        shots = [s for e in examples if self._reads_shots(e) for s in e.shots]
        if not shots:
            return {}
        names, texts = [f"shot {shot.id}" for shot in shots], []
        for shot in shots:
            look = Message("user", (*(ImageBlock() for _ in shot.images), TextBlock(" ")))
            places = self.processor.apply_chat_template([_as_chat(look)], tokenize=False)
            texts.append(places + shot_text(shot.messages, self.settings.context_template))
        fields = self._run(
            names, texts, [_pixels(s.images, n) for s, n in zip(shots, names, strict=True)]
        )
        counts = [len(e.shots) if self._reads_shots(e) else 0 for e in examples]
        longest = fields["input_ids"].shape[1]
        if longest > self.settings.max_shot_tokens:
            raise PolyptychError(
                f"{names[0]} …: {longest} tokens in a shot; {self.settings.max_shot_tokens} are "
                "read"
            )
        fields["counts"] = torch.tensor(counts)
        return {f"shot_{name}": value for name, value in fields.items()}


_LOOK = Message("user", (ImageBlock(), ImageBlock(), TextBlock("?")))


def _as_chat(message: Message) -> dict[str, Any]:
    """A message in the form that chat templates read."""
    blocks = [
        {"type": "text", "text": block.text} if isinstance(block, TextBlock) else {"type": "image"}
        for block in message.content
    ]
    return {"role": message.role, "content": blocks}


def _pixels(images: Sequence[ImageRef], where: str) -> list[Any]:
    return [load_image(image, where=where) for image in images]
