"""DEMON's 31 tasks in 7 categories: what exists, how large it is, and how it is judged.

Li et al. 2024, "Fine-tuning Multimodal LLMs to Follow Zero-shot Demonstrative Instructions"
(arXiv 2308.04152). The published sizes of DEMON-Full add up to 450,150 examples, not to the 477,716
that the paper names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyptych.errors import PolyptychError

Split = Literal["core", "full"]

Rule = Literal["rouge_l", "text_choice", "image_choice"]
"""How an answer is judged: overlap with the reference, one of several texts, one of several
images that are named by letters."""

CATEGORIES = (
    "Multimodal Dialogue",
    "Visual Storytelling",
    "Visual Relation Inference",
    "Multimodal Cloze",
    "Knowledge Grounded QA",
    "Text-Rich Images QA",
    "Multi-Image Reasoning",
)
"""In the order of the paper's tables."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One task of the benchmark."""

    name: str
    """Of its folder and in the published scripts."""
    category: str
    """One of :data:`CATEGORIES`."""
    scenario: str
    """What its pictures show."""
    core_size: int | None
    """Examples in DEMON-Core; None where the task belongs to DEMON-Full only."""
    full_size: int
    """Examples in DEMON-Full."""
    rule: Rule
    """How its answers are meant to be judged."""
    templates: int = 10
    """Number of instruction templates."""

    @property
    def released_rule(self) -> Rule:
        """The rule that the published script applies.

        It differs for one task: the script's list of image tasks has VisualCloze under another
        name, so its answers, letters of images, go through the matching of texts.
        """
        return "text_choice" if self.name == "RecipeQA_VisualCloze" else self.rule

    def size(self, split: Split) -> int | None:
        """Examples in ``split``; None where it does not have this task."""
        return self.core_size if split == "core" else self.full_size


def _rows(category: str, rows: list[tuple[str, str, int | None, int, Rule, int]]) -> list[Dataset]:
    return [Dataset(row[0], category, *row[1:]) for row in rows]


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *_rows(
            "Multimodal Dialogue",
            [
                ("MMCoQA", "conversation", 2382, 4925, "rouge_l", 10),
                ("ALFRED", "embodied dialogue", 2294, 107201, "rouge_l", 10),
            ],
        ),
        *_rows(
            "Visual Storytelling",
            [
                ("AESOP", "cartoon", 500, 7015, "rouge_l", 10),
                ("DiDeMoSV", "photo story", 500, 14924, "rouge_l", 10),
                ("FlintstonesSV", "cartoon", 500, 22441, "rouge_l", 10),
                ("PororoSV", "cartoon", 500, 12399, "rouge_l", 10),
                ("VIST", "album", 500, 26126, "rouge_l", 10),
            ],
        ),
        *_rows(
            "Visual Relation Inference",
            [
                ("IEdit", "general edits", 500, 2000, "rouge_l", 10),
                ("Spot-the-Diff", "surveillance", 500, 10874, "rouge_l", 10),
                ("Birds-to-Words", "fine-grained", 500, 14381, "rouge_l", 10),
                ("CLEVR-Change", "synthetic", 500, 3985, "rouge_l", 10),
            ],
        ),
        *_rows(
            "Multimodal Cloze",
            [
                ("COMICS_Dialogue", "cartoon", 500, 6000, "text_choice", 10),
                ("COMICS_Panel", "cartoon", 500, 6000, "image_choice", 10),
                ("RecipeQA_VisualCloze", "recipe", 500, 8834, "image_choice", 10),
                ("RecipeQA_TextCloze", "recipe", 500, 9761, "text_choice", 10),
            ],
        ),
        *_rows(
            "Knowledge Grounded QA",
            [
                ("WebQA", "web pages", 500, 9438, "text_choice", 10),
                ("TQA", "textbook", 500, 9786, "text_choice", 10),
                ("MultiModalQA", "Wikipedia", 500, 4577, "text_choice", 10),
                ("ManyModalQA", "Wikipedia", None, 3104, "text_choice", 10),
            ],
        ),
        *_rows(
            "Text-Rich Images QA",
            [
                ("SlideVQA", "slides", 500, 1987, "text_choice", 10),
                ("OCR-VQA", "book covers", 500, 2000, "text_choice", 10),
                ("DocVQA", "documents", 500, 2000, "text_choice", 10),
            ],
        ),
        *_rows(
            "Multi-Image Reasoning",
            [
                ("Fashion200K", "fashion", 500, 2000, "text_choice", 40),
                ("NLVR2", "entailment", 500, 37208, "text_choice", 10),
                ("nuscenes", "driving", 500, 9906, "text_choice", 10),
                ("VizWiz", "photographs of blind people", 500, 5000, "text_choice", 10),
                ("MIT-States_StateCoherence", "states", 500, 2000, "text_choice", 10),
                ("MIT-States_PropertyCoherence", "properties", 500, 2000, "text_choice", 30),
                ("VISION", "industrial inspection", 500, 2000, "text_choice", 20),
                ("RecipeQA_ImageCoherence", "recipe", 500, 8799, "image_choice", 10),
                ("Gibson", "indoor egocentric", None, 91479, "text_choice", 10),
            ],
        ),
    )
}
"""Every task by its name, categories together."""


def datasets_of(split: Split) -> list[Dataset]:
    """The tasks of a split: 29 in Core, 31 in Full.

    Raises:
        PolyptychError: For another split.
    """
    if split not in ("core", "full"):
        raise PolyptychError(f"unknown DEMON split {split!r}; known: core, full")
    return [dataset for dataset in DATASETS.values() if dataset.size(split) is not None]


def find_dataset(name: str) -> Dataset:
    """The task of this name, upper and lower case alike (``nuScenes`` is written both ways).

    Raises:
        PolyptychError: For an unknown name.
    """
    for dataset in DATASETS.values():
        if dataset.name.lower() == name.lower():
            return dataset
    raise PolyptychError(f"no DEMON task {name!r}; known: {', '.join(DATASETS)}")
