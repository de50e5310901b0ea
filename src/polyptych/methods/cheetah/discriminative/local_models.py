"""Models of transformers in local folders that steps for photographs use; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from polyptych.errors import PolyptychError
from polyptych.models.checkpoint import first_line


def check_local(folder: str, kind: str) -> None:
    """Refuse what is no folder: transformers and diffusers would take it for a name on the hub.

    Raises:
        PolyptychError: Naming the folder.
    """
    if not Path(folder).is_dir():
        raise PolyptychError(f"{folder}: no such folder; expected a local {kind} model")


def load_pipeline(task: str, folder: str, *, device: str = "cpu") -> Any:
    """A pipeline of transformers, for a task such as ``text-generation`` or ``mask-generation``.

    Raises:
        PolyptychError: Naming the folder and what is wrong with it.
    """
    import transformers

    check_local(folder, task)
    build: Any = transformers.pipeline
    try:
        return build(task, model=folder, device=device)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise PolyptychError(f"{folder}: no {task} model: {first_line(error)}") from error


def ask(pipeline: Any, prompt: str, max_new_tokens: int = 120) -> str:
    """One reply of a ``text-generation`` pipeline, through the chat template where it has one."""
    chat = getattr(getattr(pipeline, "tokenizer", None), "chat_template", None)
    told: Any = [{"role": "user", "content": prompt}] if chat else prompt
    replies = pipeline(told, max_new_tokens=max_new_tokens, do_sample=False, return_full_text=False)
    return str(replies[0]["generated_text"])


@dataclass(frozen=True)
class ClipModel:
    """Cosines between pictures and texts by a CLIP model of transformers."""

    model: Any
    processor: Any

    @torch.inference_mode()
    def similarity(self, images: list[Image.Image], texts: list[str]) -> torch.Tensor:
        """(images, texts) in -1 .. 1."""
        inputs = self.processor(
            images=images, text=texts, return_tensors="pt", padding=True, truncation=True
        )
        outputs = self.model(**inputs.to(self.model.device))
        pictures, words = outputs.image_embeds, outputs.text_embeds
        pictures, words = (x / x.norm(dim=-1, keepdim=True) for x in (pictures, words))
        return (pictures @ words.T).float().cpu()


def load_clip(folder: str, *, device: str = "cpu") -> ClipModel:
    """A CLIP model with its processor from a local folder.

    Raises:
        PolyptychError: If there is none.
    """
    from transformers import AutoProcessor, CLIPModel

    check_local(folder, "CLIP")
    try:
        model: Any = CLIPModel.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise PolyptychError(f"{folder}: no CLIP model: {first_line(error)}") from error
    return ClipModel(model.eval().to(device), processor)
