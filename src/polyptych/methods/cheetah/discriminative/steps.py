"""The steps joined: embedded ones for drawn pictures, models in local folders for photographs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from polyptych.evaluation.local_model import model_hash
from polyptych.methods.cheetah.discriminative.detection import QFormerAttention
from polyptych.methods.cheetah.discriminative.edits import EditWriter, LanguageModelEdits
from polyptych.methods.cheetah.discriminative.filters import (
    ClipSimilarity,
    PixelChange,
    SimilarityFilter,
)
from polyptych.methods.cheetah.discriminative.images import (
    ImageEditor,
    StorybookEditor,
    load_inpainting,
)
from polyptych.methods.cheetah.discriminative.local_models import load_clip, load_pipeline
from polyptych.methods.cheetah.discriminative.masks import (
    CaptionLabels,
    MaskSource,
    StorybookMasks,
    load_segment_anything,
)
from polyptych.methods.cheetah.discriminative.storybook_edits import StorybookEdits
from polyptych.methods.cheetah.discriminative.texts import (
    LanguageModelTargets,
    StorybookTargets,
    TargetWriter,
)
from polyptych.storybook.vocabulary import Split


@dataclass(frozen=True)
class Steps:
    """One implementation of each step."""

    attention: QFormerAttention
    masks: MaskSource
    edits: EditWriter
    images: ImageEditor
    similarity: SimilarityFilter
    targets: TargetWriter

    def software(self) -> dict[str, str]:
        """What made the data, step by step; settings and all."""
        named = {
            name: self._described(getattr(self, name))
            for name in ("masks", "edits", "images", "similarity", "targets")
        }
        model = self.attention.model
        return {"attention": f"{model.config.model_type} {model_hash(model)}", **named}

    @staticmethod
    def _described(step: Any) -> str:
        simple = {
            field.name: value
            for field in dataclasses.fields(step)
            if field.name != "name"
            and isinstance(value := getattr(step, field.name), (str, int, float))
        }
        return step.name + "".join(f", {name}={value!r}" for name, value in simple.items())


def storybook_steps(
    model: Any, processor: Any, *, split: Split = "train", second_view: bool = False
) -> Steps:
    """The embedded steps: for :class:`~.discriminative.sources.StorybookPictures`.

    Args:
        model: Whose Q-Former ignores what is edited.
        processor: The processor saved beside it.
        split: Owner of the compositions that edits make.
        second_view: See :class:`~.discriminative.images.StorybookEditor`.
    """
    return Steps(
        QFormerAttention(model, processor),
        StorybookMasks(),
        StorybookEdits(split),
        StorybookEditor(second_view),
        PixelChange(),
        StorybookTargets(),
    )


def photograph_steps(
    model: Any,
    processor: Any,
    *,
    segmenter: str,
    writer: str,
    painter: str,
    clip: str,
    device: str = "cpu",
) -> Steps:
    """The steps for photographs, each by a model in a local folder.

    Args:
        model: Whose Q-Former ignores what is edited.
        processor: The processor saved beside it.
        segmenter: Folder of a Segment Anything model.
        writer: Folder of an instruction-tuned language model.
        painter: Folder of a diffusers inpainting pipeline.
        clip: Folder of a CLIP model; it names objects, too.
        device: Where these four run.

    Raises:
        PolyptychError: For a folder without such a model, or a missing library.
    """
    seeing = load_clip(clip, device=device)
    writing = load_pipeline("text-generation", writer, device=device)
    return Steps(
        QFormerAttention(model, processor),
        load_segment_anything(segmenter, labels=CaptionLabels(seeing), device=device),
        LanguageModelEdits(writing, name=f"text-generation {writer}"),
        load_inpainting(painter, device=device),
        ClipSimilarity(seeing, name=f"CLIP similarity {clip}"),
        LanguageModelTargets(writing, name=f"text-generation {writer}"),
    )
