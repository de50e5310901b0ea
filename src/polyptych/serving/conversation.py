"""A conversation about pictures: several turns, and new pictures in any of them.

Every answer is that of the model to the whole dialogue; what the model has read of it before is not
read again, as far as the model can tell (see :mod:`polyptych.models.incremental`). An answer is
read once, together with the next question: what stands in the dialogue is its text, which may be
split into other tokens than it was made of.

For a model that reads shots, those of the first question stay with the whole dialogue, as they do
in training; they are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from polyptych.data.collation import Collator
from polyptych.data.images import load_image
from polyptych.evaluation.local_model import generate_ids
from polyptych.evaluation.task import GenerationSettings
from polyptych.methods.camml.shots import ShotCache
from polyptych.models.incremental import PromptMemory
from polyptych.schema import Example, ImageRef, Message, TextBlock
from polyptych.serving.chat import SETTINGS, Picture, question_example
from polyptych.serving.shots import FoundShot, require_shots


class Conversation:
    """Several turns with one model.

    Args:
        model: A :class:`~polyptych.models.vision_language.VisionLanguageModel`.
        processor: The processor saved beside it.
        settings: Decoding.
        find_shots: Gives the shots of the first question, such as ``ShotFinder(index).find``; None
            for a dialogue without any.

    Raises:
        PolyptychError: For shots and a model that reads none.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        settings: GenerationSettings = SETTINGS,
        find_shots: Callable[[Example], Sequence[FoundShot]] | None = None,
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.find_shots = find_shots
        if find_shots is not None:
            require_shots(model, processor)
        cache = ShotCache(model, processor) if processor.context_tokens else None
        self._collate = Collator(processor, training=False, shots=cache)
        self.shots: tuple[FoundShot, ...] = ()
        """What the dialogue rests on."""
        self.messages: tuple[Message, ...] = ()
        """The dialogue so far; questions and answers take turns."""
        self.images: tuple[ImageRef, ...] = ()
        """All pictures so far."""
        self._memory = PromptMemory()

    @torch.inference_mode()
    def ask(self, question: str, images: Sequence[Picture] = ()) -> str:
        """Answer the next question.

        Args:
            question: May place its own pictures with ``<image>``; otherwise they stand in front.
            images: Pictures that are new in this turn; may be empty.

        Raises:
            PolyptychError: As :meth:`polyptych.serving.chat.Chat.ask`. The conversation is then as
                it was before.
        """
        turn = question_example(images, question)
        messages = (*self.messages, *turn.messages)
        shots = self.shots
        if not self.messages and self.find_shots is not None:
            shots = tuple(self.find_shots(turn))
        dialogue = Example(
            "conversation",
            messages,
            (*self.images, *turn.images),
            shots=tuple(shot.example for shot in shots),
        )
        encoded = [self.processor.encode(dialogue, with_target=False)]
        row: Any = self._collate.pad(encoded)
        if encoded[0].shots:
            row.update(self._collate.read_shots([dialogue], encoded))
        inputs = {name: value.to(self.model.device) for name, value in row.items()}
        if turn.images:
            pictures = [load_image(image, where="question") for image in turn.images]
            pixels = self.processor.pixels(pictures)
            inputs["pixel_values"] = pixels.to(self.model.device, self.model.dtype)
        output, memory = self.model.read_more(self._memory, **inputs)
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        sequences = generate_ids(
            self.model, self.processor, {**prompt, "prompt_output": output}, self.settings
        )
        answer = self.processor.decode_answers(sequences, prompt["input_ids"].shape[1])[0]
        self._memory, self.images, self.shots = memory, dialogue.images, shots
        self.messages = (*messages, Message("assistant", (TextBlock(answer),)))
        return answer
