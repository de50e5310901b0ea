"""The processor: everything between pictures and words and a model's tensors, saved beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from polyptych.data.collation import Collator
from polyptych.data.conversation import TEMPLATES
from polyptych.data.tokenization import (
    EncodedExample,
    Layout,
    TokenizationSettings,
    encode_example,
)
from polyptych.errors import PolyptychError
from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

_NO_PIXELS = (ImageRef(data=b""),)
"""Stands for images that arrive decoded: rows need their number only."""

_DEFAULT = TokenizationSettings()
_SETTINGS = tuple(field.name for field in dataclasses.fields(TokenizationSettings))


class PolyptychProcessor(ProcessorMixin):
    """Tokenizer, image processor and row layout of one model.

    Args:
        image_processor: The vision encoder's own (``BlipImageProcessorPil`` for EVA-CLIP).
        tokenizer: The language model's.
        qformer_tokenizer: What the Q-Former reads instructions with; None: the same tokenizer.
        image_token: How an image's place is written in plain text.
        image_token_id: The placeholder id; default: the id of ``image_token`` in the tokenizer.
        tokens_per_image: This and what follows: the row layout, field by field of
            :class:`polyptych.data.tokenization.TokenizationSettings`, where it is explained.
        layout: See above.
        template: See above.
        max_length: See above.
        max_prompt_tokens: See above.
        max_target_tokens: See above.
        max_instruction_tokens: See above.
        context_tokens: See above.
        context_template: See above.
        max_shot_tokens: See above.
        context_token_id: The placeholder id of context tokens, for models that read shots.
        **kwargs: Handed to transformers (``chat_template``).
    """

    # transformers sets these by the names of the arguments.
    image_processor: Any
    tokenizer: Any
    qformer_tokenizer: Any

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        qformer_tokenizer: Any = None,
        image_token: str = "<image>",
        image_token_id: int | None = None,
        tokens_per_image: int = _DEFAULT.tokens_per_image,
        layout: Layout = _DEFAULT.layout,
        template: str = _DEFAULT.template,
        max_length: int | None = _DEFAULT.max_length,
        max_prompt_tokens: int | None = _DEFAULT.max_prompt_tokens,
        max_target_tokens: int | None = _DEFAULT.max_target_tokens,
        max_instruction_tokens: int = _DEFAULT.max_instruction_tokens,
        context_tokens: int = _DEFAULT.context_tokens,
        context_template: str = _DEFAULT.context_template,
        max_shot_tokens: int = _DEFAULT.max_shot_tokens,
        context_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Plain attributes, named like the arguments: that is what transformers saves and reloads.
        self.image_token = image_token
        if image_token_id is None:
            image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.image_token_id = image_token_id
        self.tokens_per_image, self.layout, self.template = tokens_per_image, layout, template
        self.max_length, self.max_prompt_tokens = max_length, max_prompt_tokens
        self.max_target_tokens = max_target_tokens
        self.max_instruction_tokens = max_instruction_tokens
        self.context_tokens, self.context_template = context_tokens, context_template
        self.max_shot_tokens, self.context_token_id = max_shot_tokens, context_token_id
        if context_tokens and context_token_id is None:
            raise PolyptychError(f"{context_tokens} context tokens need a context_token_id")
        super().__init__(image_processor, tokenizer, qformer_tokenizer or tokenizer, **kwargs)

    @property
    def settings(self) -> TokenizationSettings:
        """The row layout as one value."""
        return TokenizationSettings(**{name: getattr(self, name) for name in _SETTINGS})

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the squares that :meth:`pixels` makes; (height, width) where they differ."""
        options = self.image_processor
        crops = getattr(options, "do_center_crop", False)
        size = options.crop_size if crops else options.size
        height, width = size["height"], size["width"]
        return height if height == width else (height, width)

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows; eos where the tokenizer has no pad token."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def instruction_pad_token_id(self) -> int:
        """Id that fills the Q-Former's rows."""
        return self.qformer_tokenizer.pad_token_id or 0

    def encode(self, example: Example, *, with_target: bool) -> EncodedExample:
        """Token ids of one example; see :func:`polyptych.data.tokenization.encode_example`."""
        return encode_example(
            example,
            tokenizer=self.tokenizer,
            qformer_tokenizer=self.qformer_tokenizer,
            image_token_id=self.image_token_id,
            settings=self.settings,
            with_target=with_target,
            context_token_id=self.context_token_id,
        )

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values (n, 3, H, W) by the vision encoder's own preprocessing."""
        return self.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def __call__(
        self,
        images: Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts with ``<image>`` at the pictures' places, ready for ``generate``.

        One prompt takes a list of images, several prompts a list of lists. A prompt without any
        ``<image>`` gets its images in front.

        Raises:
            PolyptychError: If a prompt has another number of ``<image>`` than images.
        """
        if text is None:
            raise PolyptychError("a prompt is needed; 0 were given")
        prompts = [text] if isinstance(text, str) else list(text)
        groups: list[Sequence[Image.Image]]
        if images is None or len(images) == 0:
            groups = [[] for _ in prompts]
        elif isinstance(images[0], Image.Image):
            groups = [images]  # type: ignore[list-item]
        else:
            groups = list(images)  # type: ignore[arg-type]
        if len(groups) != len(prompts):
            raise PolyptychError(f"{len(prompts)} prompts for {len(groups)} groups of images")
        encoded = [
            self._encode_prompt(prompt, len(group), f"prompt {index + 1}")
            for index, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
        ]
        batch = Collator(self, training=False).pad(encoded)
        flat = [image for group in groups for image in group]
        if flat:
            batch["pixel_values"] = self.pixels(flat)
        return BatchFeature(dict(batch))

    def _encode_prompt(self, prompt: str, image_count: int, name: str) -> EncodedExample:
        pieces = prompt.split(self.image_token)
        if len(pieces) == 1:
            pieces = [""] * image_count + pieces
        if len(pieces) - 1 != image_count:
            raise PolyptychError(
                f"{name}: {len(pieces) - 1} {self.image_token} for {image_count} images"
            )
        blocks: list[TextBlock | ImageBlock] = []
        for index, piece in enumerate(pieces):
            if index:
                blocks.append(ImageBlock())
            if piece:
                blocks.append(TextBlock(piece))
        row = Example(name, (Message("user", tuple(blocks)),))
        return encode_example(
            dataclasses.replace(row, images=_NO_PIXELS * image_count),
            tokenizer=self.tokenizer,
            qformer_tokenizer=self.qformer_tokenizer,
            image_token_id=self.image_token_id,
            settings=self.settings,
            with_target=False,
        )

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Text of one row of ids, by the language model's tokenizer."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, sequences: Tensor, **kwargs: Any) -> list[str]:
        """Texts of several rows of ids."""
        return self.tokenizer.batch_decode(sequences, **kwargs)

    def decode_answers(self, sequences: Tensor, prompt_width: int) -> list[str]:
        """The generated part of each row, without special tokens and outer blanks.

        Cut where the template's own end of an answer begins, which may itself be cut off.
        """
        answers = sequences[:, prompt_width:]
        answers = torch.where(answers == self.image_token_id, self.pad_token_id, answers)
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        end = TEMPLATES[self.template].answer_end
        if end is not None:
            texts = [text.split(end)[0].rstrip().removesuffix(end[:-1]) for text in texts]
        return [text.strip() for text in texts]

    @property
    def model_input_names(self) -> list[str]:
        """Names that the models' ``forward`` takes from here."""
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "image_counts",
            "qformer_input_ids",
            "qformer_attention_mask",
        ]
