"""Any image-text model of transformers as an answerer, with its own processor and chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from polyptych.data.images import load_image
from polyptych.errors import PolyptychError
from polyptych.evaluation.answering import digest
from polyptych.evaluation.local_model import model_hash
from polyptych.evaluation.task import GenerationSettings
from polyptych.schema import Example, ImageBlock


class TransformersModel:
    """A model that is not ours, as its authors published it.

    Args:
        model: An image-text-to-text model.
        processor: Its processor, with a chat template.
        name: What tables call it.

    Raises:
        PolyptychError: Without a chat template: how its prompts look is then anybody's guess.
    """

    tokens_per_image = 256
    ignores: frozenset[str] = frozenset()

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        if not getattr(processor, "chat_template", None):
            raise PolyptychError(f"{name}: its processor has no chat template; it cannot be asked")
        self.model, self.processor, self.name = model, processor, name
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    @classmethod
    def load(cls, path: str, *, device: str = "cpu") -> TransformersModel:
        """Load a folder or hub name; weights keep the type in which they are stored.

        Raises:
            PolyptychError: If transformers knows no such model, or parts of it are missing.
        """
        load: Any = AutoModelForImageTextToText.from_pretrained
        try:
            model = load(path, dtype="auto").eval().to(device)
            processor = AutoProcessor.from_pretrained(path)
        except (ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise PolyptychError(f"{path}: not loaded by transformers: {reason}") from error
        return cls(model, processor, Path(path).name)

    @cached_property
    def hash(self) -> str:
        """Of weights and chat template."""
        return digest(model_hash(self.model), str(self.processor.chat_template))

    def context(self) -> dict[str, Any]:
        """Model, template and what decodes images."""
        return {
            "model": {
                "name": self.model.config.name_or_path,
                "type": self.model.config.model_type,
                "hash": model_hash(self.model),
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "device": self.model.device.type,
            },
            "prompt_template": "the processor's chat template",
            "image_backend": type(self.processor.image_processor).__name__,
        }

    @torch.inference_mode()
    def answer(self, examples: Sequence[Example], settings: GenerationSettings) -> list[str]:
        """Answer one batch; sampling starts from the settings' seed."""
        inputs = self.processor.apply_chat_template(
            [chat_messages(example) for example in examples],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=settings.do_sample):
            if settings.do_sample:
                torch.manual_seed(settings.seed)
            sequences = self.model.generate(
                **inputs,
                **settings.arguments(),
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
        answers = sequences[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]


def chat_messages(example: Example) -> list[dict[str, Any]]:
    """The prompt in transformers' form, decoded images at their places.

    Raises:
        PolyptychError: For an image that cannot be read.
    """
    images = iter(example.images)

    def parts(content: Sequence[Any]) -> Iterator[dict[str, Any]]:
        for block in content:
            if isinstance(block, ImageBlock):
                image = load_image(next(images), where=f"example {example.id!r}")
                yield {"type": "image", "image": image}
            else:
                yield {"type": "text", "text": block.text}

    return [{"role": m.role, "content": list(parts(m.content))} for m in example.prompt]
